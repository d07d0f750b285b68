//! What a client waits for besides its upstream: a call that the core carries, or the look at its credentials.
//!
//! It runs on the daemon's own threads, because it may open the connections of JSON calls, which live there. A write that
//! is only to be queued opens none, and runs on the door's own: there and back would cost as much as the rest of it.

use std::{
    collections::HashMap,
    iter,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use fusebox_actors::{
    AckLevel, Backend, Barred, Call, CallOptions, Onward, Reply,
    connector::{Access, Connector, Outage, Plan, Write},
    trace::{AtDoor, CallTrace},
};
use fusebox_state::{Lanes, chaos::Strike};
use tokio::{
    sync::{Notify, futures::OwnedNotified},
    task::spawn_local,
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    assumed,
    core::Core,
    held::{Held, Weight},
    local::Hello,
    settings::{Guest, MinAck},
    telling::{self, Answer, Asked, Told},
};
use crate::{
    config::OnMiss,
    ingress::peer::{NOBODY, Who},
    kinds::redis::{
        connector::RedisConnector,
        protocol::{internal::Form, resp},
        transport::{carry::RESP2, open},
    },
};

/// INFO of a server that was never met.
const UNKNOWN_SERVER: &str =
    "# Server\r\nredis_version:7.0.0\r\nredis_mode:standalone\r\nloading:0";

/// Something that runs elsewhere. Dropped, it is given up.
pub(super) struct Slow {
    seq: u64,
    job: AbortOnDropHandle<Done>,
    /// Notified once it is in the queue.
    appended: Option<Pin<Box<OwnedNotified>>>,
    is_write: bool,
    /// What is held of it.
    _weight: Weight,
}

/// How it ended.
pub(super) enum Done {
    /// A call: its answer, the source of that, and the lanes of a failed attempt that has been acknowledged since.
    Answered(u64, Answer, Told, Option<Lanes>),
    /// Who the credentials belong to, and what HELLO asked for besides.
    Authenticated(u64, Option<Guest>, Option<Hello>),
}

/// What is wanted of a call.
struct Wanted {
    /// What is asked of it besides its words.
    options: CallOptions,
    /// It may be answered with nil if nothing is known.
    nil_on_miss: bool,
    is_write: bool,
    /// What it is answered if it is taken and its reply is not known.
    assumed: Option<Bytes>,
}

/// Who asks, and in which protocol.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    pub(super) who: Option<Who>,
    pub(super) protocol: telling::Protocol,
    /// The call replaces a transaction of so many commands, MULTI and EXEC included.
    pub(super) commands: Option<usize>,
    /// What strikes it on purpose.
    pub(super) struck: Option<Strike>,
    /// Why the backend is not asked, if that is known.
    pub(super) barred: Option<Barred>,
    /// How many commands of the same client came before it in one piece.
    pub(super) ahead: u32,
}

impl Slow {
    /// Whether what follows it may begin: it is in the queue, and waits for the disk alone.
    pub(super) fn is_appended(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(appended) = &mut self.appended
            && appended.as_mut().poll(cx).is_ready()
        {
            self.appended = None;
        }
        self.is_write && self.appended.is_none()
    }

    /// The same, as it was when it was last looked at.
    pub(super) fn was_appended(&self) -> bool {
        self.is_write && self.appended.is_none()
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Done> {
        let seq = self.seq;
        Pin::new(&mut self.job).poll(cx).map(|done| {
            done.unwrap_or_else(|_| {
                let answer =
                    telling::error("ERR fusebox: an internal error of fusebox; its log says more");
                Done::Answered(seq, Answer::Reply(answer), Told::default(), None)
            })
        })
    }
}

impl Core {
    /// Carries a call that was not sent yet.
    pub(super) fn call(&self, seq: u64, body: Bytes, asker: Asker) -> Slow {
        self.carried(seq, self.whole.keeps(body), asker, None)
    }

    /// Carries a call on whose first attempt has failed.
    pub(super) fn go_on(&self, seq: u64, onward: Box<Onward>, held: Held, asker: Asker) -> Slow {
        self.carried(seq, held, asker, Some(onward))
    }

