//! Why a request got no answer, read from what the channel put into its status.

use fusebox_state::dependencies::Fault;
use tonic::Status;

use crate::{
    kinds::firestore::protocol::outcome::Cause,
    net::{
        dial::DialError,
        grpc::{NotSent, ResetForAnother},
    },
};

/// The cause of `status`, which came from the channel.
pub(crate) fn of(status: &Status) -> Cause {
    use std::error::Error as _;
    let Some(source) = status.source() else { return Cause::Server };
    if let Some(reset) = source.downcast_ref::<ResetForAnother>() {
        return Cause::Reset(reset.to_string());
    }
    match source.downcast_ref::<NotSent>() {
        Some(NotSent::Dial(dial)) if matches!(**dial, DialError::Tls(..)) => {
            Cause::Tls(dial.to_string())
        }
        Some(NotSent::Dial(dial)) => Cause::NotSent(dial.fault()),
        Some(NotSent::Refused(_)) => Cause::NotSent(Fault::Unclear),
        None => Cause::Connection,
    }
}

/// A status of a request of which nothing was sent, for that reason.
pub(crate) fn not_sent(why: &str) -> Status {
    let mut status = Status::unavailable("it was not sent");
    status.set_source(std::sync::Arc::new(NotSent::Refused(why.to_owned())));
    status
}
