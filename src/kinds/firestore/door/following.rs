//! What is learnt of an answer that passes: a copy for the cache, and the server's times.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use fusebox_actors::AnswerCopy;
use hyper::{HeaderMap, body::Frame};
use prost_types::Timestamp;

use super::{core::Core, framing, pool::Upstream};
use crate::kinds::firestore::protocol::stock::{self, Form};

/// The answer to a commit of as many writes as may be, with the results of transforms, is seldom larger.
const COMMITTED_MAX: usize = 64 << 10;
/// What of a copy is worked on at once, in bytes: a larger one does not hold up a thread of the runtime.
const AT_ONCE: usize = 256 << 10;

/// See the [module](self).
pub(super) struct Following {
    core: Arc<Core>,
    upstream: Arc<Upstream>,
    of: Of,
    kept: Kept,
}

/// What answers so.
pub(super) enum Of {
    Read(Arc<Form>),
    Commit,
    /// It answers with the document that it has written.
    Document,
}

/// What is kept of it so far.
enum Kept {
    /// For the cache.
    Copy(AnswerCopy),
    /// For its time.
    Bytes(BytesMut),
    Nothing,
}

impl Following {
    /// Learns of an answer; with `copy` for the cache, too.
    pub(super) fn new(
        core: &Arc<Core>,
        upstream: &Arc<Upstream>,
        of: Of,
        copy: Option<AnswerCopy>,
    ) -> Self {
        let kept = copy.map_or_else(|| Kept::Bytes(BytesMut::new()), Kept::Copy);
        Self { core: Arc::clone(core), upstream: Arc::clone(upstream), of, kept }
    }

    /// The next of the answer passes.
    pub(super) fn passes(&mut self, frame: &Frame<Bytes>) {
        if let Some(trailers) = frame.trailers_ref() {
            return self.ends(trailers);
        }
        let Some(data) = frame.data_ref() else { return };
        let takes = match &mut self.kept {
            Kept::Copy(copy) => copy.note(data),
            Kept::Bytes(bytes) => {
                bytes.extend_from_slice(data);
                bytes.len() <= COMMITTED_MAX
            }
            Kept::Nothing => return,
        };
        if !takes {
            self.kept = Kept::Nothing;
        }
    }

    fn ends(&mut self, trailers: &HeaderMap) {
        let kept = std::mem::replace(&mut self.kept, Kept::Nothing);
        if trailers.get("grpc-status").is_none_or(|status| status != "0") {
            return;
        }
        match kept {
            Kept::Copy(copy) => self.keep(copy),
            Kept::Bytes(bytes) => {
                let messages = framing::messages(&bytes.freeze()).unwrap_or_default();
                self.saw(messages.last().and_then(|message| match &self.of {
                    Of::Read(form) => stock::read_at(form, message),
                    Of::Commit => stock::committed_at(message),
                    Of::Document => stock::written_at(message),
                }));
            }
            Kept::Nothing => {}
        }
    }

    fn keep(&self, copy: AnswerCopy) {
        let Of::Read(form) = &self.of else { return };
        let last = framing::last_message(copy.bytes());
        self.saw(last.and_then(|message| stock::read_at(form, message)));
        let is_large = copy.bytes().len() > AT_ONCE;
        let (form, upstream) = (Arc::clone(form), Arc::clone(&self.upstream));
        let keep = move || {
            copy.keep(|bytes| {
                let root = upstream.connector.shared.client.known_root()?;
                form.reply(framing::messages(&bytes)?, root)
            });
        };
        if is_large { self.core.work(keep) } else { keep() }
    }

    fn saw(&self, time: Option<Timestamp>) {
        if let Some(time) = time {
            self.core.estimates.saw(time);
        }
    }
}

impl Drop for Following {
    /// A client that got its documents may leave before the end of the answer, and Google's for Python does. What was
    /// asked for by name is known to be all of it.
    fn drop(&mut self) {
        if let Of::Read(form) = &self.of
            && matches!(**form, Form::Get { .. })
            && let Kept::Copy(copy) = std::mem::replace(&mut self.kept, Kept::Nothing)
        {
            self.keep(copy);
        }
    }
}