    /// Asks the server on a connection apart: what [releases](super::class::releases) the server must not wait for it.
    pub(super) fn ask_apart(&self, seq: u64, body: Bytes) -> Slow {
        let (connector, backend) = (self.connector(), Arc::clone(&self.backend));
        let (how, close) = (self.settings.unavailable, self.settings.close_on_unknown);
        let weight = self.whole.weighs(body.len());
        let job = self.main.spawn(async move {
            let asked = open::ask_apart(&connector.links().shared.settings, body).await;
            let answer = match asked {
                Ok(Ok(reply)) => Answer::Reply(reply),
                Ok(Err(why)) => telling::unknown(&format!("{}: {why}", backend.name()), close),
                Err(failed) => {
                    let why = format!("{}: {}", backend.name(), failed.error.words().whole());
                    telling::unavailable(how, &why, None)
                }
            };
            Done::Answered(seq, answer, Told::default(), None)
        });
        let job = AbortOnDropHandle::new(job);
        Slow { seq, job, appended: None, is_write: false, _weight: weight }
    }

    fn carried(&self, seq: u64, held: Held, by: Asker, onward: Option<Box<Onward>>) -> Slow {
        let Held { body, weight } = held;
        let Wanted { mut options, nil_on_miss, is_write, assumed } =
            self.wanted(&self.connector(), &body, by);
        let appended = Arc::<Notify>::default();
        options.appended = is_write.then(|| Arc::clone(&appended));
        let who = by.who.unwrap_or(Who { uid: NOBODY, admin: false, by_token: false });
        let stand_in = if is_write { None } else { self.stand_in(&body) };
        options.has_stand_in = stand_in.is_some();
        let is_queued_here = options.barred.is_some();
        // The door itself has looked at what needs admin rights.
        let mut call = Call {
            body,
            options,
            uid: who.uid,
            admin: true,
            trace: CallTrace::new(AtDoor { address: self.settings.address, ahead: by.ahead }),
            streams: false,
            upload: None,
        };
        let mut asked = Asked {
            protocol: by.protocol,
            unavailable: self.settings.unavailable,
            close_on_unknown: self.settings.close_on_unknown,
            nil_on_miss,
            assumed,
        };
        let backend = Arc::clone(&self.backend);
        let counters = Arc::clone(&self.counters);
        let lanes = onward.as_ref().and_then(|onward| onward.lanes().cloned());
        let (connector, effect_reply) = (self.connector(), self.settings.effect_reply);
        let running = async move {
            if asked.assumed.is_some() {
                // What the queue determines is not known before.
                let (began, deadline) = (Instant::now(), call.options.deadline);
                let deadline = deadline.unwrap_or_else(|| backend.deadline());
                let patience = deadline.saturating_sub(backend.reserve(deadline));
                if backend.wait_opened(call.uid, patience).await {
                    call.options.deadline = Some(deadline.saturating_sub(began.elapsed()));
                }
            }
            let form = Form::of(&call.body);
            if let Some(form) = form.as_ref().filter(|_| asked.assumed.is_some()) {
                let (mut absent, mut own) = (Vec::new(), HashMap::new());
                for step in form.steps() {
                    // What the commands before it in a transaction leave is known.
                    let keys = assumed::keys(&step.args);
                    let (known, asked): (Vec<_>, Vec<_>) =
                        keys.iter().partition(|key| own.contains_key(*key));
                    let gone = known.iter().filter(|key| own.get(*key) == Some(&false)).count();
                    absent.push(gone + missing(&backend, &connector, &asked).await);
                    own.extend(assumed::leaves(&step.args));
                }
                asked.assumed = assumed::reply_to(effect_reply, form, &absent);
            }
            drop(form);
            let ended = match onward {
                Some(onward) => backend.go_on(call, *onward).await,
                None => backend.call(call).await,
            };
            if let (Err(error), Some(answer)) = (&ended, stand_in)
                && error.reply.is_none()
            {
                counters.answered_here(1);
                return Done::Answered(seq, Answer::Reply(answer), Told::default(), None);
            }
            let source = ended.as_ref().ok().map(|reply| reply.source);
            let told = ended.as_ref().map(Told::of).unwrap_or_default();
            let lanes = lanes.filter(|_| ended.is_ok());
            let has_run = ended.as_ref().map_or_else(telling::may_have_run, |_| true);
            let mut answer = telling::answer(ended, backend.name(), asked);
            // What is refused is counted when it is answered.
            if let Some(source) = source
                && !matches!(answer, Answer::Unavailable(_))
            {
                counters.answered(source);
            }
            if let Some(commands) = by.commands {
                answer = telling::of_transaction(commands, answer, has_run);
            }
            Done::Answered(seq, answer, told, lanes)
        };
        let job = if is_queued_here { spawn_local(running) } else { self.main.spawn(running) };
        let job = AbortOnDropHandle::new(job);
        let appended = Some(Box::pin(appended.notified_owned()));
        Slow { seq, job, appended, is_write, _weight: weight }
    }

