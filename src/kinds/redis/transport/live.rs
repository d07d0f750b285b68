//! Live writes, and what is noted of the deadlines of their keys ([`crate::kinds::redis::protocol::deadlines`]).

use bytes::Bytes;
use fusebox_actors::connector::{Attempt, Attempted};
use fusebox_state::UnixMillis;

use super::carry::{Links, Read};
use crate::kinds::redis::protocol::{
    deadlines::{Begun, OnWire, Way, Written},
    resp,
};

/// What the answer to a live write tells of the deadlines of its keys. To be dropped when the write has ended.
pub(crate) enum Noting {
    Nothing(OnWire),
    Keys(Begun, OnWire),
}

impl Links {
    /// Carries a live write that is one command.
    pub(super) async fn carry_live(&self, attempt: Attempt<'_>) -> Attempted {
        // It may be overtaken on its way to the connection by another caller's.
        let noted = self.begins(attempt.body, (attempt.accepted_at, attempt.now), None);
        let ended = self.send(attempt.body, attempt.clone()).await;
        if let (Noting::Keys(begun, _), Ok(reply)) = (&noted, &ended.result) {
            self.answered(attempt.body, begun, reply);
        }
        drop(noted);
        ended
    }

    /// Notes the deadline that a live write carries, which is about to be sent that way. Most writes carry none while
    /// none is known.
    pub(crate) fn begins(
        &self,
        body: &[u8],
        (accepted_at, now): (UnixMillis, UnixMillis),
        way: Way,
    ) -> Noting {
        let deadlines = self.deadlines();
        if let Some([name, key, _]) = resp::arguments_of(body)
            && name.eq_ignore_ascii_case(b"SET")
        {
            return Noting::Nothing(deadlines.begin_plain(key, way));
        }
        let Some(read) = resp::arguments(body).ok().and_then(|args| self.read(args)) else {
            return Noting::Nothing(deadlines.begin_unread(Some(&[]), way));
        };
        if read.touches_anything {
            return Noting::Nothing(deadlines.begin_unread(None, way));
        }
        deadlines.tell(now);
        let on_wire = deadlines.hold(&[read.written()], way);
        let begun = on_wire.holds().then(|| deadlines.begin(read.written(), accepted_at));
        match begun.filter(Begun::awaits_answer) {
            Some(begun) => Noting::Keys(begun, on_wire),
            None => Noting::Nothing(on_wire),
        }
    }

    /// The same of the commands of a transaction, with what is to be noted of each; of none, if there is nothing.
    /// `None` if one of them may write to any key.
    pub(crate) fn begin_together<'a>(
        &self,
        commands: impl Iterator<Item = &'a Bytes>,
        now: UnixMillis,
        way: Way,
    ) -> Option<(OnWire, Vec<Begun>)> {
        let reads = commands.map(|command| self.read(resp::arguments(command).ok()?));
        let reads: Vec<Read<'_>> = reads.collect::<Option<_>>()?;
        if reads.iter().any(|read| read.touches_anything) {
            return None;
        }
        let deadlines = self.deadlines();
        deadlines.tell(now);
        let writes: Vec<Written<'_, '_>> = reads.iter().map(Read::written).collect();
        let on_wire = deadlines.hold(&writes, way);
        let noted = |written: &Written<'_, '_>| deadlines.begin(*written, now);
        let begun = if on_wire.holds() { writes.iter().map(noted).collect() } else { Vec::new() };
        Some((on_wire, begun))
    }

    /// A live write whose deadlines were noted was answered.
    pub(crate) fn answered(&self, body: &[u8], begun: &Begun, reply: &[u8]) {
        if let Some(read) = resp::arguments(body).ok().and_then(|args| self.read(args)) {
            self.deadlines().answered(read.written(), begun, reply);
        }
    }
}
