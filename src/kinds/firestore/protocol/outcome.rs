//! What a status says: of Firestore, and of what may be done next.
//!
//! | status | class | verdict |
//! | --- | --- | --- |
//! | `INVALID_ARGUMENT`, `ALREADY_EXISTS`, `FAILED_PRECONDITION`, `NOT_FOUND`, `OUT_OF_RANGE`, `UNIMPLEMENTED`, `DATA_LOSS` | rejected | success |
//! | `NOT_FOUND` of the database itself | blocked: server | failure |
//! | `UNIMPLEMENTED` of [what every Firestore knows](Failed::of_known) | blocked: server | failure |
//! | `PERMISSION_DENIED` | blocked: object | success |
//! | `UNAUTHENTICATED` | blocked: server | failure |
//! | the same, of a caller's own credentials | rejected | success |
//! | the message is too large for the server or for what is in between (`too_large`) | rejected | success |
//! | `RESOURCE_EXHAUSTED` | not executed, with a time to wait | failure |
//! | `ABORTED` | not executed; in a transaction rejected: all of it must be done again | success |
//! | `UNAVAILABLE` without a connection | not executed | failure |
//! | the same for TLS's sake (`tls`) | blocked: server | failure |
//! | the same because another write's connection was reset (`reset`) | unknown | neutral |
//! | `UNAVAILABLE`, `DEADLINE_EXCEEDED`, `CANCELLED`, `INTERNAL`, a broken stream | unknown | failure |
//! | any other | unknown, `unclassified` | success |
//!
//! A document that is not there is an answer, and never comes here.
//!
//! **What a message quotes decides nothing.** It may quote a name or a value that a caller has chosen. So a message is
//! recognised by its beginning alone, which is the server's own, and never by words that come later in it.

use std::{error::Error, time::Duration};

use bytes::Bytes;
use fusebox_actors::connector::{AttemptError, Attempted, ErrorCode, OwnCode};
use fusebox_state::{
    ErrorClass, Verdict, Words,
    dependencies::{Fault, Shared},
};
use googleapis_tonic_google_firestore_v1::google::rpc;
use prost::Message;
use tonic::{Code, Status};

use super::names::Root;

/// How long an exhausted server is left alone if it does not say.
const EXHAUSTED_PAUSE: Duration = Duration::from_secs(1);

/// How an attempt failed.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    /// What it says of the backend.
    pub(crate) verdict: Verdict,
    /// What happened.
    pub(crate) error: AttemptError,
    /// What the server, or what carries it, called it, if it said so.
    pub(crate) status: Option<Code>,
    /// Whether the message was too large.
    pub(crate) too_large: Option<TooLarge>,
}

/// A message was too large to be taken at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLarge {
    /// The largest that would be taken, in bytes, if the server said so.
    pub(crate) limit: Option<usize>,
}

impl Failed {
    /// Something of fusebox's own, without words from the server.
    pub(crate) fn own(
        verdict: Verdict,
        class: ErrorClass,
        code: impl Into<ErrorCode>,
        message: impl Into<Words>,
    ) -> Self {
        let error = AttemptError::own(class, code, message);
        Self { verdict, error, status: None, too_large: None }
    }

    /// The same of a request that every Firestore knows: a server that does not implement it is none.
    pub(crate) fn of_known(self) -> Self {
        if self.status != Some(Code::Unimplemented) {
            return self;
        }
        let said = "the server does not implement what every Firestore knows";
        let message = Words::quoting(said, self.error.message.whole());
        let error = AttemptError { class: ErrorClass::BlockedServer, message, ..self.error };
        Self { verdict: Verdict::Failure, error, ..self }
    }

    /// The same as a port's answer.
    pub(crate) fn ended(self) -> Attempted {
        Attempted::failed(self.verdict, self.error)
    }
}

/// The source of a status: the server, or what kept its answer away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The server sent it.
    Server,
    /// TLS has this against the server, so there is no connection.
    Tls(String),
    /// Nothing of the request was acted upon; what that says about the origin of the fault.
    NotSent(Fault),
    /// The connection was closed because another write on it was not answered in time.
    Reset(String),
    /// The connection broke.
    Connection,
}

/// On whose behalf a request was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Behalf {
    /// With the caller's own credentials.
    pub(crate) caller: bool,
    /// As part of a transaction.
    pub(crate) transaction: bool,
}

/// How an attempt that ended with `status` has failed.
pub(crate) fn of(status: &Status, cause: Cause, behalf: Behalf) -> Failed {
    of_backend(status, cause, behalf, None)
}