    /// What answers PING, INFO, COMMAND COUNT and COMMAND LIST if the server does not: clients ask these before they do
    /// anything else. What COMMAND and COMMAND INFO say beyond the names is known of no server.
    fn stand_in(&self, body: &[u8]) -> Option<Bytes> {
        let args = resp::arguments(body).ok()?;
        let [name, rest @ ..] = args.as_slice() else { return None };
        if name.eq_ignore_ascii_case(b"PING") {
            return Some(match rest {
                [] => Bytes::from_static(b"+PONG\r\n"),
                [text, ..] => bulk(text),
            });
        }
        if name.eq_ignore_ascii_case(b"COMMAND") {
            let names = self.connector().links().shared.commands.names();
            let [inner] = rest else { return None };
            return match inner.to_ascii_lowercase().as_slice() {
                b"count" => {
                    let count = names.iter().filter(|name| !name.contains('|')).count();
                    Some(Bytes::from(format!(":{count}\r\n")))
                }
                b"list" => Some(resp::command(&names.iter().map(|it| &**it).collect::<Vec<_>>())),
                _ => None,
            };
        }
        name.eq_ignore_ascii_case(b"INFO").then(|| {
            let connector = self.connector();
            let server = connector.links().shared.server.lock();
            let known = server.as_ref().map(|server| server.text.as_str());
            let known = known.unwrap_or(UNKNOWN_SERVER);
            let ours = format!("\r\n# Fusebox\r\nfusebox_backend:{}\r\n", self.backend.name());
            bulk(format!("{}{ours}", known.trim_end()).as_bytes())
        })
    }

    /// Whether a transaction is queued here if the server does not answer. One of too many keys is not: it would hold
    /// up everybody.
    pub(super) fn queues(&self, body: &Bytes) -> bool {
        let plan = self.connector().plan(body.clone()).ok();
        let plan = plan.filter(|plan| !plan.lanes.is_all());
        let Some(Access::Write(Write { outage, .. })) = plan.map(|plan| plan.access) else {
            return false;
        };
        match (outage, self.settings.min_ack) {
            (Outage::Never(_), _) | (_, MinAck::Applied) => false,
            (Outage::ReplyKnown(_), _) | (_, MinAck::Durable) => true,
            (Outage::EffectUnknown, _) => false,
            (Outage::EffectKnown, _) => Form::of(body).is_some_and(|form| {
                assumed::reply_to(self.settings.effect_reply, &form, &[]).is_some()
            }),
        }
    }

