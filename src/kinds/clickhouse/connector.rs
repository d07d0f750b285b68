//! ClickHouse behind the connector port, over its HTTP interface.
//!
//! A body is a statement with its parameters, settings and data; a reply is the bytes that the server sent,
//! under the name of their format ([`wire`]). What a statement is follows from a small lexer
//! (`protocol/sql.rs`): if that is not known, it is a write.
//!
//! ```text
//!  plan ── sql ── lexer            attempt ── server (what does it know)
//!  empty (what was learnt)            │ ────── fence (writes) ── tokens (repetitions)
//!                                  exchange ── outcome
//!                                     │
//!                                    http ── pool ── dial
//! ```
//! What keeps an abandoned write from landing late is in `transport/fence.rs`; whether a
//! repetition is recognised in `transport/tokens.rs`; what is sent together in `protocol/gather.rs`; what queues and
//! what is cached in `protocol/plan.rs`; what an error means in `protocol/outcome.rs`.

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_actors::connector::{
    Answer, Attempt, AttemptError, Attempted, Connector, ConnectorStatus, OwnCode, Plan, Refused,
    Slot, Stored, UsualErrors,
};
use fusebox_state::{OpId, Target, Words, limit::Rule};
use tokio::time::{Instant, timeout};

use super::{
    protocol::{
        door_insert, door_read, empty, gather,
        http_form::{self, AnswerHead, HttpRequest},
        opaque,
        outcome::{Asked, Came, Exception},
        plan, sql, stated, wire,
    },
    settings::ClickHouseSettings,
    transport::{attempt, shared::Shared, storable, writing},
};

/// The status of an error that the server has not sent.
const INJECTED_STATUS: u16 = 500;

/// A ClickHouse backend's connector. Made without a server; it connects when it is first needed.
pub struct ClickHouseConnector {
    target: Target,
    shared: Arc<Shared>,
    learnt: empty::Learnt,
}

impl ClickHouseConnector {
    /// A connector for `settings`. Nothing is sent yet.
    pub fn new(settings: ClickHouseSettings) -> Arc<Self> {
        let settings = Arc::new(settings);
        let target = Target::new("clickhouse", &settings.url, &settings.database);
        let shared = Arc::new(Shared::new(settings));
        Arc::new(Self { target, shared, learnt: empty::Learnt::default() })
    }

    /// What it was made of: who it is to the server.
    pub(crate) fn settings(&self) -> &ClickHouseSettings {
        &self.shared.settings
    }

    /// Whether the server takes requests, and then whether it can answer one.
    async fn answers(&self, time: Duration) -> Attempted {
        let http = &self.shared.http;
        let until = Instant::now() + time;
        let asked = async {
            http.ping(time).await?;
            let left = until.saturating_duration_since(Instant::now());
            http.ask("SELECT 1 FORMAT TabSeparated".to_owned(), left).await
        };
        match asked.await {
            Ok(answer) => {
                if self.shared.fence.is_in_doubt() {
                    writing::raise_soon(&self.shared);
                }
                Attempted::answered(wire::reply("TabSeparated", answer.as_bytes()))
            }
            Err(failed) => {
                self.shared.ask_anew();
                Attempted::failed(fusebox_state::Verdict::Failure, failed.error)
            }
        }
    }
}

impl ClickHouseConnector {
    /// Whether something may be in the session of a client's own request.
    fn is_in_dirty_session(&self, body: &Bytes) -> bool {
        let Some(Ok(request)) = HttpRequest::of(body) else { return false };
        let session = door_read::session_of(&request);
        session.is_some_and(|(id, timeout)| self.shared.sessions.is_dirty(&id, timeout))
    }
}

