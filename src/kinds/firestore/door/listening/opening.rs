//! How a Listen gets a stream to the server.

use std::sync::Arc;

use hyper::{HeaderMap, Method as Verb, Request, StatusCode};
use tokio::time::Instant;

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
        let Carrying { by, method, touched, .. } = &self.carrying;
        let (method, is_new) = (*method, !self.has_headers);
        let refused = |told: Told| if is_new { Shut::Told(told) } else { Shut::Again };
        let upstream = core.upstream().map_err(|why| refused(Told::fault(&why)))?;
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
            asked: None,
            goes_on: false,
            by_hand: true,
        };
        let mut waiting = Waiting::new(&core, entered, |held, left, pass| {
            Box::pin(exchange::send(sending, held, left, pass))
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
}
