//! What a key holds for a reader while writes to it are queued, if those settle it.
//!
//! The answer is that of a server that had stayed up: each write meets the key as it was when the write was
//! *accepted*, so a deadline that had passed by then has ended the key, and one that passed later is judged by
//! `now`. What is followed per key:
//!
//! ```text
//!  Nothing    there is no such key
//!  Value      a string, known
//!  Something  there is one, and it is not known what it holds
//!  Unknown    nothing is known; how it begins
//! ```
//! each but the first with the key's deadline if that is known; of Unknown it is the deadline that the key
//! has *if* it is there. Answered are GET and EXISTS of Nothing and Value. Beside that it is followed whether the
//! writes touched no more than the time to live: then what any read of the key answered before them still holds until
//! that is over. A write that could fail for the type
//! of what it meets (`SET … GET` over a list) or that depends on whether it meets anything (NX, XX) determines
//! the key only if that is known. A residue ([`super::residue`]) tells the deadline of a key whose value is on
//! the server.
//!
//! Lanes are hashes, so every write's own keys are looked at.

use bytes::{Bytes, BytesMut};
use fusebox_actors::connector::{QueuedWrite, Said, Slot};
use fusebox_state::UnixMillis;

use super::{
    cache,
    commands::Commands,
    effect::{Expiry, SetOptions},
    internal::Form,
    residue, resp,
    ttl::{self, Fate},
};

/// When a key ends, in milliseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ends {
    At(u64),
    Never,
    Unknown,
}

/// What is known of the key.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Held<'a> {
    Nothing,
    Value(&'a [u8], Ends),
    Something(Ends),
    Unknown(Ends),
}

/// What is known of one key, write by write.
#[derive(Clone, Debug)]
pub(crate) struct Followed {
    key: Bytes,
    known: Known,
    /// No write touched more than its time to live, and each of these did so for certain.
    as_before: bool,
}

/// [`Held`], to be kept.
#[derive(Clone, Debug)]
enum Known {
    Nothing,
    Value(Bytes, Ends),
    Something(Ends),
    Unknown(Ends),
}

impl Known {
    fn held(&self) -> Held<'_> {
        match self {
            Self::Nothing => Held::Nothing,
            Self::Value(value, ends) => Held::Value(value, *ends),
            Self::Something(ends) => Held::Something(*ends),
            Self::Unknown(ends) => Held::Unknown(*ends),
        }
    }
}

const UNKNOWN: Held<'static> = Held::Unknown(Ends::Unknown);

impl Followed {
    /// Begins with nothing known of the key that `slot` reads. `None` for a read of more than one.
    pub(crate) fn of(commands: &Commands, slot: &Slot) -> Option<Self> {
        let read = resp::arguments(&slot.key).ok()?;
        let key = Bytes::copy_from_slice(key_of(commands, &read)?);
        Some(Self { key, known: Known::Unknown(Ends::Unknown), as_before: true })
    }

    /// Whether `slot` reads this key.
    pub(crate) fn is_of(&self, commands: &Commands, slot: &Slot) -> bool {
        let read = resp::arguments(&slot.key);
        read.is_ok_and(|read| key_of(commands, &read) == Some(&*self.key))
    }

    /// Goes on with `write`. Returns whether the key would be known as well if nothing had been known before.
    pub(crate) fn write(&mut self, commands: &Commands, write: &QueuedWrite) -> bool {
        let before = self.known.held();
        let after = step(before, commands, write, &self.key);
        let alone = before == UNKNOWN || after == step(UNKNOWN, commands, write, &self.key);
        self.as_before = self.as_before && leaves_value(commands, write, &self.key);
        if after != before {
            self.known = match after {
                Held::Nothing => Known::Nothing,
                Held::Value(value, ends) => Known::Value(self.known.keep(value), ends),
                Held::Something(ends) => Known::Something(ends),
                Held::Unknown(ends) => Known::Unknown(ends),
            };
        }
        alone
    }

