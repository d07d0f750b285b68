//! Callers that go on calling for as long as a test watches what comes of it.

use std::thread;

use super::poll::Stop;

/// Has so many threads call, each with its own number and that of its call, until `meanwhile` has ended or failed.
pub(crate) fn while_calling(
    callers: u32,
    call: impl Fn(u32, u64) + Sync,
    meanwhile: impl FnOnce(),
) {
    thread::scope(|scope| {
        let stop = Stop::default();
        for caller in 0..callers {
            let (watch, call) = (stop.watch(), &call);
            scope.spawn(move || {
                for number in (0..).take_while(|_| !watch.is_set()) {
                    call(caller, number);
                }
            });
        }
        meanwhile();
    });
}
