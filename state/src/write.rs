//! What is known of a write, and what may be done with it next.
//!
//! Everything that might send a write asks this one state: a live attempt and its repetition, the step into
//! the queue, replay, a dead letter and its requeue, a restart, a shutdown.
//!
//! ```text
//!              sent                applied
//!   Fresh ──────────────▶ OnWire ───────────▶ Applied
//!              ▲           │   │
//!        sent  │  nothing  │   │ unknown, or nothing after an earlier attempt in doubt
//!   NotExecuted ◀──────────┘   ▼
//!                           InDoubt ──sent again, as `next` allows──▶ OnWire (the doubt stays)
//!                              │ a newer write was acknowledged
//!                              ▼
//!                          Overtaken
//! ```
//!
//! # Invariants
//! 1. *In doubt is for ever*, until the write is known to be applied: an attempt that wrote nothing says nothing
//!    of the attempts before it.
//! 2. A write in doubt is sent again only if a repetition changes nothing ([`Repeat::Absolute`]), or if every
//!    attempt has a token and the backend is proven to recognise it ([`Next::Prove`]). Any other write in
//!    doubt is given up.
//! 3. A proof that was refused once ([`End::Unprovable`]) is not asked for again, except by an
//!    [operator](WriteState::asked_again).
//! 4. What is known and what may be done next are two things: a write that the backend refuses in the middle of
//!    its rows is given up for the refusal's sake, and its outcome is unknown all the same.
//!
//! # After a crash
//! A live write that was not acknowledged is its caller's. A queued write whose sending was noted (and synced
//! before it was sent) is [in doubt](WriteState::restored); one without such a note is fresh. An absolute write
//! needs no note: sent or not, it may be sent.
//!
//! The state is a few bytes and allocates nothing, so that a door can carry it through the hot path.

/// What a repetition of a write rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Repeat {
    /// A repetition leaves the same state.
    Absolute,
    /// Every attempt has a token by which the backend recognises a repetition, if that is proven.
    Token,
    /// Nothing distinguishes a repetition from the first.
    Never,
}

/// What is known of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Known {
    /// It was never sent.
    Fresh,
    /// It was sent and has not ended.
    OnWire,
    /// It was sent, and no attempt wrote anything: that is proven.
    NotExecuted,
    /// An attempt may have written something, or all of it.
    InDoubt,
    /// It was in doubt, and a newer write of its lanes was acknowledged: sent again it would undo that one.
    Overtaken,
    /// The backend has applied it.
    Applied,
}

/// How an attempt ended, as far as the write is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The backend applied it, now or in an earlier attempt.
    Applied,
    /// This attempt wrote nothing: that is proven.
    Nothing,
    /// This attempt may have written something.
    Unknown,
    /// It was not sent, because nothing proves that the backend would recognise it.
    Unprovable,
}

/// What may be done with a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Next {
    /// It may be sent, as if for the first time.
    Send,
    /// It may be sent again as it is, in its place in the order of its lanes.
    Repeat,
    /// It may be sent again once it is proven that the backend recognises it.
    Prove,
    /// It is on the wire.
    Wait,
    /// It must not be sent again. Its outcome is unknown.
    GiveUp,
    /// It is applied.
    Done,
}

/// The state of one write; see the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteState {
    known: Known,
    /// An attempt before the present one may have written something.
    doubted: bool,
    /// No proof can be had.
    unprovable: bool,
    repeat: Repeat,
}

impl WriteState {
    /// A write that was never sent.
    pub fn fresh(repeat: Repeat) -> Self {
        Self { known: Known::Fresh, doubted: false, unprovable: false, repeat }
    }

    /// A write that the queue brought back: in doubt if its sending was noted.
    pub fn restored(repeat: Repeat, noted: bool) -> Self {
        let mut state = Self::fresh(repeat);
        if noted {
            state.sent();
            state.end(End::Unknown);
        }
        state
    }

    /// It goes on the wire.
    pub fn sent(&mut self) {
        debug_assert!(matches!(self.next(), Next::Send | Next::Repeat | Next::Prove), "{self:?}");
        self.known = Known::OnWire;
    }

    /// An attempt ended. May also be called for one that never left.
    pub fn end(&mut self, end: End) {
        match end {
            End::Applied => {
                self.known = Known::Applied;
                return;
            }
            End::Nothing => {}
            End::Unknown => self.doubted = true,
            End::Unprovable => (self.doubted, self.unprovable) = (true, true),
        }
        if !matches!(self.known, Known::Applied | Known::Overtaken) {
            self.known = if self.doubted { Known::InDoubt } else { Known::NotExecuted };
        }
    }