    /// What is known of `slot`'s read at `now`.
    pub(crate) fn says(&self, slot: &Slot, now: UnixMillis, resp3: bool) -> Said {
        let read = resp::arguments(&slot.key).unwrap_or_default();
        let name = read.first().copied().unwrap_or_default();
        match (name, self.known.held().met_at(now.get())) {
            (b"GET", Held::Nothing) => Said::Reply(cache::nil(resp3)),
            (b"GET", Held::Value(value, _)) => {
                let mut out = BytesMut::with_capacity(value.len() + 16);
                resp::write_bulk(&mut out, value);
                Said::Reply(out.freeze())
            }
            (b"EXISTS", Held::Nothing) => Said::Reply(Bytes::from_static(b":0\r\n")),
            (b"EXISTS", Held::Value(..)) => Said::Reply(Bytes::from_static(b":1\r\n")),
            (_, Held::Unknown(_) | Held::Something(_)) if self.as_before => Said::AsBefore,
            _ => Said::Nothing,
        }
    }

    /// Bytes that it holds.
    pub(crate) fn bytes(&self) -> usize {
        let value = if let Known::Value(value, _) = &self.known { value.len() } else { 0 };
        self.key.len() + value
    }
}

impl Known {
    /// `value`, without a copy if it is the one that is held.
    fn keep(&self, value: &[u8]) -> Bytes {
        match self {
            Self::Value(held, _) if std::ptr::eq(&raw const **held, value) => held.clone(),
            _ => Bytes::copy_from_slice(value),
        }
    }
}

/// The one key that `read` reads.
fn key_of<'a>(commands: &Commands, read: &[&'a [u8]]) -> Option<&'a [u8]> {
    if let &[b"GET" | b"EXISTS", key] = read {
        return Some(key);
    }
    match commands.find(read)?.keys(read)?.as_slice() {
        &[place] => read.get(place).copied(),
        _ => None,
    }
}

/// Whether a queued write of `key` leaves what that holds as it is, and what it does to its time to live is certain.
/// One of another key says no: a reading may begin at it, and then nothing is known of what is before.
fn leaves_value(commands: &Commands, write: &QueuedWrite, key: &[u8]) -> bool {
    match Form::of(&write.body) {
        Some(Form::Ends(ends)) => ends.sure && ends.of(key).is_some(),
        Some(form) => {
            let steps = form.steps().iter();
            let mut mine = steps.filter(|step| residue::touches(commands, step, key)).peekable();
            mine.peek().is_some() && mine.all(|step| step_leaves_value(commands, &step.args, key))
        }
        None => false,
    }
}

fn step_leaves_value(commands: &Commands, args: &[&[u8]], key: &[u8]) -> bool {
    let Some(spec) = commands.find(args) else { return false };
    let Some(places) = spec.keys(args) else { return false };
    let moves_time =
        matches!(&*spec.name, "persist" | "expire" | "pexpire" | "expireat" | "pexpireat");
    places.into_iter().filter(|place| args.get(*place) == Some(&key)).all(|place| {
        let touch = ttl::touch(&spec.name, args, place);
        touch.sure && (moves_time || touch.fate == Fate::Keeps)
    })
}

/// What `held` becomes by a queued write.
fn step<'a>(held: Held<'a>, commands: &Commands, write: &'a QueuedWrite, key: &[u8]) -> Held<'a> {
    let held = held.met_at(write.accepted_at.get());
    match Form::of(&write.body) {
        Some(Form::Ends(ends)) => match ends.of(key) {
            Some(at) if ends.sure => held.told_of(at),
            Some(_) => UNKNOWN,
            None => held,
        },
        Some(form) => form.steps().iter().fold(held, |held, step| {
            let told = step.deadlines.iter().find(|(other, _)| *other == key);
            let held = told.map_or(held, |(_, at)| held.told_of(*at));
            after(held, commands, &step.args, key, write.accepted_at.get())
        }),
        None => UNKNOWN,
    }
}

impl Held<'_> {
    /// What is there at `time`.
    fn met_at(self, time: u64) -> Self {
        match self {
            Held::Value(_, Ends::At(at))
            | Held::Something(Ends::At(at))
            | Held::Unknown(Ends::At(at))
                if at <= time =>
            {
                Held::Nothing
            }
            held => held,
        }
    }

    /// The key was there when a write was accepted, to end at `at`.
    fn told_of(self, at: u64) -> Self {
        match self {
            Held::Unknown(_) | Held::Something(Ends::Unknown) => Held::Something(Ends::At(at)),
            held => held,
        }
    }
}

