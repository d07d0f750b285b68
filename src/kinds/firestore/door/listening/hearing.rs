//! What the server says on a Listen, and what becomes of that when its stream breaks.

use bytes::Bytes;
use hyper::{HeaderMap, body::Frame};
use tonic::Code;

use super::{Listening, shut::is_transient};
use crate::kinds::firestore::{
    door::{framing::take_first, outcome::status_of, pool::LASTING_WINDOW, telling::Told},
    protocol::{stock, targets::Heard},
};

/// How often in a row a Listen is begun again because the server has said what is not a message.
const FAULTS_MAX: u32 = 5;

impl Listening {
    /// Takes what the server says.
    pub(super) async fn hears(&mut self, frame: Option<Result<Frame<Bytes>, tonic::Status>>) {
        let Some(Ok(frame)) = frame else { return self.breaks() };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                let code = status_of(&trailers).map_or(Code::Unknown, |status| status.code());
                if is_transient(code, true) || code != Code::Ok && self.targets.is_refused() {
                    return self.breaks_by(Some(trailers));
                }
                return self.end(trailers);
            }
        };
        let Some(open) = &mut self.open else { return };
        let Ok(mut whole) = open.gathered.feed(data) else { return self.breaks_malformed() };
        let (wanted, most) = (open.gathered.wanted(), LASTING_WINDOW as usize);
        if let Err(told) = self.core.hold_above(&mut open.room, wanted, most).await {
            return self.ends(&told);
        }
        let (all, mut from, mut at) = (whole.clone(), 0, 0);
        while let Some((framed, message)) = take_first(&mut whole) {
            let heard = if let Some(message) = message {
                if let Some(time) = stock::heard_at(&message) {
                    self.core.estimates.saw(time);
                }
                self.targets.hears(&message)
            } else {
                self.targets.cannot_be_read();
                Heard::Pass
            };
            let end = at + framed.len();
            if heard != Heard::Pass {
                self.passes(all.slice(from..at));
                from = end;
            }
            match heard {
                Heard::Anew => return self.breaks(),
                Heard::Malformed => return self.breaks_malformed(),
                Heard::Pass | Heard::Hide => at = end,
            }
        }
        self.passes(all.slice(from..at));
    }

    /// The stream to the server broke.
    fn breaks(&mut self) {
        self.breaks_by(None);
    }

    /// The same; `said` is what the server said of it.
    fn breaks_by(&mut self, said: Option<HeaderMap>) {
        if self.targets.is_opaque() {
            let trailers = said.unwrap_or_else(|| self.lost().trailers());
            return self.end(trailers);
        }
        tracing::debug!("a client's Listen has lost its connection to the server");
        if self.open.take().is_some_and(|open| open.since.elapsed() >= self.pace.backoff_max) {
            (self.failures, self.faults) = (0, 0);
        }
        let gone = self.targets.broke();
        self.tells(gone);
        self.waits();
    }

    /// The server has said what is not a message. What is behind that cannot be read, so its stream is as good as broken;
    /// but a server that goes on like this has nothing else to say.
    fn breaks_malformed(&mut self) {
        self.faults += 1;
        if self.faults > FAULTS_MAX {
            return self
                .ends(&Told::fault("the server repeatedly sent something that is not a message"));
        }
        self.breaks();
    }
}