    /// What is wanted of a call.
    ///
    /// A write whose reply is neither known beforehand nor [assumed] is queued only if the door says
    /// `min_ack = "durable"`: most clients take an integer for what it says.
    fn wanted(&self, connector: &RedisConnector, body: &Bytes, asker: Asker) -> Wanted {
        let plan = connector.plan(body.clone()).ok();
        let is_write = plan.as_ref().is_some_and(|plan| matches!(plan.access, Access::Write(_)));
        let assumed = plan.as_ref().and_then(|plan| match &plan.access {
            Access::Write(Write { outage: Outage::EffectKnown, .. }) => {
                assumed::reply_to(self.settings.effect_reply, &Form::of(body)?, &[])
            }
            _ => None,
        });
        let min_ack = match plan.map(|plan| plan.access) {
            Some(Access::Write(Write { outage, .. })) => match (self.settings.min_ack, outage) {
                // What is not queued without consent is answered so.
                (MinAck::Durable, Outage::Never(_))
                | (
                    MinAck::AppliedOrDurable,
                    Outage::ReplyKnown(_) | Outage::EffectUnknown | Outage::Never(_),
                ) => None,
                (MinAck::AppliedOrDurable, _) if assumed.is_some() => None,
                (MinAck::Durable, _) => Some(AckLevel::Durable),
                (MinAck::Applied | MinAck::AppliedOrDurable, _) => Some(AckLevel::Applied),
            },
            _ => None,
        };
        let args = resp::arguments(body).unwrap_or_default();
        let name = args.first().copied().unwrap_or_default();
        let is_one_of =
            |names: &[&str]| names.iter().any(|it| name.eq_ignore_ascii_case(it.as_bytes()));
        let nil_on_miss = match self.settings.on_miss {
            OnMiss::Get => is_one_of(&["GET", "MGET"]),
            OnMiss::Nil => is_one_of(&["GET", "MGET", "HGET", "HMGET", "HGETALL"]),
            OnMiss::Error => false,
        };
        let options = CallOptions {
            deadline: self.settings.deadline,
            max_stale: self.settings.max_stale,
            priority: self.settings.priority,
            min_ack,
            op_id: None,
            appended: None,
            awaits_place: true,
            struck: asker.struck,
            made_for: None,
            has_stand_in: false,
            barred: asker.barred.filter(|_| is_write && assumed.is_none()),
            is_audited: true,
            dialect: if asker.protocol == telling::Protocol::Resp2 { RESP2 } else { 0 },
        };
        Wanted { options, nil_on_miss, is_write, assumed }
    }

    /// Looks whom credentials belong to. The one who gave wrong ones waits a second for the answer.
    pub(super) fn authenticate(
        &self,
        seq: u64,
        user: Option<Vec<u8>>,
        secret: Vec<u8>,
        hello: Option<Hello>,
    ) -> Slow {
        let door = Arc::clone(&self.settings.callers);
        let connector = self.connector();
        let weight = self.whole.weighs(user.as_ref().map_or(0, Vec::len) + secret.len());
        let job = self.main.spawn(async move {
            let guest =
                door.who(&connector.links().shared.settings, user.as_deref(), &secret).await;
            if guest.is_none() {
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
            Done::Authenticated(seq, guest, hello)
        });
        let job = AbortOnDropHandle::new(job);
        Slow { seq, job, appended: None, is_write: false, _weight: weight }
    }
}

/// How many of `keys` are not there, by what waits in the queue.
async fn missing(backend: &Backend, connector: &RedisConnector, keys: &[&[u8]]) -> usize {
    if keys.is_empty() {
        return 0;
    }
    let words: Vec<&[u8]> = iter::once(&b"EXISTS"[..]).chain(keys.iter().copied()).collect();
    let Ok(Plan { access: Access::Read(read), .. }) = connector.plan(resp::command(&words)) else {
        return 0;
    };
    let known = backend.determined(&read.slots).await;
    known.iter().flatten().filter(|found| **found == b":0\r\n"[..]).count()
}

fn bulk(text: &[u8]) -> Bytes {
    let mut out = bytes::BytesMut::with_capacity(text.len() + 16);
    resp::write_bulk(&mut out, text);
    out.freeze()
}

impl Told {
    /// The source of a reply.
    fn of(reply: &Reply) -> Self {
        Self {
            source: Some(reply.source),
            ack: reply.ack,
            age: reply.age,
            op_id: reply.op_id,
            pending: reply.pending_writes,
        }
    }
}
