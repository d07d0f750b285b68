//! What a reply says: of the backend, of what may be done next, and of whether anything was written.
//!
//! | replies | class | verdict | may have written |
//! | --- | --- | --- | --- |
//! | no error | | success | |
//! | LOADING, BUSY, TRYAGAIN, MASTERDOWN, CLUSTERDOWN, "max number of clients" | not executed | failure | no |
//! | NOAUTH, WRONGPASS, DENIED, READONLY, MISCONF, NOREPLICAS, MOVED, ASK | blocked: server | failure | no |
//! | NOPERM, "The user executing the script can't", OOM | blocked: object | success | no |
//! | ERR, WRONGTYPE, CROSSSLOT, EXECABORT, NOSCRIPT …, and errors without a code | rejected | success | no |
//! | IOERR (of MIGRATE), INVALIDOBJ | rejected | success | yes |
//! | any other code | unknown, `unclassified` | success | yes |
//!
//! The table holds for commands that the server itself has: they check everything before they write
//! ([`Carrier::Command`]). It does not hold for a script, a function, MIGRATE or a module's command, whose
//! error may come in the middle of its writes, and a script may answer with any code at all. Of theirs, only
//! the words of the server's own refusals, given before such a call runs, prove that nothing was written;
//! every other error may follow a write, and a script's is *rejected*, whatever its code.

use bytes::Bytes;
use fusebox_actors::connector::{AttemptError, Attempted, ErrorCode};
use fusebox_state::{ErrorClass, Verdict, Words, dependencies::Fault};

use super::{commands::Spec, resp, server_code::ServerCode};

/// What ran, and so what its errors prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// A command of the server's own.
    Command,
    /// A module's command, or MIGRATE.
    Module,
    /// A caller's script or function.
    Script,
    /// Fusebox's own script, which catches every error of what it runs.
    Own,
}

impl Carrier {
    /// What carries `spec`'s calls.
    pub(crate) fn of(spec: &Spec) -> Self {
        match &*spec.name {
            "eval" | "evalsha" | "fcall" | "eval_ro" | "evalsha_ro" | "fcall_ro" => Self::Script,
            "migrate" => Self::Module,
            name if super::commands::is_built_in(name) => Self::Command,
            _ => Self::Module,
        }
    }
}

/// How an attempt that `reply` answered has ended, if a command of the server's own was sent.
pub(crate) fn of(reply: Bytes) -> Attempted {
    by(Carrier::Command, reply)
}

/// How an attempt of what `carrier` says has ended, which `reply` answered.
pub(crate) fn by(carrier: Carrier, reply: Bytes) -> Attempted {
    if !matches!(reply.first(), Some(b'-' | b'!')) {
        return Attempted::answered(reply);
    }
    let Some((code, message)) = resp::error_of(&reply) else {
        return Attempted::answered(reply);
    };
    let known = ServerCode::of(code);
    let (mut class, mut verdict) = class(known, message);
    let mut wrote =
        class.is_none() || matches!(known, Some(ServerCode::IoErr | ServerCode::InvalidObj));
    match carrier {
        Carrier::Command => {}
        Carrier::Own => wrote = message.contains("user_script"),
        Carrier::Module => wrote = !is_servers_own(message),
        Carrier::Script => {
            wrote = !is_servers_own(message);
            if wrote && class != Some(ErrorClass::BlockedObject) {
                (class, verdict) = (Some(ErrorClass::Rejected), Verdict::Success);
            }
        }
    }
    let class_told = class.unwrap_or(ErrorClass::Unknown);
    let message = match known {
        Some(ServerCode::Moved | ServerCode::Ask) => {
            Words::quoting(CLUSTER, format!("{CLUSTER} ({message})"))
        }
        _ => Words::quoting(class_told.said(), message),
    };
    let error = AttemptError {
        class: class_told,
        doubt: wrote.then(Bytes::new),
        code: known.map_or_else(
            || ErrorCode::Server(code.into()),
            |known| ErrorCode::OfKind(known.as_str()),
        ),
        message,
        reply: Some(reply.clone()),
        unclassified: class.is_none(),
        retry_after: None,
        fault: Fault::Backend,
    };
    Attempted::failed(verdict, error)
}

/// Said of a server that is part of a cluster.
pub(crate) const CLUSTER: &str =
    "the server is part of a Redis Cluster, which is not supported: name a single server";

/// Whether `message` is in the words with which a server refuses a call before it runs.
fn is_servers_own(message: &str) -> bool {
    const BEGINNINGS: [&str; 14] = [
        "MASTERDOWN Link with MASTER is down",
        "NOAUTH Authentication required",
        "NOSCRIPT No matching script",
        "OOM command not allowed when used memory",
        "MISCONF Redis is configured to save",
        "MISCONF Valkey is configured to save",
        "MISCONF Errors writing to the AOF file",
        "READONLY You can't write against a read only replica",
        "NOREPLICAS Not enough good replicas to write",
        "ERR max number of clients",
        "ERR unknown command",
        "ERR Function not found",
        "ERR Number of keys can't be",
        "CLUSTERDOWN ",
    ];
    let of_the_call = |call: &str| message.contains(&format!("to run the '{call}' command"));
    BEGINNINGS.iter().any(|beginning| message.starts_with(beginning))
        || (message.starts_with("LOADING ") && message.contains(" is loading the dataset"))
        || (message.starts_with("BUSY ") && message.contains(" is busy running a "))
        || (message.starts_with("NOPERM ")
            && ["eval", "evalsha", "fcall", "migrate"].into_iter().any(of_the_call))
}

