//! What an attempt meets that a [fault on purpose](crate::chaos) strikes.

use std::time::Duration;

use bytes::Bytes;
use fusebox_state::{
    ErrorClass, Verdict,
    chaos::{Hit, Kind},
};
use tokio::time::{Instant, sleep};

use crate::{
    chaos::{Acting, Delayed},
    connector::{Attempt, Attempted, Connector, SharedConnector},
    error_code::OwnCode,
    passage::{Fate, Passage},
    pieces::{Answer, Tail},
    refusal::AttemptError,
};

/// How an attempt ends that is not sent.
pub(crate) type Unsent = (Verdict, AttemptError);

/// Attempts that were sent together.
#[derive(Clone, Copy)]
pub(crate) struct Sent<'a> {
    passage: Option<&'a Passage>,
    /// When their time is over.
    until: Instant,
}

impl Sent<'_> {
    /// What becomes of their answer, as far as their connector has not seen to it.
    fn fate(&self) -> Fate {
        self.passage.map_or(Fate::Told, Passage::fate)
    }
}

impl Acting {
    /// The word of what is felt most.
    pub(crate) fn word(&self) -> &'static str {
        let felt = self.struck.end.or(self.struck.before).or(self.struck.after);
        felt.map_or("none", |hit| hit.kind.as_str())
    }

    /// Carries an attempt that a caller waits for.
    pub(crate) async fn carry(
        self,
        connector: &SharedConnector,
        mut attempt: Attempt<'_>,
    ) -> Attempted {
        let sent = match self.begin(connector, &mut attempt).await {
            Ok(sent) => sent,
            Err((verdict, error)) => return Attempted::failed(verdict, error),
        };
        let ended = connector.attempt(attempt).await;
        self.thrown_away(sent, ended.result.is_ok()).await;
        self.end(sent, ended)
    }

    /// Carries a ping.
    pub(crate) async fn ping(self, connector: &SharedConnector, timeout: Duration) -> Attempted {
        match self.before(&**connector, &Bytes::new(), timeout).await {
            Err((verdict, error)) => Attempted::failed(verdict, error),
            Ok(left) if self.fate() == Fate::Told => connector.ping(left).await,
            Ok(left) => {
                sleep(left).await;
                Attempted::failed(Verdict::Failure, late())
            }
        }
    }

    /// What is met before attempts are sent together, of which `first` is the first; or how they end unsent. Its time is
    /// that of all.
    pub(crate) async fn begin<'a>(
        &self,
        connector: &SharedConnector,
        first: &mut Attempt<'a>,
    ) -> Result<Sent<'a>, Unsent> {
        let left = self.before(&**connector, first.body, first.timeout).await?;
        first.left = first.left.saturating_sub(first.timeout.saturating_sub(left));
        first.timeout = left;
        let passage = first.passage.map(|passage| &**passage);
        if let Some(passage) = passage {
            passage.struck(self.fate(), !self.armed.faults.counts);
        }
        Ok(Sent { passage, until: Instant::now() + left })
    }

    /// Holds it up, and returns what is left of its time; or says how it ends unsent.
    async fn before(
        &self,
        connector: &dyn Connector,
        body: &Bytes,
        timeout: Duration,
    ) -> Result<Duration, Unsent> {
        let mut left = timeout;
        if let Some(Hit { time, .. }) = self.struck.before {
            sleep(time.min(timeout)).await;
            left = timeout.saturating_sub(time);
            if left.is_zero() {
                // Its time is its caller's own: the backend is not to blame for that.
                let what = "chaos: delayed until the timeout; nothing was sent";
                let error = AttemptError::own(ErrorClass::NotExecuted, OwnCode::Timeout, what);
                return Err((Verdict::Neutral, error));
            }
        }
        match self.refusal(connector, body) {
            Some((verdict, error)) => Err((self.verdict(verdict), error)),
            None => Ok(left),
        }
    }

    /// What is met once the answers have come, one of which `is_answered` at least.
    pub(crate) async fn thrown_away(&self, sent: Sent<'_>, is_answered: bool) {
        let wait = match self.struck.after {
            _ if sent.fate() == Fate::Late && is_answered => Duration::MAX,
            Some(Hit { time, .. }) => time,
            None => return,
        };
        sleep(wait.min(sent.until.saturating_duration_since(Instant::now()))).await;
    }

    /// How one of the attempts has ended.
    pub(crate) fn end(&self, sent: Sent<'_>, mut ended: Attempted) -> Attempted {
        // Its connector has not asked for it: the answer is thrown away here.
        match sent.fate() {
            fate @ (Fate::Lost | Fate::Late) if ended.result.is_ok() => {
                let error = if fate == Fate::Lost { lost() } else { late() };
                ended = Attempted::failed(Verdict::Failure, error);
            }
            Fate::Told | Fate::Lost | Fate::Late => {}
        }
        if let Some(Hit { time, .. }) = self.struck.after {
            let place = self.place.as_ref().and_then(|_| self.armed.place());
            let dripping =
                |rest| -> Box<dyn Tail> { Box::new(Dripping { rest, time, _place: place }) };
            ended.rest = ended.rest.map(dripping);
        }
        ended.verdict = self.verdict(ended.verdict);
        ended
    }

    fn verdict(&self, verdict: Verdict) -> Verdict {
        if self.armed.faults.counts { verdict } else { Verdict::Neutral }
    }

    fn fate(&self) -> Fate {
        match self.struck.end.map(|hit| hit.kind) {
            Some(Kind::ResetAfter) => Fate::Lost,
            Some(Kind::Timeout) => Fate::Late,
            _ => Fate::Told,
        }
    }

    /// How an attempt ends that is not sent.
    fn refusal(&self, connector: &dyn Connector, body: &Bytes) -> Option<Unsent> {
        let hit = self.struck.end?;
        let fault = self.armed.faults.as_slice().get(hit.index)?;
        match hit.kind {
            Kind::Error => {
                Some((Verdict::Failure, said(connector, fault.code.as_deref(), false, body)))
            }
            Kind::Reject => {
                Some((Verdict::Success, said(connector, fault.code.as_deref(), true, body)))
            }
            Kind::ResetBefore => {
                let what = "chaos: the connection broke before anything was sent";
                Some((Verdict::Failure, not_executed(what)))
            }
            Kind::StaleConnection => {
                connector.give_up_connections();
                let what = "chaos: the connection was already dead; nothing was sent";
                Some((Verdict::Failure, not_executed(what)))
            }
            Kind::Timeout | Kind::ResetAfter | Kind::Latency | Kind::SlowDrip => None,
        }
    }
}