impl std::fmt::Debug for ClickHouseConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClickHouseConnector").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Connector for ClickHouseConnector {
    fn plan(&self, body: Bytes) -> Result<Plan, Refused> {
        match HttpRequest::of(&body) {
            Some(request) => {
                let Shared { settings, sessions, usual_database, .. } = &*self.shared;
                let usual = usual_database.known();
                let usual = usual.as_ref().map(|it| it.as_str());
                let is_dirty = |id: &str, timeout| sessions.is_dirty(id, timeout);
                opaque::plan(body, request, is_dirty, usual, settings)
            }
            None => plan::plan(body, &self.shared.settings),
        }
    }

    fn operation(&self, body: &Bytes) -> Cow<'static, str> {
        if let Some(request) = HttpRequest::of(body) {
            return Cow::Borrowed(request.map_or("unknown", |request| opaque::operation(&request)));
        }
        let statement = wire::Call::of(body).map(|call| stated::of_call(&call));
        Cow::Borrowed(statement.map_or("unknown", |statement| statement.operation()))
    }

    fn attempt<'a>(&'a self, attempt: Attempt<'a>) -> Answer<'a, Attempted> {
        Box::pin(attempt::carry(&self.shared, attempt))
    }

    fn stored(&self, body: &Bytes) -> Option<Stored> {
        let request = HttpRequest::of(body)?.ok()?;
        let usual = self.shared.usual_database.known();
        let call = door_insert::call(&request, usual.as_ref().map(|it| it.as_str())).ok()?;
        Some(Stored { body: call.to_bytes(), timed: false })
    }

    fn storable<'a>(&'a self, body: &'a Bytes) -> Option<Answer<'a, Result<(), AttemptError>>> {
        storable::look(wire::Call::of(body).ok()?)
    }

    fn prepare<'a>(
        &'a self,
        attempts: &'a [Attempt<'a>],
    ) -> Answer<'a, Result<Vec<Bytes>, (fusebox_state::Verdict, AttemptError)>> {
        Box::pin(async {
            let prepared = attempt::prepare(&self.shared, attempts).await;
            prepared.map_err(|failed| (failed.verdict, failed.error))
        })
    }

    fn group_max(&self) -> (usize, u64) {
        (gather::CALLS_MAX, gather::BYTES_MAX)
    }

    fn attempt_group<'a>(&'a self, attempts: Vec<Attempt<'a>>) -> Answer<'a, Attempted> {
        Box::pin(attempt::carry_group(&self.shared, attempts))
    }

    fn ping(&self, time: Duration) -> Answer<'_, Attempted> {
        Box::pin(async move {
            if self.shared.http.is_closed() {
                let error = AttemptError::own(
                    fusebox_state::ErrorClass::NotExecuted,
                    OwnCode::Closed,
                    "the connector is closed",
                );
                return Attempted::failed(fusebox_state::Verdict::Neutral, error);
            }
            self.answers(time).await
        })
    }

    fn outlasts(&self, slot: &Slot) -> bool {
        door_read::is_start_up(slot)
    }

    fn split(&self, body: &Bytes, slots: &[Slot], reply: &Bytes) -> Option<Vec<Bytes>> {
        let [slot] = slots else { return None };
        if let Some(kept) = door_read::kept(body, reply) {
            // Something may have been put into its session since it was planned, and be in its answer.
            return (!self.is_in_dirty_session(body)).then(|| vec![kept]);
        }
        if http_form::is_answer(reply) {
            return None;
        }
        self.learnt.learn(&slot.key, reply);
        Some(vec![reply.clone()])
    }

    fn join(&self, _: &Bytes, parts: Vec<Bytes>) -> Bytes {
        parts.into_iter().next().unwrap_or_default()
    }

    fn empty(&self, body: &Bytes) -> Option<Bytes> {
        let call = wire::Call::of(body).ok()?;
        let statement = sql::read(&call.header.query);
        let slot = plan::slot(&call.header, &statement, &self.shared.settings);
        let format = statement.format.as_ref().or(call.header.format.as_ref());
        let format = format.map_or("TabSeparated", String::as_str);
        self.learnt.get(slot.as_ref().map(|slot| &slot.key), format)
    }

    fn needs_evidence(&self) -> bool {
        true
    }

    fn caches_by_lane(&self) -> bool {
        false
    }

    fn held(&self, beginning: &[u8]) -> Option<usize> {
        wire::header_end(beginning)
    }

    fn forget_tokens(&self, tokens: Vec<OpId>) {
        // The server's own window forgets them.
        self.shared.tables.forget(&tokens);
    }

    /// What a query takes says more of the query than of the server.
    fn limit_rule(&self) -> Rule {
        Rule::Aimd
    }

    fn status(&self) -> ConnectorStatus {
        let shared = &self.shared;
        let server = shared.servers.known();
        let mut warnings: Vec<Words> = shared.fence.warning().into_iter().collect();
        if server.as_ref().is_some_and(|server| server.read_only) {
            let user = shared.settings.username.as_deref().unwrap_or("default");
            let told = format!(
                "the user {user} may change no settings (readonly = 1): fusebox cannot set a time limit for queries or \
                 a token for inserts"
            );
            warnings.push(told.into());
        }
        warnings.extend(shared.tables.warnings().into_iter().map(Words::from));
        ConnectorStatus {
            connections: shared.http.connections(),
            warnings,
            server_version: server.map(|s| s.version.clone()).filter(|version| !version.is_empty()),
        }
    }

    fn target(&self) -> Target {
        self.target.clone()
    }

    fn view(&self) -> Target {
        self.target.seen_by(self.shared.settings.username.as_deref())
    }

    fn answered_with(&self, code: &str, body: &Bytes) -> Option<Attempted> {
        let number: u32 = code.parse().ok().filter(|number| *number > 0)?;
        let message =
            format!("Code: {number}. DB::Exception: chaos: a fault on purpose, nothing was sent.");
        let exception = Exception::of_body(Some(number), None, message.as_bytes());
        let asked = Asked { whole: true, ..Asked::default() };
        let mut ended = exception.ends(INJECTED_STATUS, None, &asked, Came::default());
        if let (Err(error), Some(_)) = (&mut ended.result, HttpRequest::of(body)) {
            let fields = [
                ("x-clickhouse-exception-code", code),
                ("content-type", "text/plain; charset=UTF-8"),
            ];
            let headers = fields.map(|(name, value)| (name, value.into())).to_vec();
            let head = AnswerHead { status: INJECTED_STATUS, headers };
            error.reply = Some(http_form::answer(&head, format!("{message}\n").as_bytes()));
        }
        Some(ended)
    }

    fn usual_errors(&self) -> UsualErrors {
        UsualErrors { overloaded: "202", refuses: "62" }
    }

    fn give_up_connections(&self) {
        self.shared.http.give_up_idle();
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async {
            // What is under way ends at once; a task that hangs all the same does not hold up the daemon.
            drop(timeout(self.shared.settings.timeout, self.shared.http.close()).await);
            writing::end_names(&self.shared).await;
        })
    }
}