/// What `held` becomes by the write `args`, accepted at `accepted`.
fn after<'a>(
    held: Held<'a>,
    commands: &Commands,
    args: &[&'a [u8]],
    key: &[u8],
    accepted: u64,
) -> Held<'a> {
    let unknown = Held::Unknown(Ends::Unknown);
    let Some(spec) = commands.find(args) else { return unknown };
    let Some(places) = spec.keys(args) else { return unknown };
    let mut mine = places.into_iter().filter(|place| args.get(*place) == Some(&key)).peekable();
    let Some(first) = mine.peek().copied() else { return held };
    match &*spec.name {
        "set" => {
            let options = args.get(3..).and_then(SetOptions::parse);
            return options.map_or(unknown, |options| set(held, options, args, accepted));
        }
        "getset" => return set(held, SetOptions { get: true, ..SetOptions::NONE }, args, accepted),
        "setnx" => {
            let options =
                SetOptions { conditional: true, only_if_absent: true, ..SetOptions::NONE };
            return set(held, options, args, accepted);
        }
        "setex" | "psetex" => {
            return match ttl::touch(&spec.name, args, 1).fate {
                Fate::Sets(expiry) => valued(held, args.get(3), expiry, accepted),
                _ => unknown,
            };
        }
        "mset" => {
            let value = mine.last().and_then(|place| args.get(place + 1));
            return value.map_or(unknown, |value| Held::Value(value, Ends::Never));
        }
        "del" | "unlink" => return Held::Nothing,
        "getdel" => {
            return match held {
                Held::Nothing | Held::Value(..) => Held::Nothing,
                Held::Something(_) | Held::Unknown(_) => unknown,
            };
        }
        "persist" | "getex" | "expire" | "pexpire" | "expireat" | "pexpireat" => {}
        "rename" if first == 1 && args.get(1) != args.get(2) => return Held::Nothing,
        name if matches!(ttl::touch(name, args, first).fate, Fate::Sets(_) | Fate::Clears) => {
            return unknown;
        }
        _ => {}
    }
    mine.fold(held, |held, place| moved(held, ttl::touch(&spec.name, args, place), accepted))
}