fn not_executed(what: &'static str) -> AttemptError {
    AttemptError::own(ErrorClass::NotExecuted, OwnCode::Reset, what)
}

fn lost() -> AttemptError {
    AttemptError::own(ErrorClass::Unknown, OwnCode::Reset, Fate::LOST)
}

fn late() -> AttemptError {
    AttemptError::own(ErrorClass::Unknown, OwnCode::Timeout, Fate::LATE)
}

/// What the server says that is overloaded, or refuses the call: nothing was sent, so that nothing was executed.
fn said(
    connector: &dyn Connector,
    code: Option<&str>,
    is_refusal: bool,
    body: &Bytes,
) -> AttemptError {
    let class = if is_refusal { ErrorClass::Rejected } else { ErrorClass::NotExecuted };
    let usual = connector.usual_errors();
    let usual = if is_refusal { usual.refuses } else { usual.overloaded };
    let ended = connector.answered_with(code.unwrap_or(usual), body);
    match ended.and_then(|ended| ended.result.err()) {
        Some(error) => AttemptError { class, doubt: None, unclassified: false, ..error },
        None => AttemptError::own(class, OwnCode::Chaos, "chaos: nothing was sent"),
    }
}

/// The rest of an answer that comes slowly.
struct Dripping {
    rest: Box<dyn Tail>,
    time: Duration,
    _place: Option<Delayed>,
}

impl Tail for Dripping {
    fn next(&mut self) -> Answer<'_, Option<Result<Bytes, AttemptError>>> {
        Box::pin(async {
            sleep(self.time).await;
            self.rest.next().await
        })
    }

    fn end(&self) -> Option<Bytes> {
        self.rest.end()
    }
}