    /// A newer write of its lanes was acknowledged. Of meaning for one in doubt.
    pub fn overtaken(&mut self) {
        if self.known == Known::InDoubt {
            self.known = Known::Overtaken;
        }
    }

    /// An operator asks for the proof once more. The doubt stays.
    pub fn asked_again(&mut self) {
        self.unprovable = false;
    }

    /// An operator has checked that it was not applied.
    pub fn cleared(&mut self) {
        *self = Self::fresh(self.repeat);
    }

    /// What is known.
    pub fn known(&self) -> Known {
        self.known
    }

    /// What a repetition rests on.
    pub fn repeat(&self) -> Repeat {
        self.repeat
    }

    /// Whether it may have been applied without anybody having heard so. While an attempt is on the wire, the
    /// attempts before it count.
    pub fn is_in_doubt(&self) -> bool {
        self.doubted && self.known != Known::Applied
    }

    /// What may be done with it.
    pub fn next(&self) -> Next {
        match (self.known, self.repeat) {
            (Known::Fresh | Known::NotExecuted, _) => Next::Send,
            (Known::OnWire, _) => Next::Wait,
            (Known::InDoubt, Repeat::Absolute) => Next::Repeat,
            (Known::InDoubt, Repeat::Token) if !self.unprovable => Next::Prove,
            (Known::InDoubt | Known::Overtaken, _) => Next::GiveUp,
            (Known::Applied, _) => Next::Done,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REPEATS: [Repeat; 3] = [Repeat::Absolute, Repeat::Token, Repeat::Never];

    #[test]
    fn every_state_says_what_may_be_done_next() {
        for (repeat, in_doubt) in [
            (Repeat::Absolute, Next::Repeat),
            (Repeat::Token, Next::Prove),
            (Repeat::Never, Next::GiveUp),
        ] {
            let mut state = WriteState::fresh(repeat);
            assert_eq!((state.known(), state.next()), (Known::Fresh, Next::Send));
            state.sent();
            assert_eq!((state.known(), state.next()), (Known::OnWire, Next::Wait));
            state.end(End::Nothing);
            assert_eq!((state.known(), state.next()), (Known::NotExecuted, Next::Send));
            assert!(!state.is_in_doubt());
            state.sent();
            state.end(End::Unknown);
            assert_eq!((state.known(), state.next()), (Known::InDoubt, in_doubt));
            let mut overtaken = state;
            overtaken.overtaken();
            assert_eq!((overtaken.known(), overtaken.next()), (Known::Overtaken, Next::GiveUp));
            state.end(End::Applied);
            assert_eq!((state.known(), state.next()), (Known::Applied, Next::Done));
            assert!(!state.is_in_doubt());
        }
    }

    #[test]
    fn an_attempt_that_wrote_nothing_says_nothing_of_those_before_it() {
        let mut state = WriteState::fresh(Repeat::Token);
        state.sent();
        state.end(End::Unknown);
        state.sent();
        assert!(state.is_in_doubt(), "also while it is on the wire again");
        state.end(End::Nothing);
        assert_eq!((state.known(), state.next()), (Known::InDoubt, Next::Prove));
    }

    #[test]
    fn a_proof_that_was_refused_is_not_asked_for_again() {
        let mut state = WriteState::restored(Repeat::Token, true);
        assert_eq!(state.next(), Next::Prove);
        state.end(End::Unprovable);
        assert_eq!((state.known(), state.next()), (Known::InDoubt, Next::GiveUp));
        state.end(End::Nothing);
        assert_eq!(state.next(), Next::GiveUp);
        state.asked_again();
        assert_eq!(
            (state.known(), state.next()),
            (Known::InDoubt, Next::Prove),
            "an operator asks"
        );
        state.sent();
        state.end(End::Unprovable);
        state.cleared();
        assert_eq!(state.next(), Next::Send, "an operator has looked");
    }

    #[test]
    fn a_restart_brings_back_what_was_noted_as_in_doubt() {
        for repeat in REPEATS {
            assert_eq!(WriteState::restored(repeat, false), WriteState::fresh(repeat));
            assert!(WriteState::restored(repeat, true).is_in_doubt());
        }
    }

    #[test]
    fn only_what_is_in_doubt_can_be_overtaken() {
        let mut state = WriteState::fresh(Repeat::Absolute);
        state.overtaken();
        assert_eq!(state.known(), Known::Fresh);
        state.sent();
        state.overtaken();
        assert_eq!(state.known(), Known::OnWire);
        state.end(End::Nothing);
        state.overtaken();
        assert_eq!(state.next(), Next::Send);
    }

    /// What the server does with an attempt, and whether fusebox hears of it.
    #[derive(Clone, Copy, Debug)]
    enum Server {
        Applies,
        AppliesInPart,
        Refuses,
        LosesTheRequest,
        LosesTheAnswer,
        LosesTheAnswerInPart,
        Remembers(bool),
        RestartsUs,
        AcknowledgesANewer,
    }

    fn server() -> impl Strategy<Value = Server> {
        prop_oneof![
            Just(Server::Applies),
            Just(Server::AppliesInPart),
            Just(Server::Refuses),
            Just(Server::LosesTheRequest),
            Just(Server::LosesTheAnswer),
            Just(Server::LosesTheAnswerInPart),
            any::<bool>().prop_map(Server::Remembers),
            Just(Server::RestartsUs),
            Just(Server::AcknowledgesANewer),
        ]
    }

    proptest! {
        // 4,000, or as many as PROPTEST_CASES says.
        #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(4_000)))]

        /// One write against a server that applies, half-applies, refuses, forgets, and loses requests and
        /// answers, over restarts: its rows are there at most once, nothing newer is undone, and `Applied` is
        /// the truth. The write is noted as sent before it is sent, as the queue notes it.
        #[test]
        fn a_write_is_applied_once_whatever_the_server_does(
            repeat in prop::sample::select(REPEATS.to_vec()),
            events in prop::collection::vec(server(), 1..12),
        ) {
            let mut state = WriteState::fresh(repeat);
            // Rows that the server holds of the write (2 are the whole), whether it recognises its token, whether
            // there is a newer write, and whether the sending is noted.
            let (mut rows, mut seen, mut recognises) = (0_u32, false, true);
            let (mut newer, mut undone, mut noted) = (false, false, false);
            for event in events {
                match event {
                    Server::Remembers(window) => recognises = window,
                    Server::AcknowledgesANewer => {
                        // The lane is held for a queued write; a live one in doubt asks before each repetition.
                        if state.known() == Known::InDoubt && repeat == Repeat::Absolute {
                            newer = true;
                            state.overtaken();
                        }
                    }
                    Server::RestartsUs => {
                        if !matches!(state.known(), Known::Applied | Known::Overtaken) {
                            state = WriteState::restored(repeat, noted);
                        }
                    }
                    Server::Applies | Server::AppliesInPart | Server::Refuses
                    | Server::LosesTheRequest | Server::LosesTheAnswer | Server::LosesTheAnswerInPart => {
                        match state.next() {
                            Next::Send | Next::Repeat => {}
                            Next::Prove if recognises => {}
                            Next::Prove => {
                                state.end(End::Unprovable);
                                continue;
                            }
                            Next::Wait | Next::GiveUp | Next::Done => continue,
                        }
                        state.sent();
                        noted |= repeat != Repeat::Absolute;
                        let part = matches!(event, Server::AppliesInPart | Server::LosesTheAnswerInPart);
                        let arrives = !matches!(event, Server::Refuses | Server::LosesTheRequest);
                        if arrives && newer {
                            undone = true;
                        }
                        let adds = match repeat {
                            _ if !arrives => 0,
                            Repeat::Token if seen && recognises => 0,
                            // A backend recognises part by part: what is there is not written again.
                            _ if part && repeat == Repeat::Token => u32::from(rows == 0),
                            Repeat::Token => 2 - rows.min(2),
                            Repeat::Absolute => { rows = 0; if part { 1 } else { 2 } }
                            Repeat::Never => if part { 1 } else { 2 },
                        };
                        rows += adds;
                        seen |= arrives && !part;
                        let end = match event {
                            Server::Applies => End::Applied,
                            Server::Refuses => End::Nothing,
                            _ => End::Unknown,
                        };
                        state.end(end);
                        if end == End::Nothing && !state.is_in_doubt() {
                            // The note is taken back.
                            noted = false;
                        }
                        prop_assert!(end != End::Applied || rows == 2, "applied is the truth");
                    }
                }
                prop_assert!(rows <= 2, "{rows} of 2 rows with {repeat:?}");
                prop_assert!(!undone, "a newer write was undone");
                let may_be_there = rows > 0 && state.known() != Known::Applied;
                prop_assert!(!may_be_there || state.is_in_doubt() || repeat == Repeat::Absolute,
                    "what may be there is in doubt");
            }
        }
    }
}
