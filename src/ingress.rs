//! What is before every door: who calls, how much at once, at what pace. It knows nothing of HTTP.

pub(crate) mod callers;
pub(crate) mod door;
pub(crate) mod door_thread;
pub(crate) mod gate;
pub(crate) mod handed;
pub(crate) mod listener;
pub(crate) mod paced;
pub(crate) mod parking;
pub(crate) mod peer;
pub(crate) mod rates;
pub(crate) mod refusal;
pub(crate) mod same;
pub(crate) mod seldom;
pub(crate) mod socket;
