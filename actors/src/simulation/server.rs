//! A model backend: a register for each key, the tokens that it knows, and what is on its way to it.
//!
//! ```text
//!   sent ──▶ on its way ──apply_at──▶ applied, or recognised by its token ──answer_at──▶ answered
//! ```
//! What was sent arrives whatever becomes of its sender. Of one key it arrives in the order in which it was sent, as on
//! one connection; what arrives after its sender gave it up is what the connector's fence waits for.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use fusebox_state::OpId;

use super::body::{Body, Word};

/// What a backend does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Answers.
    Up,
    /// Answers late, or too late.
    Slow,
    /// Takes what is sent and never answers.
    Hangs,
    /// Applies what is sent and loses the answer.
    Deaf,
    /// Breaks the connection, before or after it has applied what is sent.
    Breaks,
    /// Refuses connections.
    Down,
    /// Neither accepts connections nor refuses them.
    Unreachable,
    /// Says that it has too much to do.
    Overloaded,
    /// Refuses everybody.
    Locked,
    /// Applies what is sent and answers with an error that nobody knows.
    Odd,
    /// Any of these, from attempt to attempt.
    Flaps,
}

impl Mode {
    /// What a fault makes of a backend.
    pub(super) const FAULTY: [Self; 10] = [
        Self::Slow,
        Self::Hangs,
        Self::Deaf,
        Self::Breaks,
        Self::Down,
        Self::Unreachable,
        Self::Overloaded,
        Self::Locked,
        Self::Odd,
        Self::Flaps,
    ];

    /// What it is for one attempt.
    fn of_one(self, rng: &mut Rng) -> Self {
        const ONES: [Mode; 6] =
            [Mode::Up, Mode::Up, Mode::Down, Mode::Breaks, Mode::Slow, Mode::Overloaded];
        match self {
            Self::Flaps => rng.choice(ONES).unwrap_or(Self::Up),
            other => other,
        }
    }
}

/// How a sending ends for its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Reply,
    /// The connection broke after something was sent.
    Broken,
    /// The connection was refused.
    Refused,
    /// It was not made in time.
    NoConnection,
    TooMuch,
    WrongPassword,
    Strange,
    /// None came.
    Silence,
}

/// What becomes of a sending.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sending {
    /// Its number.
    pub(super) ticket: u64,
    /// When its sender knows how it ended, in milliseconds of the world.
    pub(super) ends_at: u64,
    pub(super) answer: Answer,
}

/// Calls on their way.
#[derive(Debug)]
struct OnTheWay {
    at: u64,
    ticket: u64,
    calls: Vec<(Body, Option<OpId>)>,
    /// When its sender gives it up.
    given_up_at: u64,
}

/// What a call came to at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It was applied, or read this.
    Done(u64),
    /// It was applied before.
    Recognised,
    Rejected,
}

/// A model backend; see the [module](self).
pub(super) struct Server {
    mode: Mode,
    /// When it is well again, in milliseconds of the world.
    well_at: u64,
    held: BTreeMap<u8, u64>,
    tokens: BTreeSet<OpId>,
    on_the_way: Vec<OnTheWay>,
    effects: BTreeMap<u64, Vec<Effect>>,
    tickets: u64,
}

impl Server {
    pub(super) fn new() -> Self {
        Self {
            mode: Mode::Up,
            well_at: 0,
            held: BTreeMap::new(),
            tokens: BTreeSet::new(),
            on_the_way: Vec::new(),
            effects: BTreeMap::new(),
            tickets: 0,
        }
    }

    /// It is in that mode until then, in milliseconds of the world.
    pub(super) fn fails(&mut self, mode: Mode, until: u64) {
        (self.mode, self.well_at) = (mode, until);
    }

