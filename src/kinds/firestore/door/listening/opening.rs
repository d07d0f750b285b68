//! How a Listen gets a stream to the server.
//!
//! After a reload that may be another server, which knows nothing of the tokens of the one before, and of which the
//! Listen may not name all that it could name there. So both are looked at again whenever the upstream is another one.

use std::sync::Arc;

use fusebox_actors::connector::Connector as _;
use hyper::{HeaderMap, Method as Verb, Request, StatusCode};
use tokio::time::{Instant, timeout};

use super::{
    Listening,
    open::Open,
    shut::{Shut, is_transient},
};
use crate::kinds::firestore::{
    door::{
        carrying::Carrying,
        exchange::{self, Sending, Waiting},
        framing::framed,
        outcome::{of_http, status_of},
        pool::Upstream,
        reading::Begun,
        telling::Told,
    },
    protocol::outcome::Behalf,
};

impl Listening {
    /// Opens a stream to the server; the headers of its answer.
    pub(super) async fn opens(&mut self) -> Result<HeaderMap, Shut> {
        let core = Arc::clone(&self.core);
        tokio::select! {
            biased;
            opened = self.opened() => opened,
            () = core.stop.cancelled() => Err(Shut::Told(Told::stopping())),
        }
    }

    async fn opened(&mut self) -> Result<HeaderMap, Shut> {
        if self.core.is_barred() {
            return Err(Shut::Again);
        }
        let core = Arc::clone(&self.core);
        let is_new = !self.has_headers;
        let refused = |told: Told| if is_new { Shut::Told(told) } else { Shut::Again };
        let upstream = core.upstream().map_err(|why| refused(Told::fault(&why)))?;
        if upstream.is_over() {
            // Another one is about to take its place.
            return Err(Shut::Again);
        }
        self.moves_to(&upstream).await?;
        let Carrying { by, method, touched, .. } = &self.carrying;
        let method = *method;
        let headers = core.headers(&upstream, method, by, self.head.headers.clone());
        let headers = headers.await.map_err(refused)?;
        let (mut head, ()) = Request::new(()).into_parts();
        (head.method, head.uri, head.headers) = (Verb::POST, self.head.uri.clone(), headers);
        let until = Instant::now() + core.backend.timeout();
        let until = self.deadline.as_ref().map_or(until, |at| until.min(at.deadline()));
        let admitted =
            core.admitted(&upstream, method, touched, until, (&self.carrying.caller, None)).await;
        // All the trials of a half-open breaker are out, say, or there is no place.
        let Ok(entered) = admitted else { return Err(Shut::Again) };
        let begin = self.targets.begin();
        let pieces = begin.requests.into_iter().map(|it| framed(&[it])).collect();
        let sending = Sending {
            core: Arc::clone(&core),
            upstream,
            method,
            scope: self.carrying.scope.clone(),
            caller: self.carrying.caller.clone(),
            head,
            begun: Begun { pieces, rest: None, held: Vec::new() },
            behalf: Behalf { caller: by.own.is_some(), transaction: false },
            asked: self.carrying.asked,
            goes_on: false,
            by_hand: true,
        };
        let mut waiting = Waiting::new(&core, entered, |held, pass| {
            Box::pin(exchange::send(sending, held, pass))
        });
        let Some(Ok(mut answered)) = waiting.answered(until).await else { return Err(Shut::Again) };
        let said = status_of(&answered.head.headers).map(|status| status.code());
        let said = match answered.head.status {
            StatusCode::OK => said,
            other => Some(said.unwrap_or_else(|| of_http(other).code())),
        };
        if let Some(code) = said {
            let is_again = is_transient(code, self.has_headers) || self.targets.is_refused();
            return Err(if is_again { Shut::Again } else { Shut::Said(Box::new(answered)) });
        }
        let Some(mut open) = answered.rest.take().and_then(Open::of) else {
            return Err(if is_new { Shut::Said(Box::new(answered)) } else { Shut::Again });
        };
        if self.requests.has_ended() {
            open.end();
        }
        (self.open, self.parked) = (Some(open), None);
        self.tells(begin.told);
        Ok(answered.head.headers)
    }

    /// Makes ready to ask `upstream`, if that is not the one that was asked before.
    async fn moves_to(&mut self, upstream: &Arc<Upstream>) -> Result<(), Shut> {
        if Arc::ptr_eq(&self.carrying.upstream, upstream) {
            return Ok(());
        }
        // What may be named there is known with its project.
        let root = Box::pin(upstream.connector.shared.client.root());
        if !matches!(timeout(self.core.backend.timeout(), root).await, Ok(Ok(_))) {
            return Err(Shut::Again);
        }
        if upstream.connector.view() != self.carrying.upstream.connector.view() {
            self.targets.moves();
        }
        self.carrying.scope = self.core.scope(upstream, &self.carrying.by);
        self.carrying.upstream = Arc::clone(upstream);
        self.may_be_asked().map_err(Shut::Told)
    }

    /// Whether its client may name all that it has named.
    fn may_be_asked(&self) -> Result<(), Told> {
        let Carrying { scope, method, .. } = &self.carrying;
        self.core.may_bear(scope, &self.head.headers)?;
        for request in self.targets.asked() {
            self.core.may_send(scope, *method, Some(request))?;
        }
        Ok(())
    }
}
