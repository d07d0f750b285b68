//! What a reply says: of the backend, and of what may be done next.
//!
//! | replies | class | verdict |
//! | --- | --- | --- |
//! | no error | | success |
//! | LOADING, BUSY, TRYAGAIN, MASTERDOWN, CLUSTERDOWN, "max number of clients" | not executed | failure |
//! | NOAUTH, WRONGPASS, DENIED, READONLY, MISCONF, NOREPLICAS, MOVED, ASK | blocked: server | failure |
//! | NOPERM, OOM | blocked: object | success |
//! | ERR, WRONGTYPE, CROSSSLOT, EXECABORT, NOSCRIPT …, and errors without a code | rejected | success |
//! | any other code | unknown, `unclassified` | success |

use bytes::Bytes;
use fusebox_actors::connector::{AttemptError, Attempted};
use fusebox_state::{ErrorClass, Verdict};

use super::resp;

/// How an attempt that `reply` answered has ended.
pub(super) fn of(reply: Bytes) -> Attempted {
    if !matches!(reply.first(), Some(b'-' | b'!')) {
        return Attempted::answered(reply);
    }
    let Some((code, message)) = resp::error_of(&reply) else {
        return Attempted::answered(reply);
    };
    let (class, verdict) = class(code, message);
    let message = match code {
        "MOVED" | "ASK" => format!("{CLUSTER} ({message})"),
        _ => message.to_owned(),
    };
    let error = AttemptError {
        class: class.unwrap_or(ErrorClass::Unknown),
        doubt: class.is_none().then(Bytes::new),
        code: code.to_owned().into(),
        message,
        reply: Some(reply.clone()),
        unclassified: class.is_none(),
        retry_after: None,
    };
    Attempted::failed(verdict, error)
}

/// Said of a server that is part of a cluster.
pub(super) const CLUSTER: &str =
    "the server is part of a Redis Cluster, which is not supported: name a single server";

fn class(code: &str, message: &str) -> (Option<ErrorClass>, Verdict) {
    let (class, verdict) = match code {
        "LOADING" | "BUSY" | "TRYAGAIN" | "MASTERDOWN" | "CLUSTERDOWN" => {
            (ErrorClass::NotExecuted, Verdict::Failure)
        }
        "ERR" if message.contains("max number of clients") => {
            (ErrorClass::NotExecuted, Verdict::Failure)
        }
        "NOAUTH" | "WRONGPASS" | "DENIED" | "READONLY" | "MISCONF" | "NOREPLICAS" | "MOVED"
        | "ASK" => (ErrorClass::BlockedServer, Verdict::Failure),
        "NOPERM" | "OOM" => (ErrorClass::BlockedObject, Verdict::Success),
        "ERR" | "WRONGTYPE" | "CROSSSLOT" | "EXECABORT" | "NOSCRIPT" | "NOTBUSY" | "UNKILLABLE"
        | "BUSYKEY" | "BUSYGROUP" | "NOGROUP" | "NOPROTO" | "NOADDR" | "UNBLOCKED" | "IOERR"
        | "INVALIDOBJ" | "STALE" | "NOTREADY" => (ErrorClass::Rejected, Verdict::Success),
        _ => return (None, Verdict::Success),
    };
    (Some(class), verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn ends(reply: &'static str, class: ErrorClass, verdict: Verdict, unclassified: bool) {
        let attempted = of(Bytes::from(format!("-{reply}\r\n")));
        let error = attempted.result.unwrap_err();
        assert_eq!((error.class, attempted.verdict), (class, verdict), "{reply}");
        assert_eq!(error.unclassified, unclassified, "{reply}");
        assert!(error.reply.is_some() && error.message.contains(reply));
    }

    #[test]
    fn every_code_has_its_class() {
        use ErrorClass::{BlockedObject, BlockedServer, NotExecuted, Rejected, Unknown};
        use Verdict::{Failure, Success};
        ends("LOADING Redis is loading", NotExecuted, Failure, false);
        ends("BUSY Redis is busy running a script", NotExecuted, Failure, false);
        ends("MASTERDOWN Link with MASTER is down", NotExecuted, Failure, false);
        ends("CLUSTERDOWN The cluster is down", NotExecuted, Failure, false);
        ends("TRYAGAIN Multiple keys", NotExecuted, Failure, false);
        ends("ERR max number of clients reached", NotExecuted, Failure, false);
        ends("NOAUTH Authentication required.", BlockedServer, Failure, false);
        ends("WRONGPASS invalid", BlockedServer, Failure, false);
        ends("READONLY You can't write", BlockedServer, Failure, false);
        ends("MISCONF Redis is configured", BlockedServer, Failure, false);
        ends("NOREPLICAS Not enough", BlockedServer, Failure, false);
        ends("MOVED 1 127.0.0.1:1", BlockedServer, Failure, false);
        ends("NOPERM this user", BlockedObject, Success, false);
        ends("OOM command not allowed", BlockedObject, Success, false);
        ends("WRONGTYPE Operation", Rejected, Success, false);
        ends("ERR syntax error", Rejected, Success, false);
        ends("BUSYKEY Target key name already exists.", Rejected, Success, false);
        ends("Unknown index name", Rejected, Success, false);
        ends("NEWCODE something", Unknown, Success, true);
    }

    #[test]
    fn what_is_no_error_is_an_answer() {
        assert!(of(Bytes::from_static(b"+OK\r\n")).result.is_ok());
        let bulk = of(Bytes::from_static(b"!9\r\nWRONGTYPE\r\n")).result.unwrap_err();
        assert_eq!(bulk.code, "WRONGTYPE");
    }
}
