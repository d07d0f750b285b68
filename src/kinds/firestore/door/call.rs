//! One call of gRPC, from its headers to the beginning of its answer.

use std::sync::Arc;

use bytes::Bytes;
use fusebox_actors::Source;
use fusebox_state::Lanes;
use hyper::{Request, Response, body::Incoming};
use tokio::time::Instant;

use super::{
    answer::Body,
    busy::Busy,
    carrying::Carrying,
    class::{self, Class, Method, Shape},
    core::Core,
    counters::Family,
    lanes::{Touched, touched},
    listening,
    metadata::{asked_time, check_metadata},
    pool::Upstream,
    reading::{self, first_of},
    telling::Told,
};
use crate::ingress::peer::Who;

/// Answers a call.
pub(super) async fn answered(
    core: Arc<Core>,
    busy: &Arc<Busy>,
    who: Option<Who>,
    request: Request<Incoming>,
) -> Response<Body> {
    let mut method = class::method(request.uri().path());
    let ended = carried(&core, busy, who, &mut method, request).await;
    let family = match (method.shape, method.class) {
        (Shape::Lasting, _) => Family::Stream,
        (_, Class::Read) => Family::Read,
        (_, Class::Write) => Family::Write,
    };
    match ended {
        Ok((response, source)) => {
            core.counters.answered(family, source);
            response
        }
        Err(told) => {
            core.counters.local(family, told.why);
            told.grpc()
        }
    }
}

async fn carried(
    core: &Arc<Core>,
    busy: &Arc<Busy>,
    who: Option<Who>,
    known: &mut Method,
    request: Request<Incoming>,
) -> Result<(Response<Body>, Source), Told> {
    let arrived = Instant::now();
    check_metadata(request.headers())?;
    let by = core.principal(who, request.headers()).await.map_err(|_| Told::nobody())?;
    let asked = asked_time(request.headers())?;
    let time = [asked, core.settings.deadline].into_iter().flatten().min();
    let (head, body) = request.into_parts();
    let begun = reading::begin(core, *known, body).await?;
    let share = core.share(*known).await?;
    let upstream = core.upstream().map_err(|why| Told::fault(&why))?;
    let messages = begun.messages();
    let message = first_of(&messages);
    let method = known.looked_into(message.as_deref());
    *known = method;
    let mut touched = core.touched(&upstream, method, message.as_ref()).await?;
    if method.shape == Shape::Lasting && touched.lanes != Lanes::None {
        // Its answers cannot be counted: what it writes is not known to be over before it has ended.
        touched.lanes = Lanes::All;
    }
    Core::allows(&by, method)?;
    let scope = core.scope(&upstream, &by);
    core.may_begin(&scope, method, &head.headers, &messages)?;
    drop(messages);
    let understood = core.understood(&upstream, method, message.as_ref(), &touched, &by);
    let caller = core.caller(who, &head.headers);
    let carrying =
        Carrying { upstream, method, by, caller, scope, touched, understood, arrived, asked, time };
    if method.shape == Shape::Lasting && method.class == Class::Read {
        let response = Box::pin(listening::answered(core, busy, carrying, head, begun, share));
        return Ok((response.await?, Source::Live));
    }
    Box::pin(carrying.answered(core, head, begun, share)).await
}

impl Core {
    async fn touched(
        &self,
        upstream: &Upstream,
        method: Method,
        message: Option<&Bytes>,
    ) -> Result<Touched, Told> {
        let connector = &upstream.connector;
        let client = &connector.shared.client;
        if client.known_root().is_none() {
            let asked = tokio::time::timeout(self.backend.timeout(), client.root()).await;
            if !matches!(asked, Ok(Ok(_))) {
                let why = "has no project that fusebox could find out";
                return Err(Told::not_executed(
                    self.backend.name(),
                    why,
                    self.backend.retry_after(),
                ));
            }
        }
        let message = message.map(|message| &**message);
        Ok(touched(method, message, client.known_root(), connector.namespace()))
    }
}