/// The same of an attempt that was sent to a backend whose database is `root`, if that is known. No call is to blame if
/// the server says that there is no such database.
pub(crate) fn of_backend(
    status: &Status,
    cause: Cause,
    behalf: Behalf,
    root: Option<&Root>,
) -> Failed {
    use ErrorClass::{BlockedObject, BlockedServer, NotExecuted, Rejected, Unknown};
    use Verdict::{Failure, Success};
    let code = status.code();
    match &cause {
        Cause::Tls(refused) => {
            let failed = Failed::own(Failure, BlockedServer, OwnCode::Tls, refused.clone());
            let error = failed.error.blaming(Fault::Here(Shared::Certificates));
            return Failed { error, ..failed };
        }
        Cause::Reset(why) => {
            return Failed::own(Verdict::Neutral, Unknown, OwnCode::Reset, why.clone());
        }
        Cause::Server | Cause::NotSent(_) | Cause::Connection => {}
    }
    if let too_large @ Some(_) = too_large(status) {
        let words = Words::quoting("the message is too large for the backend", message(status));
        let failed = Failed::own(Success, Rejected, OwnCode::TooLarge, words);
        return Failed { too_large, ..failed };
    }
    let (class, verdict) = match code {
        Code::NotFound if root.is_some_and(|root| is_missing(root, status)) => {
            (BlockedServer, Failure)
        }
        Code::InvalidArgument
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::NotFound
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss => (Rejected, Success),
        Code::PermissionDenied => (BlockedObject, Success),
        Code::Unauthenticated if behalf.caller => (Rejected, Success),
        Code::Unauthenticated => (BlockedServer, Failure),
        Code::ResourceExhausted => (NotExecuted, Failure),
        Code::Aborted if behalf.transaction => (Rejected, Success),
        Code::Aborted => (NotExecuted, Success),
        Code::Unavailable if matches!(cause, Cause::NotSent(_)) => (NotExecuted, Failure),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Internal => {
            (Unknown, Failure)
        }
        Code::Unknown if cause != Cause::Server => (Unknown, Failure),
        Code::Unknown | Code::Ok => (Unknown, Success),
    };
    let fault = match &cause {
        Cause::Server => Fault::Backend,
        Cause::NotSent(fault) => *fault,
        Cause::Tls(_) | Cause::Reset(_) | Cause::Connection => Fault::Unclear,
    };
    let exhausted = (code == Code::ResourceExhausted).then_some(EXHAUSTED_PAUSE);
    let error = AttemptError {
        class,
        doubt: (class == Unknown).then(Bytes::new),
        code: ErrorCode::OfKind(name(code)),
        message: match cause {
            Cause::Server => Words::quoting(class.said(), message(status)),
            // The words of what carries it, on this side of the server.
            _ => message(status).into(),
        },
        reply: None,
        unclassified: class == Unknown && verdict == Success,
        retry_after: retry_after(status).or(exhausted),
        fault,
    };
    Failed { verdict, error, status: Some(code), too_large: None }
}

/// Whether the message was too large.
/// Servers and proxies say so in words of their own: gRPC's C core, Java, Go, Node and Rust, Firestore, and HTTP.
fn too_large(status: &Status) -> Option<TooLarge> {
    /// What some of them say first.
    const SPEAKERS: [&str; 4] = ["grpc: ", "server: ", "client: ", "error, "];
    const BEGINNINGS: [&str; 16] = [
        "received message larger than max",
        "received message after decompression larger than max",
        "received message that decompresses to a size larger than",
        "trying to send message larger than max",
        "sent message larger than max",
        "attempted to send message with a size larger than",
        "grpc message exceeds maximum size",
        "compressed grpc message exceeds maximum size",
        "decompressed grpc message exceeds maximum size",
        "decoded message length too large",
        "encoded message length too large",
        "request payload size exceeds",
        "message length too large",
        "message too large",
        "grpc-status header missing, mapped from http status code 413",
        "http status code 413",
    ];
    let asked = matches!(
        status.code(),
        Code::ResourceExhausted | Code::OutOfRange | Code::InvalidArgument | Code::Unknown
    );
    let text = status.message().to_ascii_lowercase();
    let said = SPEAKERS.iter().find_map(|speaker| text.strip_prefix(speaker)).unwrap_or(&text);
    if !asked || !BEGINNINGS.iter().any(|beginning| said.starts_with(beginning)) {
        return None;
    }
    // Of what was sent and what is allowed the latter is less.
    let numbers = said.split(|c: char| !c.is_ascii_digit()).filter_map(|it| it.parse().ok());
    Some(TooLarge { limit: numbers.filter(|number| *number >= 1_024).min() })
}

