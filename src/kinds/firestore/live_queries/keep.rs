//! A stream's task: connects, reads, and connects again.

use fusebox_actors::connector::Gate;
use futures_util::StreamExt;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tonic::{Code, Status};

use super::{
    board::Board,
    events::Cause,
    news::News,
    pace::Pace,
    round::{BYTES_MAX, Round, Step},
    upstream::Upstream,
};

const SHUT: &str = "the breaker is open, or the backend is offline";
const SILENT: &str = "the server does not answer";

/// How a connection ended.
#[derive(Debug)]
enum End {
    /// It broke, or never came about, for this reason. The server may ask to be left alone.
    Broken { why: String, exhausted: bool },
    /// It has to begin from the beginning.
    Anew,
    /// The server will never answer this query.
    Refused(Cause),
}

/// Keeps `board` in step with the server. Returns why the server refuses the query for good; otherwise it
/// goes on until it is dropped, which leaves nothing behind.
pub(super) async fn keep<U: Upstream>(
    upstream: &U,
    query: &U::Query,
    gate: &Gate,
    board: &Board,
    pace: &Pace,
) -> Cause {
    let mut failures = 0_u32;
    loop {
        while !gate() {
            board.broken(SHUT);
            board.shed(pace.kept);
            sleep(pace.gate_shut).await;
        }
        let mut current_since = None;
        let resumed = !board.resume().token.is_empty();
        let end = connection(upstream, query, gate, board, pace, &mut current_since).await;
        tracing::debug!(?end, resumed, "a live query's connection has ended");
        let mut exhausted = false;
        match end {
            // Perhaps it is the token that the server refuses.
            End::Refused(cause) if resumed && current_since.is_none() => {
                board.forget_token();
                board.broken(&format!("{}: {}", cause.code, cause.message));
            }
            End::Refused(cause) => return cause,
            // Reported only if listening from the beginning has not helped.
            End::Anew if resumed || current_since.is_some() => board.forget_token(),
            End::Anew => board.broken(
                "the server's count of documents does not match the documents that it sent",
            ),
            End::Broken { why, exhausted: asked } => {
                exhausted = asked;
                board.broken(&why);
            }
        }
        board.shed(pace.kept);
        if current_since.is_some_and(|since: Instant| since.elapsed() >= pace.backoff_max) {
            failures = 0;
        }
        sleep(if exhausted { pace.backoff_max } else { pace.backoff(failures) }).await;
        failures = failures.saturating_add(1);
    }
}

/// One connection, from its Listen to its end.
async fn connection<U: Upstream>(
    upstream: &U,
    query: &U::Query,
    gate: &Gate,
    board: &Board,
    pace: &Pace,
    current_since: &mut Option<Instant>,
) -> End {
    let resume = board.resume();
    let mut round = Round::new(!resume.token.is_empty());
    let mut responses = match timeout(pace.silence, upstream.listen(query, resume)).await {
        Ok(Ok(responses)) => responses,
        Ok(Err(status)) => return ended::<U>(query, &status),
        Err(_) => return broken(SILENT),
    };
    let mut looks = interval(pace.gate_open);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut patience = Instant::now() + pace.silence;
    loop {
        let response = tokio::select! {
            response = responses.next() => response,
            _ = looks.tick() => {
                if gate() {
                    continue;
                }
                return broken(SHUT);
            }
            () = sleep_until(patience), if !round.is_current() => return broken(SILENT),
        };
        patience = Instant::now() + pace.silence;
        let news = match response {
            Some(Ok(response)) => News::of(response, upstream),
            Some(Err(status)) => return ended::<U>(query, &status),
            None => return broken("the server has ended the stream"),
        };
        match board.hear(&mut round, news, upstream) {
            Step::Wait => {}
            Step::Consistent(_) => {
                current_since.get_or_insert_with(Instant::now);
            }
            Step::Mismatch => return End::Anew,
            Step::Removed(Some(cause)) => return ended::<U>(query, &cause),
            Step::Removed(None) => return broken("the server has ended the target"),
            Step::TooLarge => {
                let most = bytesize::ByteSize(BYTES_MAX as u64);
                let message = format!("the result of a live query must not exceed {most}");
                return End::Refused(Cause { code: "result_too_large", message });
            }
        }
    }
}

fn broken(why: &str) -> End {
    End::Broken { why: why.to_owned(), exhausted: false }
}

/// What a status makes of a connection. What blames the query ends the stream; the rest passes.
fn ended<U: Upstream>(query: &U::Query, status: &Status) -> End {
    let code = match status.code() {
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::NotFound => "NOT_FOUND",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Unauthenticated if U::forwarded(query) => "UNAUTHENTICATED",
        code => {
            let why = format!("{code:?}: {}", status.message());
            return End::Broken { why, exhausted: code == Code::ResourceExhausted };
        }
    };
    End::Refused(Cause { code, message: status.message().to_owned() })
}