/// The word with which the server's own error begins; `None` for an error of fusebox's own, and for a word that no
/// server says of itself.
pub(crate) fn server_code(error: &AttemptError) -> Option<ServerCode> {
    match error.code {
        ErrorCode::OfKind(word) => ServerCode::of(word),
        ErrorCode::Own(_) | ErrorCode::Server(_) => None,
    }
}

/// Whether the server, or the account, is not what the connection was made for: another one may be.
pub(crate) fn wants_another_connection(error: &AttemptError) -> bool {
    matches!(server_code(error), Some(ServerCode::ReadOnly | ServerCode::NoAuth))
}

/// Whether the account may not do what it was to do.
pub(crate) fn is_forbidden(error: &AttemptError) -> bool {
    forbids(server_code(error), error.message.whole())
}

/// What runs within a script is refused in words of its own, by older servers without the code.
fn forbids(code: Option<ServerCode>, message: &str) -> bool {
    code == Some(ServerCode::NoPerm) || message.contains("The user executing the script can't")
}

fn class(code: Option<ServerCode>, message: &str) -> (Option<ErrorClass>, Verdict) {
    use ServerCode as Is;
    let Some(code) = code else { return (None, Verdict::Success) };
    let (class, verdict) = match code {
        Is::Loading | Is::Busy | Is::TryAgain | Is::MasterDown | Is::ClusterDown => {
            (ErrorClass::NotExecuted, Verdict::Failure)
        }
        Is::Err if message.contains("max number of clients") => {
            (ErrorClass::NotExecuted, Verdict::Failure)
        }
        Is::NoAuth
        | Is::WrongPass
        | Is::Denied
        | Is::ReadOnly
        | Is::MisConf
        | Is::NoReplicas
        | Is::Moved
        | Is::Ask => (ErrorClass::BlockedServer, Verdict::Failure),
        Is::NoPerm | Is::Oom => (ErrorClass::BlockedObject, Verdict::Success),
        Is::Err if forbids(Some(code), message) => (ErrorClass::BlockedObject, Verdict::Success),
        Is::Err
        | Is::WrongType
        | Is::CrossSlot
        | Is::ExecAbort
        | Is::NoScript
        | Is::NotBusy
        | Is::Unkillable
        | Is::BusyKey
        | Is::BusyGroup
        | Is::NoGroup
        | Is::NoProto
        | Is::NoAddr
        | Is::Unblocked
        | Is::IoErr
        | Is::InvalidObj
        | Is::Stale
        | Is::NotReady => (ErrorClass::Rejected, Verdict::Success),
        Is::InProg | Is::NoGoodSlave | Is::NoMasterLink | Is::Unstable => {
            return (None, Verdict::Success);
        }
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
        assert_eq!(error.doubt.is_some(), unclassified, "{reply}");
        assert!(error.reply.is_some() && error.message.whole().contains(reply));
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
        ends("ERR The user executing the script can't run this", BlockedObject, Success, false);
        ends("WRONGTYPE Operation", Rejected, Success, false);
        ends("ERR syntax error", Rejected, Success, false);
        ends("BUSYKEY Target key name already exists.", Rejected, Success, false);
        ends("Unknown index name", Rejected, Success, false);
        ends("NEWCODE something", Unknown, Success, true);
    }

    #[test]
    fn an_error_in_the_middle_of_a_scripts_writes_leaves_doubt() {
        use ErrorClass::{BlockedObject, BlockedServer, NotExecuted, Rejected, Unknown};
        let end = |carrier, reply: &str| {
            let error = by(carrier, Bytes::from(format!("-{reply}\r\n"))).result.unwrap_err();
            (error.class, error.doubt.is_some())
        };
        for (reply, class) in [
            ("LOADING Redis is loading the dataset in memory", NotExecuted),
            ("BUSY Redis is busy running a script. You can only call SCRIPT KILL", NotExecuted),
            ("NOSCRIPT No matching script. Please use EVAL.", Rejected),
            ("OOM command not allowed when used memory > 'maxmemory'.", BlockedObject),
            ("NOPERM this user has no permissions to run the 'eval' command", BlockedObject),
            ("READONLY You can't write against a read only replica.", BlockedServer),
        ] {
            assert_eq!(end(Carrier::Script, reply), (class, false), "{reply}");
            assert_eq!(end(Carrier::Module, reply), (class, false), "{reply}");
        }
        for (reply, class) in [
            ("BUSY come again later", Rejected),
            ("READONLY as my script says", Rejected),
            ("ERR Error running script", Rejected),
            ("WRONGTYPE Operation against a key script: f00, on @user_script:1.", Rejected),
            ("MYCODE", Rejected),
            ("NOPERM this user has no permissions to run the 'get' command", BlockedObject),
        ] {
            assert_eq!(end(Carrier::Script, reply), (class, true), "{reply}");
        }
        assert_eq!(end(Carrier::Module, "ERR half of it"), (Rejected, true));
        assert_eq!(end(Carrier::Module, "MYCODE x"), (Unknown, true));
        assert_eq!(end(Carrier::Command, "IOERR error or timeout"), (Rejected, true));
        assert_eq!(
            end(Carrier::Own, "NOPERM this user has no permissions"),
            (BlockedObject, false)
        );
        assert_eq!(end(Carrier::Own, "ERR user_script:3: x"), (Rejected, true));
    }

    #[test]
    fn what_is_no_error_is_an_answer() {
        assert!(of(Bytes::from_static(b"+OK\r\n")).result.is_ok());
        let bulk = of(Bytes::from_static(b"!9\r\nWRONGTYPE\r\n")).result.unwrap_err();
        assert_eq!(bulk.code.as_str(), "WRONGTYPE");
    }
}