/// Whether the server says that the database of `root`, or its project, does not exist. A call may also name another
/// one, and nearly every database has the same name: so of a database the server must say in which project it is
/// missing. A name that a caller has chosen may contain the server's own words, so it reaches to the last of them.
fn is_missing(root: &Root, status: &Status) -> bool {
    let mut names = root.database.split('/').skip(1).step_by(2);
    let (Some(project), Some(database)) = (names.next(), names.next()) else { return false };
    let Some((missing, rest)) = status.message().rsplit_once(" does not exist") else {
        return false;
    };
    match missing.strip_prefix("The ").and_then(|missing| missing.split_once(' ')) {
        Some(("project", name)) => name == project,
        Some(("database", name)) => {
            let of = rest.strip_prefix(" for project ").and_then(|rest| rest.split(' ').next());
            name == database && of.is_some_and(|of| of.trim_end_matches('.') == project)
        }
        _ => false,
    }
}

/// The server's own words; of a failure on the way, its deepest cause.
fn message(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

/// How long the server asks to be left alone, if it says so.
fn retry_after(status: &Status) -> Option<Duration> {
    let details = rpc::Status::decode(status.details()).ok()?.details;
    let info = details.iter().find(|detail| detail.type_url.ends_with("google.rpc.RetryInfo"))?;
    let delay = rpc::RetryInfo::decode(info.value.as_slice()).ok()?.retry_delay?;
    Duration::try_from(delay).ok()
}

/// How an attempt fails that the server answers with the status `word`; `None` for what is not an error's.
pub(crate) fn injected(word: &str) -> Option<Failed> {
    let code = (1..=16).map(Code::from_i32).find(|code| name(*code) == word)?;
    let status = Status::new(code, "chaos: a fault on purpose, nothing was sent");
    Some(of(&status, Cause::Server, Behalf::default()))
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_its_class() {
        use ErrorClass::{BlockedObject, BlockedServer, NotExecuted, Rejected, Unknown};
        use Verdict::{Failure, Success};
        for (code, class, verdict) in [
            (Code::InvalidArgument, Rejected, Success),
            (Code::AlreadyExists, Rejected, Success),
            (Code::FailedPrecondition, Rejected, Success),
            (Code::NotFound, Rejected, Success),
            (Code::OutOfRange, Rejected, Success),
            (Code::Unimplemented, Rejected, Success),
            (Code::DataLoss, Rejected, Success),
            (Code::PermissionDenied, BlockedObject, Success),
            (Code::Unauthenticated, BlockedServer, Failure),
            (Code::ResourceExhausted, NotExecuted, Failure),
            (Code::Aborted, NotExecuted, Success),
            (Code::Unavailable, Unknown, Failure),
            (Code::DeadlineExceeded, Unknown, Failure),
            (Code::Cancelled, Unknown, Failure),
            (Code::Internal, Unknown, Failure),
            (Code::Unknown, Unknown, Success),
        ] {
            let failed = of(&Status::new(code, "why"), Cause::Server, Behalf::default());
            assert_eq!((failed.error.class, failed.verdict), (class, verdict), "{code:?}");
            assert_eq!(failed.error.unclassified, code == Code::Unknown);
        }
    }

    #[test]
    fn a_server_that_does_not_know_what_every_firestore_knows_is_none() {
        let of = |status: Status| of(&status, Cause::Server, Behalf::default()).of_known();
        let failed = of(Status::unimplemented("unknown service"));
        assert_eq!(
            (failed.error.class, failed.verdict, failed.error.doubt),
            (ErrorClass::BlockedServer, Verdict::Failure, None)
        );
        assert!(failed.error.message.whole().contains("unknown service"));
        let refused = of(Status::invalid_argument("why"));
        assert_eq!(
            (refused.error.class, refused.verdict),
            (ErrorClass::Rejected, Verdict::Success)
        );
    }

    #[test]
    fn a_message_that_is_too_large_is_no_overload() {
        for (code, text, limit) in [
            (
                Code::ResourceExhausted,
                "Received message larger than max (4718643 vs 4194304)",
                4_194_304,
            ),
            (
                Code::ResourceExhausted,
                "grpc: received message larger than max (4718643 vs. 4194304)",
                4_194_304,
            ),
            (
                Code::ResourceExhausted,
                "gRPC message exceeds maximum size 4194304: 4718643",
                4_194_304,
            ),
            (
                Code::OutOfRange,
                "Error, decoded message length too large: found 9 bytes, the limit is: 4194304 bytes",
                4_194_304,
            ),
            (
                Code::OutOfRange,
                "Error, message length too large: found 9 bytes, the limit is: 4194304 bytes",
                4_194_304,
            ),
            (
                Code::InvalidArgument,
                "Request payload size exceeds the limit: 11534336 bytes.",
                11_534_336,
            ),
            (Code::Unknown, "grpc-status header missing, mapped from HTTP status code 413", 0),
        ] {
            let failed = of(&Status::new(code, text), Cause::Server, Behalf::default());
            let limit = (limit > 0).then_some(limit);
            assert_eq!(failed.too_large, Some(TooLarge { limit }), "{text}");
            assert_eq!(
                (failed.error.class, failed.verdict, failed.error.retry_after),
                (ErrorClass::Rejected, Verdict::Success, None)
            );
            assert_eq!((failed.error.code.as_str(), failed.error.doubt), ("too_large", None));
        }
        let document = "Document cannot be written because its size (1,048,700 bytes) exceeds the \
                        maximum allowed size of 1,048,576 bytes.";
        assert_eq!(
            of(&Status::invalid_argument(document), Cause::Server, Behalf::default()).too_large,
            None
        );
        assert_eq!(
            of(&Status::resource_exhausted("Quota exceeded."), Cause::Server, Behalf::default())
                .too_large,
            None
        );
    }

    #[test]
    fn whose_fault_it_is_depends_on_whose_call_it_was() {
        let caller = Behalf { caller: true, transaction: false };
        let denied = of(&Status::unauthenticated("expired"), Cause::Server, caller);
        assert_eq!((denied.error.class, denied.verdict), (ErrorClass::Rejected, Verdict::Success));
        let inside = Behalf { caller: false, transaction: true };
        assert_eq!(
            of(&Status::aborted("contention"), Cause::Server, inside).error.class,
            ErrorClass::Rejected
        );
    }

    #[test]
    fn what_a_message_quotes_of_a_call_decides_nothing() {
        use ErrorClass::{BlockedServer, Rejected};
        let root = Root::new("p", "(default)");
        let of =
            |status: Status| of_backend(&status, Cause::Server, Behalf::default(), Some(&root));
        for (text, class, verdict) in [
            (
                "No document to update: projects/p/databases/(default)/documents/errors/file does not exist",
                Rejected,
                Verdict::Success,
            ),
            (
                "Document \"projects/p/databases/(default)/documents/u/The database (default) does not exist\" not \
                 found.",
                Rejected,
                Verdict::Success,
            ),
            ("The database other does not exist for project p", Rejected, Verdict::Success),
            (
                "The project q does not exist or it does not contain an active",
                Rejected,
                Verdict::Success,
            ),
            (
                "The database (default) does not exist for project p Please visit https://console",
                BlockedServer,
                Verdict::Failure,
            ),
            (
                "The database (default) does not exist for project p.",
                BlockedServer,
                Verdict::Failure,
            ),
            // Of another project than the backend's.
            (
                "The database (default) does not exist for project q Please visit https://console",
                Rejected,
                Verdict::Success,
            ),
            (
                "The database (default) does not exist for project p2 Please visit https://console",
                Rejected,
                Verdict::Success,
            ),
            (
                "The database (default) does not exist for project p.example:q Please visit https://console",
                Rejected,
                Verdict::Success,
            ),
            (
                "The database (default) does not exist for project p does not exist for project q",
                Rejected,
                Verdict::Success,
            ),
            ("The database (default) does not exist", Rejected, Verdict::Success),
            (
                "The project p does not exist or it does not contain an active Cloud Datastore or Cloud Firestore \
                 database.",
                BlockedServer,
                Verdict::Failure,
            ),
        ] {
            let failed = of(Status::not_found(text));
            assert_eq!((failed.error.class, failed.verdict), (class, verdict), "{text}");
        }
        for text in [
            "Document name \"projects/p/databases/(default)/documents/u/message too large 2000\" is invalid",
            "Property `Received message larger than max (9 vs. 2000)` is invalid",
        ] {
            assert_eq!(of(Status::invalid_argument(text)).too_large, None, "{text}");
        }
    }

    #[test]
    fn a_server_that_asks_for_time_is_heard() {
        let delay = prost_types::Duration { seconds: 7, nanos: 500_000_000 };
        let info = rpc::RetryInfo { retry_delay: Some(delay) };
        let details = vec![prost_types::Any {
            type_url: "type.googleapis.com/google.rpc.RetryInfo".into(),
            value: info.encode_to_vec(),
        }];
        let details = rpc::Status { code: 8, message: String::new(), details }.encode_to_vec();
        let status = Status::with_details(Code::ResourceExhausted, "quota", details.into());
        let asked = of(&status, Cause::Server, Behalf::default()).error.retry_after;
        assert_eq!(asked, Some(Duration::from_millis(7_500)));
        let silent = of(&Status::resource_exhausted("quota"), Cause::Server, Behalf::default());
        assert_eq!(silent.error.retry_after, Some(EXHAUSTED_PAUSE));
    }
}
