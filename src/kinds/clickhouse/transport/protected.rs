//! A client's own INSERT that may be queued: what lets replay recognise it.
//!
//! It is sent as the client made it, with the token and the settings under which replay will send it
//! ([`request::repeatable`]); its exceptions are read as those of a call. Under a query id that the client gave, the
//! server's log proves nothing: a client may use one twice.

use std::sync::Arc;

use bytes::Bytes;
use fusebox_actors::connector::{Attempt, Attempted};
use fusebox_state::OpId;
use tokio::time::Instant;

use super::{
    asking,
    bounds::is_whole,
    doubt::{by_proof, in_views_alone, lost, unanswered},
    http::Failed,
    request::{self, Asking},
    server::Server,
    shared::Shared,
    tokens::{self, Arrived, Doubted, Noted},
};
use crate::kinds::clickhouse::protocol::{
    door_insert,
    http_form::{self, HttpRequest},
    outcome::{Asked, SUMMARY_SINCE, written_rows},
    sql::{self, Verb},
    target::{self, Target},
};

/// An INSERT with a token.
pub(super) struct Protected {
    token: OpId,
    target: Target,
    server: Arc<Server>,
    pairs: Vec<(&'static str, String)>,
    asked: Asked,
}

/// What is known before it is sent.
pub(super) enum Before {
    /// What a later proof will need; `None` for one that is sent again.
    Noted(Option<Noted>),
    /// It has ended already.
    Ended(Attempted),
}

impl Protected {
    /// The insert that `request` is, if `attempt` has a token.
    ///
    /// # Errors
    /// The server does not say what it knows; nothing was sent.
    pub(super) async fn of(
        shared: &Arc<Shared>,
        attempt: &Attempt<'_>,
        request: &HttpRequest,
    ) -> Result<Option<Self>, Failed> {
        let Some(token) = attempt.token else { return Ok(None) };
        let usual = shared.usual_database.known();
        let call = door_insert::call(request, usual.as_ref().map(|it| it.as_str()));
        let Ok(call) = call else { return Ok(None) };
        let statement = sql::read(&call.header.query);
        let Verb::Insert(insert) = &statement.verb else { return Ok(None) };
        let Some(table) = &insert.table else { return Ok(None) };
        let target = target::of(table, &call.header, &shared.settings);
        let server = asking::server(shared, || attempt.board(), attempt.timeout).await?;
        let whole = is_whole(shared, attempt.timeout);
        let (attempt, known) = (attempt.clone(), Arc::clone(&server));
        let asking = Asking { attempt, call, statement, server: known, turn: 0, whole };
        let (pairs, asked) = (request::repeatable(&asking), request::asked(&asking));
        Ok(Some(Self { token, target, server, pairs, asked }))
    }

    pub(super) fn token(&self) -> OpId {
        self.token
    }

    /// The parameters that are added to the client's.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// What its exceptions are read by.
    pub(super) fn asked(&self, whole: bool) -> Asked {
        Asked { whole, ..self.asked.clone() }
    }

    /// What must be known before it is sent; `by_log` if its query id is ours.
    ///
    /// # Errors
    /// The server does not say what it remembers, or another sending may have been applied and nothing proves that this
    /// one would be recognised.
    pub(super) async fn known(
        &self,
        shared: &Arc<Shared>,
        attempt: &Attempt<'_>,
        by_log: bool,
        until: Instant,
    ) -> Result<Before, Failed> {
        let Some(doubt) = attempt.doubt else {
            let (target, server) = (&self.target, &self.server);
            let noted = tokens::baseline(
                shared,
                || attempt.board(),
                server,
                target,
                (false, by_log),
                until,
            );
            return Ok(Before::Noted(Some(noted.await?)));
        };
        let (token, now, prefix) = (self.token, attempt.now, shared.fence.prefix());
        let write = Doubted { target: &self.target, token, doubt, now, prefix };
        let proof = tokens::prove(shared, &self.server, &write, until).await?;
        let ended = by_proof(proof, &self.target)?;
        Ok(ended.map_or(Before::Noted(None), Before::Ended))
    }

    /// Whether the rows are there, if this repeated what may have been applied and `reply` says that all is well.
    ///
    /// # Errors
    /// They are not, or it is not known. What is missing replay sends again.
    pub(super) async fn arrived(
        &self,
        shared: &Arc<Shared>,
        attempt: &Attempt<'_>,
        reply: &Bytes,
        until: Instant,
    ) -> Result<(), Failed> {
        let Some(doubt) = attempt.doubt else { return Ok(()) };
        let head = http_form::answer_of(reply).map(|(head, _)| head);
        let Some(head) = head.filter(|head| head.status == 200) else { return Ok(()) };
        let rows = head.header("x-clickhouse-summary").and_then(written_rows);
        if rows == Some(0) && self.server.since(SUMMARY_SINCE) {
            // None of its rows can be missing.
            return Ok(());
        }
        let (token, now, prefix) = (self.token, attempt.now, shared.fence.prefix());
        let write = Doubted { target: &self.target, token, doubt, now, prefix };
        match tokens::arrived(shared, &self.server, &write, until).await {
            Ok(Arrived::Yes) => Ok(()),
            Ok(Arrived::No) => Err(lost(&self.target)),
            Ok(Arrived::InViewsAlone) => Err(in_views_alone(&self.target)),
            Err(failed) => Err(unanswered(&failed)),
        }
    }
}
