//! Whether the failure of a call says anything of the server that the backend has.
//!
//! It does not if the server gave up when its client did. A client's time goes along with a read, and with a write whose
//! answer may be more than one message. When it is over some servers say so with a status, and others reset the stream without a word, as grpc-java
//! does. So it does not matter how a call ends then, unless the server says more than that the outcome is unknown.
//!
//! A server that is silent for as long as the backend's `timeout` has failed, however short its client's time was: it
//! could have given up long since.
//!
//! Nothing that comes of an [upstream that is over](Upstream::is_over) says anything of the one that has its place.

use std::{sync::Arc, time::Duration};

use fusebox_state::{ErrorClass, Verdict};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{class::Method, pool::Upstream};
use crate::kinds::firestore::{
    protocol::outcome::{Behalf, Failed},
    transport::client::Client,
};

/// A server whose timers are coarse may give up so much too early.
const COARSE: Duration = Duration::from_millis(10);

/// See the [module](self).
#[derive(Clone)]
pub(super) struct Blame {
    /// When the time is over that the server knows to be its client's.
    until: Option<Instant>,
    /// That is sooner than the backend's time is over.
    is_short: bool,
    client: Arc<Client>,
}

impl Blame {
    /// Of a call that is sent now: `asked` is how long its client waits, if it says so.
    pub(super) fn of(
        upstream: &Upstream,
        method: Method,
        asked: Option<Duration>,
        timeout: Duration,
    ) -> Self {
        // Such a call goes on with the backend's time.
        let asked = asked.filter(|_| !method.is_timed());
        Self {
            until: asked.and_then(|asked| Instant::now().checked_add(asked)),
            is_short: asked.is_some_and(|asked| asked < timeout),
            client: Arc::clone(&upstream.connector.shared.client),
        }
    }

    /// How a call has failed whose stream ended with `status`, before it is known what that says of the server.
    pub(super) fn failed(&self, status: &Status, behalf: Behalf) -> Failed {
        self.client.says(status, behalf)
    }

    /// A failure, with what it says of the server.
    pub(super) fn judges(&self, failed: Failed) -> Failed {
        let is_late = self.until.is_some_and(|until| Instant::now() + COARSE >= until);
        let says_so = self.is_short && failed.status == Some(Code::DeadlineExceeded);
        let is_unknown = failed.error.class == ErrorClass::Unknown;
        self.excuses(failed, is_unknown && (is_late || says_so))
    }

    /// The same if the server has said nothing for as long as the backend's `timeout`.
    pub(super) fn judges_silence(&self, failed: Failed) -> Failed {
        self.excuses(failed, false)
    }

    fn excuses(&self, failed: Failed, is_clients_end: bool) -> Failed {
        let is_excused = is_clients_end || self.client.closed.is_cancelled();
        if is_excused && failed.verdict == Verdict::Failure {
            Failed { verdict: Verdict::Neutral, ..failed }
        } else {
            failed
        }
    }
}

#[cfg(test)]
mod tests {
    use fusebox_actors::connector::Connector as _;
    use fusebox_state::Verdict::{Failure, Neutral, Success};
    use tokio::time::advance;

    use super::*;
    use crate::kinds::firestore::{
        connector::FirestoreConnector,
        door::{class::method, outcome::given_up},
        protocol::outcome::{self, Cause},
        testing::settings,
    };

    const SECOND: Duration = Duration::from_secs(1);
    const TIMEOUT: Duration = Duration::from_secs(10);

    fn failed(status: &Status, cause: Cause) -> Failed {
        outcome::of(status, cause, Behalf::default())
    }

    fn cancelled() -> Failed {
        failed(&Status::cancelled("stream reset"), Cause::Server)
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_gives_up_with_its_client_is_not_to_blame_and_a_silent_one_is() {
        let upstream = Upstream::new(FirestoreConnector::new(settings(1)));
        let of = |name: &str, asked| {
            let method = method(&format!("/google.firestore.v1.Firestore/{name}"));
            Blame::of(&upstream, method, asked, TIMEOUT)
        };
        let hasty = [of("GetDocument", Some(SECOND)), of("Write", Some(SECOND))];
        let patient = [of("GetDocument", None), of("Commit", Some(SECOND))];
        for blame in hasty.iter().chain(&patient) {
            assert_eq!(blame.judges(cancelled()).verdict, Failure, "there is time left");
        }
        advance(SECOND).await;
        for blame in &hasty {
            assert_eq!(blame.judges(cancelled()).verdict, Neutral);
            let broken = failed(&Status::unavailable("broken"), Cause::Connection);
            assert_eq!(blame.judges(broken).verdict, Neutral);
            let full = failed(&Status::resource_exhausted("quota"), Cause::Server);
            assert_eq!(blame.judges(full).verdict, Failure, "that is said of the server");
            assert_eq!(blame.judges_silence(given_up(true, TIMEOUT)).verdict, Failure);
        }
        for blame in &patient {
            assert_eq!(blame.judges(cancelled()).verdict, Failure);
        }
    }

    #[tokio::test]
    async fn nobody_is_to_blame_for_a_server_that_was_replaced() {
        let upstream = Upstream::new(FirestoreConnector::new(settings(1)));
        let get = method("/google.firestore.v1.Firestore/GetDocument");
        let blame = Blame::of(&upstream, get, None, TIMEOUT);
        upstream.connector.close().await;
        assert_eq!(blame.judges(cancelled()).verdict, Neutral);
        assert_eq!(blame.judges_silence(given_up(true, TIMEOUT)).verdict, Neutral);
        let missing = failed(&Status::not_found("no such document"), Cause::Server);
        assert_eq!(blame.judges(missing).verdict, Success);
    }
}