/// What `held` becomes by a write of which only its effect on the time to live is known.
fn moved(held: Held<'_>, touch: ttl::Touch, accepted: u64) -> Held<'_> {
    let unknown = Held::Unknown(Ends::Unknown);
    let ends = match (touch.fate, touch.sure) {
        (Fate::Keeps, _) => return held,
        (Fate::Inherits, _) => {
            return match held {
                Held::Nothing => Held::Unknown(Ends::Never),
                Held::Value(_, ends) | Held::Something(ends) => Held::Something(ends),
                Held::Unknown(Ends::Never) => held,
                Held::Unknown(_) => unknown,
            };
        }
        (Fate::Shrinks, _) => {
            return match held {
                Held::Nothing => Held::Nothing,
                Held::Value(_, ends) | Held::Something(ends) | Held::Unknown(ends) => {
                    Held::Unknown(ends)
                }
            };
        }
        (Fate::Sets(expiry), true) => {
            ttl::deadline(expiry, accepted).map_or(Ends::Unknown, Ends::At)
        }
        (Fate::Clears, true) => Ends::Never,
        _ => return unknown,
    };
    let held = match held {
        Held::Nothing => Held::Nothing,
        Held::Value(value, _) => Held::Value(value, ends),
        Held::Something(_) => Held::Something(ends),
        Held::Unknown(_) => Held::Unknown(ends),
    };
    held.met_at(accepted)
}

/// A write of the SET family, whose new value is its third word.
fn set<'a>(held: Held<'a>, options: SetOptions, args: &[&'a [u8]], accepted: u64) -> Held<'a> {
    let (only_if_there, only_if_absent) =
        (options.conditional && !options.only_if_absent, options.only_if_absent);
    match held {
        // With GET it fails over what is not a string, and with a condition it may do nothing.
        Held::Unknown(_) if options.get || options.conditional => Held::Unknown(Ends::Unknown),
        Held::Something(_) | Held::Value(..) if only_if_absent => held,
        Held::Something(_) if options.get => Held::Something(Ends::Unknown),
        Held::Nothing if only_if_there => Held::Nothing,
        _ => valued(held, args.get(2), options.expiry, accepted),
    }
}

/// The key holds `value`, for as long as `expiry` says.
fn valued<'a>(held: Held<'a>, value: Option<&&'a [u8]>, expiry: Expiry, accepted: u64) -> Held<'a> {
    let unknown = Held::Unknown(Ends::Unknown);
    let Some(value) = value else { return unknown };
    let ends = match expiry {
        Expiry::Never => Ends::Never,
        Expiry::After(_) | Expiry::At(_) => {
            ttl::deadline(expiry, accepted).map_or(Ends::Unknown, Ends::At)
        }
        Expiry::Keep => match held {
            Held::Nothing | Held::Unknown(Ends::Never) => Ends::Never,
            Held::Value(_, ends) | Held::Something(ends) => ends,
            Held::Unknown(_) => Ends::Unknown,
        },
    };
    match ends {
        Ends::Unknown => unknown,
        ends => Held::Value(value, ends).met_at(accepted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fusebox_state::LaneId;

    /// The reply to `slot`'s read after `writes`.
    fn overlay(
        commands: &Commands,
        slot: &Slot,
        writes: &[QueuedWrite],
        now: UnixMillis,
        resp3: bool,
    ) -> Option<Bytes> {
        let mut followed = Followed::of(commands, slot)?;
        for write in writes {
            followed.write(commands, write);
        }
        reply(&followed, slot, now, resp3)
    }

    fn reply(followed: &Followed, slot: &Slot, now: UnixMillis, resp3: bool) -> Option<Bytes> {
        if let Said::Reply(reply) = followed.says(slot, now, resp3) { Some(reply) } else { None }
    }

    /// The reply to `read` at `now`, after writes given as `accepted: command`.
    #[track_caller]
    fn after(read: &str, writes: &[(u64, &str)], now: u64) -> Option<String> {
        let words = |text: &str| resp::command(&text.split(' ').collect::<Vec<_>>());
        let slot = Slot { lane: LaneId::of(b"0", b"k"), key: words(read) };
        let writes: Vec<QueuedWrite> = writes
            .iter()
            .map(|(at, text)| QueuedWrite {
                body: words(text),
                accepted_at: UnixMillis::new(*at),
                due: None,
            })
            .collect();
        overlay(&Commands::default(), &slot, &writes, UnixMillis::new(now), true)
            .map(|reply| String::from_utf8(reply.to_vec()).unwrap())
    }

    fn get(writes: &[(u64, &str)], now: u64) -> Option<String> {
        after("GET k", writes, now)
    }

    const NIL: Option<&str> = Some("_\r\n");
    const V: Option<&str> = Some("$1\r\nv\r\n");

    #[test]
    fn the_last_write_that_settles_it_counts() {
        assert_eq!(get(&[(0, "SET k v")], 9).as_deref(), V);
        assert_eq!(get(&[(0, "SET k x"), (1, "set k v")], 9).as_deref(), V);
        assert_eq!(get(&[(0, "SET k x"), (1, "DEL k")], 9).as_deref(), NIL);
        assert_eq!(get(&[(0, "INCR k"), (1, "SET k v")], 9).as_deref(), V);
        assert_eq!(get(&[(0, "MSET k x j y k v")], 9).as_deref(), V);
        assert_eq!(get(&[(0, "DEL j k"), (1, "PERSIST k")], 9).as_deref(), NIL);
    }

    /// Writes of every sort to a key of two letters' lane, some of which have a deadline.
    fn any_write() -> impl proptest::strategy::Strategy<Value = &'static str> {
        proptest::sample::select(vec![
            "SET k v",
            "SET k w PX 300",
            "SET k x KEEPTTL",
            "SET k y NX",
            "SET k z XX",
            "SET k u GET",
            "SETEX k 1 v",
            "MSET k 1 j 2",
            "DEL k",
            "DEL j k",
            "GETDEL k",
            "INCR k",
            "LPOP k",
            "EXPIRE k 1",
            "EXPIRE k -1",
            "PEXPIRE k 300 NX",
            "PERSIST k",
            "RENAME k j",
            "RENAME j k",
            "SET j v",
            "HSET k f v",
            "FUSEBOX.UNTIL 1 800 k APPEND k x",
            "FUSEBOX.DEADLINE 700 k",
            "FUSEBOX.DEADLINES 1 700 k 800 j",
            "FUSEBOX.MULTI 3 0 SET k v 3 0 EXPIRE k 1",
            "FUSEBOX.MULTI 3 0 SET j v 2 0 DEL k",
            "FUSEBOX.MULTI 3 0 SET j v 5 0 SET k w PX 300",
            "FUSEBOX.PERHAPS 900 k",
        ])
    }

    /// Whether `write` tells of a deadline that the key cannot have, given all writes so far: no real one does.
    fn contradicts(so_far: &Followed, write: &QueuedWrite) -> bool {
        let key = &*so_far.key;
        let told = match Form::of(&write.body) {
            Some(Form::Ends(ends)) => ends.of(key),
            Some(form) => form
                .steps()
                .iter()
                .flat_map(|step| step.deadlines.iter())
                .find(|(other, _)| *other == key)
                .map(|(_, at)| *at),
            None => None,
        };
        told.is_some_and(|at| match so_far.known.held().met_at(write.accepted_at.get()) {
            Held::Nothing => true,
            Held::Value(_, ends) | Held::Something(ends) | Held::Unknown(ends) => {
                at <= write.accepted_at.get()
                    || !matches!(ends, Ends::Unknown) && ends != Ends::At(at)
            }
        })
    }

    /// Writes that come one after the other, each so long after the one before, and how many leave the front then.
    fn any_steps() -> impl proptest::strategy::Strategy<Value = Vec<(&'static str, u64, usize)>> {
        proptest::collection::vec((any_write(), 0_u64..200, 0_usize..3), 1..40)
    }

    /// Keeps what is read of a line and goes on with it, as writes come behind and go in front. Tells each time what it
    /// says, what a full reading of the line says, and the line.
    fn read_along(
        steps: Vec<(&str, u64, usize)>,
        mut told: impl FnMut(Option<Bytes>, Option<Bytes>, &[QueuedWrite]),
    ) {
        let slot = Slot { lane: LaneId::of(b"0", b"k"), key: resp::command(&["GET", "k"]) };
        let (commands, mut now) = (Commands::default(), 0);
        let mut line = std::collections::VecDeque::<(usize, QueuedWrite)>::new();
        let mut kept: Option<(Followed, usize, usize)> = None;
        let mut so_far = Followed::of(&Commands::default(), &slot).unwrap();
        for (number, (text, later, leave)) in (1..).zip(steps) {
            now += later;
            let body = resp::command(&text.split(' ').collect::<Vec<_>>());
            let accepted_at = UnixMillis::new(now);
            let write = QueuedWrite { body, accepted_at, due: None };
            if contradicts(&so_far, &write) {
                continue;
            }
            so_far.write(&commands, &write);
            line.push_back((number, write));
            for _ in 0..leave {
                let gone = line.pop_front().map(|(gone, _)| gone);
                kept = kept.filter(|(_, base, _)| gone.is_none_or(|gone| gone < *base));
            }
            if line.is_empty() {
                continue;
            }
            let (mut followed, mut base, upto) = kept
                .take()
                .unwrap_or_else(|| (Followed::of(&Commands::default(), &slot).unwrap(), 0, 0));
            for (at, write) in line.iter().filter(|(at, _)| *at > upto) {
                if followed.write(&commands, write) {
                    base = *at;
                }
            }
            let writes: Vec<QueuedWrite> = line.iter().map(|(_, it)| it.clone()).collect();
            for at in [now, now + 250, now + 2_000] {
                let at = UnixMillis::new(at);
                let full = overlay(&commands, &slot, &writes, at, true);
                told(reply(&followed, &slot, at, true), full, &writes);
            }
            kept = Some((followed, base, number));
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(4_000))]
        /// What is kept says what reading all of them would, or nothing.
        #[test]
        fn what_is_kept_says_what_a_full_reading_would(steps in any_steps()) {
            read_along(steps, |reply, full, writes| {
                // Nothing is also right: the line may contradict itself, which no real one does.
                assert!(
                    reply.is_none() || reply == full,
                    "{reply:?} and not {full:?} of {writes:?}"
                );
            });
        }
    }

    #[test]
    fn what_is_kept_says_something_nearly_as_often_as_a_full_reading() {
        use proptest::{
            strategy::{Strategy, ValueTree},
            test_runner::TestRunner,
        };
        let mut runner = TestRunner::deterministic();
        let (mut answers, mut full_answers) = (0_u32, 0_u32);
        for _ in 0..2_000 {
            let steps = any_steps().new_tree(&mut runner).unwrap().current();
            read_along(steps, |reply, full, _| {
                answers += u32::from(reply.is_some());
                full_answers += u32::from(full.is_some());
            });
        }
        println!("{answers} of {full_answers}");
        assert!(full_answers > 10_000, "{full_answers}");
        assert!(answers * 100 >= full_answers * 99, "{answers} of {full_answers}");
    }

    #[test]
    fn what_sets_the_whole_value_needs_nothing_of_what_was_before() {
        for text in ["SET k v", "SET k v EX 5", "SETEX k 5 v", "PSETEX k 5 v", "DEL k", "UNLINK k"]
        {
            let slot = Slot { lane: LaneId::of(b"0", b"k"), key: resp::command(&["GET", "k"]) };
            for before in ["SET k w", "DEL k", "EXPIRE k 5", "INCR k"] {
                let mut followed = Followed::of(&Commands::default(), &slot).unwrap();
                for (text, alone) in [(before, None), (text, Some(true))] {
                    let body = resp::command(&text.split(' ').collect::<Vec<_>>());
                    let write = QueuedWrite { body, accepted_at: UnixMillis::new(1), due: None };
                    let said = followed.write(&Commands::default(), &write);
                    assert!(alone.is_none_or(|alone| said == alone), "{text} after {before}");
                }
            }
        }
    }

    #[test]
    fn another_key_of_the_lane_says_nothing() {
        assert_eq!(get(&[(0, "SET k v"), (1, "SET j x"), (2, "INCR j")], 9).as_deref(), V);
        assert_eq!(get(&[(0, "SET j v")], 9), None);
    }

    #[test]
    fn what_cannot_be_told_is_undetermined() {
        for write in [
            "INCR k",
            "APPEND k x",
            "SETRANGE k 0 x",
            "SUNIONSTORE k j",
            "BITOP NOT k j",
            "HSET k f v",
            "RENAME j k",
            "RENAMENX k j",
            "COPY j k",
            "LPOP k",
            "X k",
        ] {
            assert_eq!(get(&[(0, "SET k v"), (1, write)], 9), None, "{write}");
        }
        assert_eq!(get(&[], 9), None);
        assert_eq!(get(&[(0, "EXPIRE k 100")], 9), None);
        assert_eq!(get(&[(0, "SET k v KEEPTTL")], 9), None);
        assert_eq!(after("HGET k f", &[(0, "SET k v")], 9), None);
    }

    #[test]
    fn time_runs_from_acceptance() {
        assert_eq!(get(&[(1000, "SET k v EX 2")], 2999).as_deref(), V);
        assert_eq!(get(&[(1000, "SET k v EX 2")], 3000).as_deref(), NIL);
        assert_eq!(get(&[(1000, "SETEX k 2 v")], 3000).as_deref(), NIL);
        assert_eq!(get(&[(1000, "PSETEX k 2 v")], 1001).as_deref(), V);
        assert_eq!(get(&[(1000, "SET k v PXAT 5000")], 4999).as_deref(), V);
        assert_eq!(get(&[(1000, "SET k v EXAT 5")], 5000).as_deref(), NIL);
        assert_eq!(get(&[(0, "SET k v"), (1000, "PEXPIRE k 50")], 1049).as_deref(), V);
        assert_eq!(get(&[(0, "SET k v"), (1000, "PEXPIRE k 50")], 1050).as_deref(), NIL);
        assert_eq!(
            get(&[(0, "EXPIRE k -1")], 9).as_deref(),
            NIL,
            "the past removes whatever was there"
        );
        assert_eq!(get(&[(0, "INCR k"), (0, "EXPIREAT k 1")], 1000).as_deref(), NIL);
        assert_eq!(get(&[(0, "SET k x"), (0, "SET k v KEEPTTL")], 9).as_deref(), V);
        assert_eq!(get(&[(0, "SET k v"), (0, "EXPIRE k 1 NX")], 9), None);
        assert_eq!(get(&[(0, "SET k v"), (0, "GETEX k PX 5")], 9).as_deref(), NIL);
    }

    #[test]
    fn what_only_moves_the_time_to_live_leaves_what_was_read_before() {
        let commands = Commands::default();
        let says = |read: &str, writes: &[(u64, &str)], now: u64| {
            let words = |text: &str| resp::command(&text.split(' ').collect::<Vec<_>>());
            let slot = Slot { lane: LaneId::of(b"0", b"k"), key: words(read) };
            let mut followed = Followed::of(&commands, &slot).unwrap();
            for (at, text) in writes {
                let accepted_at = UnixMillis::new(*at);
                followed
                    .write(&commands, &QueuedWrite { body: words(text), accepted_at, due: None });
            }
            followed.says(&slot, UnixMillis::new(now), true)
        };
        for read in ["GET k", "EXISTS k", "HGETALL k", "HGET k f", "LRANGE k 0 1", "SINTERCARD 1 k"]
        {
            for writes in [
                &[(0, "EXPIRE k 9")][..],
                &[(0, "PEXPIREAT k 99999"), (1, "PERSIST k")],
                &[(0, "FUSEBOX.DEADLINE 8000 k"), (1, "FUSEBOX.UNTIL 1 8000 k PERSIST k")],
                &[(0, "COPY k j"), (1, "EXPIRE k 9")],
            ] {
                assert_eq!(says(read, writes, 500), Said::AsBefore, "{read} after {writes:?}");
            }
            for write in [
                "HSET k f v",
                "APPEND k v",
                "EXPIRE k 9 NX",
                "EXPIRE k x",
                "FUSEBOX.PERHAPS 8000 k",
                "RENAME j k",
                "COPY j k",
                "GETEX k PX 5",
                "X k",
                "SET j v",
            ] {
                let writes = [(0, "EXPIRE k 9"), (1, write), (2, "PERSIST k")];
                assert_eq!(says(read, &writes, 500), Said::Nothing, "{read} after {write}");
            }
            let over = says(read, &[(0, "EXPIRE k 9")], 9_000);
            assert_ne!(over, Said::AsBefore, "{read}: its time is over");
        }
        assert_eq!(
            says("GET k", &[(0, "SET k v"), (1, "EXPIRE k 9")], 5),
            Said::Reply("$1\r\nv\r\n".into())
        );
    }

    #[test]
    fn exists_follows_the_value() {
        assert_eq!(after("EXISTS k", &[(0, "SET k v")], 9).as_deref(), Some(":1\r\n"));
        assert_eq!(after("EXISTS k", &[(0, "UNLINK k")], 9).as_deref(), Some(":0\r\n"));
    }

    #[test]
    fn a_deadline_is_judged_by_when_the_writes_behind_it_were_accepted() {
        type Case<'a> = (&'a [(u64, &'a str)], Option<&'a str>);
        let table: [Case<'_>; 18] = [
            (&[(0, "SET k v EX 1"), (500, "EXPIRE k 1000")], V),
            (&[(0, "SET k v EX 1"), (1500, "EXPIRE k 1000")], NIL),
            (&[(0, "SET k v PX 800"), (500, "PERSIST k")], V),
            (&[(0, "SET k v PX 800"), (900, "PERSIST k")], NIL),
            (&[(0, "SET k x PX 800"), (500, "SET k v KEEPTTL")], NIL),
            (&[(0, "SET k x PX 800"), (900, "SET k v KEEPTTL")], V),
            (&[(0, "EXPIRE k 1"), (500, "HSET k g w")], None),
            (&[(0, "SET k v PX 800"), (500, "SETRANGE k 0 w")], NIL),
            (&[(0, "SET k v PX 800"), (900, "SETRANGE k 0 w")], None),
            (&[(0, "SET k v PX 800"), (500, "LPOP k")], NIL),
            (&[(0, "SET k x PX 800"), (500, "SET k v NX")], NIL),
            (&[(0, "SET k x PX 800"), (900, "SET k v NX")], V),
            (&[(0, "SET k x PX 800"), (500, "SET k v XX")], V),
            (&[(0, "SET k x PX 800"), (900, "SET k v XX")], NIL),
            (&[(0, "SET k x PX 800"), (500, "SET k v GET")], V),
            (&[(0, "FUSEBOX.UNTIL 1 800 k HSET k f v")], NIL),
            (&[(0, "FUSEBOX.UNTIL 1 800 k HSET k f v"), (900, "SET k v KEEPTTL")], V),
            (&[(0, "SET k v PX 800"), (500, "RENAME k j"), (600, "SET k v KEEPTTL")], V),
        ];
        for (writes, expected) in table {
            assert_eq!(get(writes, 2500).as_deref(), expected, "{writes:?}");
        }
        assert_eq!(get(&[(0, "FUSEBOX.UNTIL 1 800 k HSET k f v")], 700), None);
    }

    #[test]
    fn what_depends_on_the_type_or_on_the_presence_of_what_is_unknown_is_undetermined() {
        for write in
            ["SET k v GET", "SET k v NX", "SET k v XX", "SETNX k v", "GETDEL k", "GETSET k v"]
        {
            assert_eq!(get(&[(0, write)], 9), None, "{write}");
        }
        assert_eq!(get(&[(0, "DEL k"), (1, "SET k v GET")], 9).as_deref(), V);
        assert_eq!(get(&[(0, "DEL k"), (1, "SET k v NX")], 9).as_deref(), V);
        assert_eq!(get(&[(0, "DEL k"), (1, "SET k v XX")], 9).as_deref(), NIL);
        assert_eq!(get(&[(0, "SET k v"), (1, "SET k x NX")], 9).as_deref(), V);
        assert_eq!(get(&[(0, "SET k v"), (1, "GETDEL k")], 9).as_deref(), NIL);
        assert_eq!(get(&[(0, "SET k v"), (1, "SETNX k x")], 9).as_deref(), V);
        assert_eq!(get(&[(0, "SET k x PX 5"), (1, "GETSET k v")], 9).as_deref(), V);
        assert_eq!(get(&[(0, "FUSEBOX.UNTIL 1 5 k APPEND k x"), (1, "GETSET k v")], 9), None);
    }

    #[test]
    fn a_residue_ends_what_the_server_holds_unless_it_is_settled() {
        let residue = |at: u64, then: &[(u64, &str)], now: u64| {
            let text = format!("FUSEBOX.DEADLINE {at} j k");
            let mut writes = vec![(0, text.as_str())];
            writes.extend_from_slice(then);
            get(&writes, now)
        };
        assert_eq!(residue(800, &[], 700), None);
        assert_eq!(residue(800, &[], 900).as_deref(), NIL);
        assert_eq!(residue(800, &[(500, "PERSIST k")], 900), None);
        assert_eq!(residue(800, &[(500, "SET k v KEEPTTL")], 700).as_deref(), V);
        assert_eq!(get(&[(0, "FUSEBOX.PERHAPS 800 k")], 900), None);
        assert_eq!(get(&[(0, "FUSEBOX.PERHAPS 800 k"), (500, "SET k v")], 900).as_deref(), V);
        assert_eq!(residue(800, &[(900, "SET k v NX")], 950).as_deref(), V);
        assert_eq!(residue(800, &[(500, "SET k v")], 900).as_deref(), V);
    }
}
