//! What is learnt of an answer that passes: a copy for the cache, and the server's times.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use fusebox_actors::AnswerCopy;
use hyper::{HeaderMap, body::Frame};

use super::{core::Core, framing, pool::Upstream};
use crate::kinds::firestore::protocol::stock::{self, Form};

/// The answer to a commit of as many writes as may be, with the results of transforms, is seldom larger.
const COMMITTED_MAX: usize = 64 << 10;

/// See the [module](self).
pub(super) struct Following {
    core: Arc<Core>,
    upstream: Arc<Upstream>,
    form: Arc<Form>,
    kept: Kept,
}

/// What is kept of it so far.
enum Kept {
    Copy(AnswerCopy),
    /// Of a commit.
    Bytes(BytesMut),
    Nothing,
}

impl Following {
    pub(super) fn new(
        core: &Arc<Core>,
        upstream: &Arc<Upstream>,
        form: &Arc<Form>,
        copy: Option<AnswerCopy>,
    ) -> Self {
        let kept = match (copy, &**form) {
            (Some(copy), _) => Kept::Copy(copy),
            (None, Form::Commit(_)) => Kept::Bytes(BytesMut::new()),
            (None, Form::Get { .. } | Form::Query | Form::Batch(_)) => Kept::Nothing,
        };
        let (core, upstream) = (Arc::clone(core), Arc::clone(upstream));
        Self { core, upstream, form: Arc::clone(form), kept }
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
                self.sees(messages.last());
            }
            Kept::Nothing => {}
        }
    }

    fn keep(&self, copy: AnswerCopy) {
        copy.keep(|bytes| {
            let messages = framing::messages(&bytes)?;
            self.sees(messages.last());
            let root = self.upstream.connector.shared.client.known_root()?;
            self.form.reply(messages, root)
        });
    }

    fn sees(&self, message: Option<&Bytes>) {
        if let Some(time) = message.and_then(|message| stock::latest(&self.form, message)) {
            self.core.estimates.saw(time);
        }
    }
}

impl Drop for Following {
    /// A client that got its documents may leave before the end of the answer, and Google's for Python does. What was
    /// asked for by name is known to be all of it.
    fn drop(&mut self) {
        if let (Kept::Copy(_), Form::Get { .. }) = (&self.kept, &*self.form)
            && let Kept::Copy(copy) = std::mem::replace(&mut self.kept, Kept::Nothing)
        {
            self.keep(copy);
        }
    }
}
