//! What the server's own log says of a write: the query ids of all its sendings contain its token.
//!
//! | found of any sending | means |
//! | --- | --- |
//! | `QueryFinish`, and no block was taken for a repetition | it was applied |
//! | of every sending an exception before a block was handed on | it was not executed |
//! | nothing, not of every sending, or blocks that were taken for repetitions ([`arrived`]) | not known |
//!
//! The log is written some seconds late, so it is asked to hurry (`SYSTEM FLUSH LOGS`), which may be refused. That
//! every sending is accounted for only the connector knows that sent them: after a restart of the daemon, no exception
//! is a proof.
//!
//! [`arrived`]: super::arrived

use std::time::Duration;

use fusebox_state::{OpId, UnixMillis};
use tokio::time::Instant;

use super::reach::quoted;
use crate::kinds::clickhouse::transport::http::{Failed, Http};

/// How far the clocks of daemon and server may be apart.
const APART: u64 = 3_600;

/// What the log says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Logged {
    /// It was applied.
    Applied,
    /// It was not executed.
    NotExecuted,
    /// Nothing that proves either.
    NotKnown,
}

/// Whether the log can be read.
pub(super) async fn readable(http: &Http, time: Duration) -> bool {
    let question =
        "SELECT count() FROM (SELECT 1 FROM system.query_log WHERE type = 'QueryFinish' LIMIT 1)";
    http.ask(question.to_owned(), time).await.is_ok()
}

/// What the log says of the write with `token` and was first sent at `since`. `sent` are all its sendings,
/// if they are known and the server's count of rows is to be believed; `tokens`
/// whether it recognises repetitions by them.
///
/// # Errors
/// The server did not answer.
pub(super) async fn ask(
    http: &Http,
    prefix: &str,
    token: OpId,
    since: UnixMillis,
    (sent, tokens): (Option<&[String]>, bool),
    until: Instant,
) -> Result<Logged, Failed> {
    let left = || until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let question = question(prefix, token, since, tokens);
    for hurried in [false, true] {
        if hurried {
            // Refused, or unknown to it: then it says what it says.
            drop(http.ask("SYSTEM FLUSH LOGS".to_owned(), left()).await);
        }
        let logged = read(&http.ask(question.clone(), left()).await?, sent);
        if logged != Logged::NotKnown {
            return Ok(logged);
        }
    }
    Ok(Logged::NotKnown)
}

fn question(prefix: &str, token: OpId, since: UnixMillis, tokens: bool) -> String {
    let swallowed =
        if tokens { "toString(ProfileEvents['DuplicatedInsertedBlocks'])" } else { "'0'" };
    let from = (since.get() / 1_000).saturating_sub(APART);
    format!(
        "SELECT query_id, type, toString(written_rows), {swallowed} FROM system.query_log \
         WHERE event_date >= toDate(toDateTime({from})) AND event_time >= toDateTime({from}) \
         AND startsWith(query_id, {}) AND position(query_id, ':{token}:') > 0 AND type != 'QueryStart' \
         FORMAT TabSeparated",
        quoted(prefix)
    )
}

fn read(rows: &str, sent: Option<&[String]>) -> Logged {
    let mut nothing = Vec::new();
    for row in rows.lines() {
        let mut fields = row.split('\t');
        let (Some(id), Some(end)) = (fields.next(), fields.next()) else { continue };
        match (end, fields.next()) {
            ("QueryFinish", _) if fields.next() == Some("0") => return Logged::Applied,
            ("ExceptionBeforeStart", _) | ("ExceptionWhileProcessing", Some("0")) => {
                nothing.push(id);
            }
            _ => {}
        }
    }
    match sent {
        Some(sent) if !sent.is_empty() && sent.iter().all(|id| nothing.contains(&id.as_str())) => {
            Logged::NotExecuted
        }
        _ => Logged::NotKnown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_proof_and_an_exception_only_of_every_sending() {
        let sent = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        let read = |rows: &str, ids: &[&str]| read(rows, Some(&sent(ids)));
        assert_eq!(read("", &["a"]), Logged::NotKnown);
        assert_eq!(read("a\tQueryFinish\t1\t0\n", &[]), Logged::Applied);
        assert_eq!(
            read("a\tExceptionBeforeStart\t0\nb\tQueryFinish\t1\t0\n", &["a"]),
            Logged::Applied
        );
        assert_eq!(
            read("a\tQueryFinish\t1\t1\n", &["a"]),
            Logged::NotKnown,
            "taken for a repetition"
        );
        assert_eq!(read("a\tExceptionWhileProcessing\t0\n", &["a"]), Logged::NotExecuted);
        assert_eq!(read("a\tExceptionWhileProcessing\t100\n", &["a"]), Logged::NotKnown);
        assert_eq!(read("a\tExceptionWhileProcessing\t0\n", &["a", "b"]), Logged::NotKnown);
        assert_eq!(super::read("a\tExceptionBeforeStart\t0\n", None), Logged::NotKnown);
    }
}