    /// Calls are sent at `now` as one; each has its token. They are given up when `timeout` has passed.
    pub(super) fn send(
        &mut self,
        rng: &mut Rng,
        now: u64,
        timeout: u64,
        calls: Vec<(Body, Option<OpId>)>,
    ) -> Sending {
        self.tickets += 1;
        let ticket = self.tickets;
        let given_up_at = now + timeout;
        let mode = if now < self.well_at { self.mode.of_one(rng) } else { Mode::Up };
        let (mut there, mut back) = (rng.u64(1..4), rng.u64(1..4));
        if mode == Mode::Slow {
            (there, back) = (rng.u64(1..=timeout), rng.u64(1..=timeout));
        }
        let not_sent = match mode {
            Mode::Down => Some((Answer::Refused, now + 1)),
            Mode::Unreachable => Some((Answer::NoConnection, given_up_at)),
            Mode::Overloaded => Some((Answer::TooMuch, now + there)),
            Mode::Locked => Some((Answer::WrongPassword, now + there)),
            Mode::Hangs => Some((Answer::Silence, given_up_at)),
            Mode::Breaks if rng.bool() => Some((Answer::Broken, now + there)),
            _ => None,
        };
        if let Some((answer, ends_at)) = not_sent {
            return Sending { ticket, ends_at, answer };
        }
        // One connection: of one key nothing passes what was sent before.
        let at = calls.iter().map(|(body, _)| self.last_of(*body)).fold(now + there, u64::max);
        let answered_at = at + back;
        let answer = match mode {
            Mode::Deaf => Answer::Silence,
            Mode::Breaks => Answer::Broken,
            _ if answered_at >= given_up_at => Answer::Silence,
            Mode::Odd => Answer::Strange,
            _ => Answer::Reply,
        };
        let ends_at = if answer == Answer::Silence { given_up_at } else { answered_at };
        // What is given up is reset, and arrives all the same or not at all.
        if at < given_up_at || rng.bool() {
            self.on_the_way.push(OnTheWay { at, ticket, calls, given_up_at: ends_at });
            self.on_the_way.sort_by_key(|it| (it.at, it.ticket));
        }
        Sending { ticket, ends_at, answer }
    }

    fn last_of(&self, body: Body) -> u64 {
        let of = |it: &&OnTheWay| it.calls.iter().any(|(other, _)| other.key == body.key);
        self.on_the_way.iter().filter(of).map(|it| it.at).max().unwrap_or(0)
    }

    /// Until when something that was given up can land at one of these keys.
    pub(super) fn lands_until(&self, keys: &[u8], now: u64) -> Option<u64> {
        let of = |it: &&OnTheWay| {
            it.given_up_at <= now && it.calls.iter().any(|(body, _)| keys.contains(&body.key))
        };
        self.on_the_way.iter().filter(of).map(|it| it.at).max()
    }

    /// Nobody waits any more for what is on its way: its sender was killed.
    pub(super) fn sender_ended(&mut self, now: u64) {
        for it in &mut self.on_the_way {
            it.given_up_at = it.given_up_at.min(now);
        }
        self.effects.clear();
    }

    /// Lets arrive what has arrived by `now`. Returns the writes that were applied, in order, and when.
    pub(super) fn arrive(&mut self, now: u64) -> Vec<(u64, Body)> {
        let arrived = self.on_the_way.partition_point(|it| it.at <= now);
        let mut applied = Vec::new();
        for OnTheWay { at, ticket, calls, .. } in
            self.on_the_way.drain(..arrived).collect::<Vec<_>>()
        {
            let mut own = Vec::new();
            // The calls of a group have one token.
            let known: Vec<bool> = calls
                .iter()
                .map(|(_, token)| token.is_some_and(|it| self.tokens.contains(&it)))
                .collect();
            for ((body, token), known) in calls.into_iter().zip(known) {
                let effect = self.apply(body, token, known);
                if matches!(effect, Effect::Done(_)) && body.word != Word::Get {
                    applied.push((at, body));
                }
                own.push(effect);
            }
            self.effects.insert(ticket, own);
        }
        applied
    }

    fn apply(&mut self, body: Body, token: Option<OpId>, known: bool) -> Effect {
        if body.word == Word::Get {
            return Effect::Done(self.held.get(&body.key).copied().unwrap_or(0));
        }
        if known {
            return Effect::Recognised;
        }
        if body.word == Word::Bad {
            return Effect::Rejected;
        }
        self.tokens.extend(token);
        if body.word != Word::Row {
            self.held.insert(body.key, body.id);
        }
        Effect::Done(body.id)
    }

    /// What a sending's calls came to, which have arrived.
    pub(super) fn take_effects(&mut self, ticket: u64) -> Vec<Effect> {
        self.effects.remove(&ticket).unwrap_or_default()
    }

    /// The markers of these tokens go.
    pub(super) fn forget(&mut self, tokens: &[OpId]) {
        self.tokens.retain(|token| !tokens.contains(token));
    }
}
