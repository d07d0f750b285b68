//! The deadlines that fusebox has carried to the server, key by key.
//!
//! A queued write that changes a key and leaves its time to live alone inherits the one that the key has *when
//! the write is accepted*. By the time of its replay the server may have let the key expire; then the write
//! would create it again, to live for ever. So it is stored with the deadline that the key had
//! ([`super::internal`]), and this map knows it.
//!
//! ```text
//!  live write ── hold, begin ──▶ the key's entry is its own, without a deadline
//!       │ answered             └──▶ the deadline, if the entry is still this write's
//!       │ ended                └──▶ an entry without a deadline goes
//!  queued write ── stored ──▶ the deadline that it inherits; else the entry is its own
//!       │ replayed, answered  └──▶ the deadline, if the entry is still this write's
//! ```
//! **An entry belongs to the last write that was begun or stored for its key.** So a deadline whose answer comes
//! late never outlives a newer write that settled the key otherwise. Whatever the map is not sure of it
//! forgets: an unknown outcome, a command that is not in [`super::ttl`]'s table, one that may have emptied the
//! key. What is forgotten is not inherited; a key is never ended by a deadline that it may not have.
//!
//! **A write holds its keys as long as it is on the wire** ([`OnWire`]). The server applies writes in the order in which
//! they were begun only if they go by the same connection. If two overlap otherwise, nothing is known of the key until
//! none of them is on the wire, and another write has settled it. A write whose commands are not read one by one, a
//! script say, holds all of its lanes.
//!
//! Some writes hold nothing and are counted instead: those that may settle any key, or for which too many keys are held;
//! and all of them until the first write that sets a deadline, as there is nothing to know before. No deadline that is
//! set while one of them is on the wire is known. A command that waits for others, a `BLPOP` say, may be on the wire for
//! ever, so it holds its keys from the start.
//!
//! It knows 65,536 keys, each in the place of its lane and recognised by a keyed 64-bit hash, so that keys whose lanes
//! collide forget each other; when it is full, what has passed goes first, and then the half with the nearest
//! deadlines. A key that is held and has no deadline takes no place from one that has. It is empty after a start.

use std::{
    hash::{BuildHasher, RandomState},
    slice,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use fusebox_state::{LaneId, UnixMillis};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    resp::Reply,
    ttl::{self, Fate},
};

mod entries;

pub(crate) use entries::Way;
use entries::{Entries, Entry, Owner, Place};

const KEYS_MAX: usize = 65_536;
/// At most so many different keys are held at once by writes, and twice as many with those that commands hold which wait
/// for others. A write for whose keys there is no room holds none of them.
const HELD_MAX: usize = KEYS_MAX / 2;

/// The map.
#[derive(Debug)]
pub(crate) struct Deadlines {
    entries: Mutex<Entries>,
    /// The database's number, as it is part of lanes.
    namespace: String,
    count: AtomicUsize,
    /// A write has set a deadline: from then on writes hold their keys.
    holds: AtomicBool,
    /// How many writes are on the wire that hold no keys, and may settle any.
    counted: AtomicUsize,
    hasher: RandomState,
    next: AtomicU64,
    /// The core's clock, as the difference to the time since `base`; 0 before it was set.
    offset: AtomicI64,
    base: Instant,
}

/// A write and its keys' places.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written<'w, 'a> {
    pub(crate) name: &'w str,
    pub(crate) args: &'w [&'a [u8]],
    pub(crate) places: &'w [usize],
}

impl<'w, 'a> Written<'w, 'a> {
    /// Its keys, with what it does to each.
    pub(crate) fn touches(self) -> impl Iterator<Item = (&'a [u8], ttl::Touch)> + use<'w, 'a> {
        self.places.iter().filter_map(move |place| {
            Some((*self.args.get(*place)?, ttl::touch(self.name, self.args, *place)))
        })
    }
}

/// What is to be known once a write has been answered.
#[derive(Debug)]
pub(crate) struct Begun {
    owner: Owner,
    deadlines: Vec<Settled>,
}

impl Begun {
    /// Whether the answer tells anything.
    pub(crate) fn awaits_answer(&self) -> bool {
        !self.deadlines.is_empty()
    }
}

/// A deadline that a key has by a write.
#[derive(Debug)]
struct Settled {
    place: Place,
    at: u64,
    /// The lane of the key that had it before.
    source: Option<LaneId>,
}

/// A write, or a transaction, that is on the wire until this is dropped.
#[derive(Debug)]
pub(crate) struct OnWire {
    map: Arc<Deadlines>,
    holds: Held,
}

/// What a write on the wire holds.
#[derive(Debug)]
enum Held {
    /// It is only counted.
    Nothing,
    One(LaneId),
    Lanes(Box<[LaneId]>),
}

impl OnWire {
    /// Whether it holds its keys: only then something is to be known of them.
    pub(crate) fn holds(&self) -> bool {
        !matches!(self.holds, Held::Nothing)
    }
}

impl Drop for OnWire {
    fn drop(&mut self) {
        let lanes = match &self.holds {
            Held::Nothing => {
                self.map.counted.fetch_sub(1, Ordering::SeqCst);
                return;
            }
            Held::One(lane) => slice::from_ref(lane),
            Held::Lanes(lanes) => lanes,
        };
        if lanes.is_empty() {
            return;
        }
        let mut entries = self.map.entries.lock();
        for lane in lanes {
            let mut is_free = false;
            entries.change(*lane, |entry| is_free = entry.release());
            entries.held -= usize::from(is_free);
        }
        self.map.counts(&entries);
    }
}

impl Deadlines {
    /// For the keys of the database of this number.
    pub(crate) fn new(namespace: &str) -> Self {
        Self {
            entries: Mutex::default(),
            namespace: namespace.to_owned(),
            count: AtomicUsize::new(0),
            holds: AtomicBool::new(false),
            counted: AtomicUsize::new(0),
            hasher: RandomState::new(),
            // 0 is nobody's.
            next: AtomicU64::new(1),
            offset: AtomicI64::new(0),
            base: Instant::now(),
        }
    }

    /// Whether nothing is known of any key.
    pub(crate) fn is_empty(&self) -> bool {
        !self.holds.load(Ordering::Acquire) || self.count.load(Ordering::Acquire) == 0
    }

    fn counts(&self, entries: &Entries) {
        self.count.store(entries.by_lane.len(), Ordering::Release);
    }

    /// A write is about to be sent. It is counted if no deadline was set yet, and `None` is returned if one was.
    pub(crate) fn unheld(self: &Arc<Self>) -> Option<OnWire> {
        if self.holds.load(Ordering::Acquire) {
            return None;
        }
        self.counted.fetch_add(1, Ordering::SeqCst);
        let on_wire = OnWire { map: Arc::clone(self), holds: Held::Nothing };
        // Who sets the first deadline meanwhile either sees that it is counted, or is seen here.
        (!self.holds.load(Ordering::SeqCst)).then_some(on_wire)
    }

    /// Writes are about to be sent that way: one, or those of a transaction, which nothing comes between.
    pub(crate) fn hold(self: &Arc<Self>, writes: &[Written<'_, '_>], way: Way) -> OnWire {
        let sets = |it: &Written<'_, '_>| ttl::carried(it.name, it.args, 0).is_some();
        if !writes.iter().any(sets)
            && let Some(counted) = self.unheld()
        {
            return counted;
        }
        self.holds.store(true, Ordering::SeqCst);
        self.hold_lanes(self.settled_lanes(writes), way, (false, HELD_MAX))
    }

    /// A command is about to be sent that way that waits for others, perhaps for ever, and may then settle its keys.
    /// Nothing is known of those any more.
    pub(crate) fn hold_waiting(self: &Arc<Self>, command: Written<'_, '_>, way: Way) -> OnWire {
        self.hold_lanes(self.settled_lanes(slice::from_ref(&command)), way, (true, 2 * HELD_MAX))
    }

    /// A write is about to be sent that way which does nothing but set `key`, without a deadline: what
    /// [`hold`](Self::hold) and [`begin`](Self::begin) do of it, in one step.
    pub(crate) fn begin_plain(self: &Arc<Self>, key: &[u8], way: Way) -> OnWire {
        if let Some(counted) = self.unheld() {
            return counted;
        }
        let Place { lane, key } = self.place(key);
        let mut entries = self.entries.lock();
        if !entries.has_room(&[lane], HELD_MAX) {
            return self.count_one(&mut entries, Some(&[lane]));
        }
        let is_mixed = self.counted.load(Ordering::SeqCst) > 0;
        let entry = entries.hold(lane, way, is_mixed);
        (entry.key, entry.at, entry.owner) = (key, None, Owner::NOBODY);
        self.counts(&entries);
        OnWire { map: Arc::clone(self), holds: Held::One(lane) }
    }

    /// The lanes of the keys whose deadlines the writes may change, or take along.
    fn settled_lanes(&self, writes: &[Written<'_, '_>]) -> Vec<LaneId> {
        let mut lanes = Vec::new();
        for written in writes {
            for (key, touch) in written.touches() {
                let source = match touch.fate {
                    Fate::Keeps | Fate::Inherits => continue,
                    // What it has taken along is known only if nobody settles that meanwhile.
                    Fate::Takes(from) => written.args.get(from).copied(),
                    _ => None,
                };
                lanes.push(self.place(key).lane);
                lanes.extend(source.map(|source| self.place(source).lane));
            }
        }
        lanes
    }

    /// A write is about to be sent that way whose commands are not read one by one: it may settle the keys in `lanes`,
    /// or any. Nothing is known of those any more.
    pub(crate) fn begin_unread(self: &Arc<Self>, lanes: Option<&[LaneId]>, way: Way) -> OnWire {
        if let Some(counted) = self.unheld() {
            return counted;
        }
        match lanes {
            Some(lanes) => self.hold_lanes(lanes.to_vec(), way, (true, HELD_MAX)),
            None => self.count_one(&mut self.entries.lock(), None),
        }
    }

    /// Holds `lanes` if no more than `max` are held then, and forgets what is known of them if it is to.
    fn hold_lanes(
        self: &Arc<Self>,
        mut lanes: Vec<LaneId>,
        way: Way,
        (forgets, max): (bool, usize),
    ) -> OnWire {
        lanes.sort_unstable();
        lanes.dedup();
        let mut entries = self.entries.lock();
        if !entries.has_room(&lanes, max) {
            return self.count_one(&mut entries, Some(&lanes));
        }
        let is_mixed = self.counted.load(Ordering::SeqCst) > 0;
        for lane in &lanes {
            let entry = entries.hold(*lane, way, is_mixed);
            if forgets {
                (entry.at, entry.owner) = (None, Owner::NOBODY);
            }
        }
        self.counts(&entries);
        OnWire { map: Arc::clone(self), holds: Held::Lanes(lanes.into_boxed_slice()) }
    }

    /// Counts a write that may settle the keys in `lanes`, or any, and holds none of them.
    fn count_one(self: &Arc<Self>, entries: &mut Entries, lanes: Option<&[LaneId]>) -> OnWire {
        self.counted.fetch_add(1, Ordering::SeqCst);
        match lanes {
            None => entries.by_lane.retain(|_, entry| {
                entry.forget();
                entry.is_needed()
            }),
            Some(lanes) => {
                for lane in lanes {
                    entries.change(*lane, Entry::forget);
                }
            }
        }
        self.counts(entries);
        OnWire { map: Arc::clone(self), holds: Held::Nothing }
    }

    fn place(&self, key: &[u8]) -> Place {
        let lane = LaneId::of(self.namespace.as_bytes(), key);
        Place { lane, key: self.hasher.hash_one(key) }
    }

    /// Tells it what the core's clock says.
    pub(crate) fn tell(&self, now: UnixMillis) {
        let since = i64::try_from(self.base.elapsed().as_millis()).unwrap_or(i64::MAX);
        let now = i64::try_from(now.get()).unwrap_or(i64::MAX);
        self.offset.store(now.saturating_sub(since), Ordering::Relaxed);
    }

    /// The core's clock.
    fn now(&self) -> u64 {
        let since = i64::try_from(self.base.elapsed().as_millis()).unwrap_or(i64::MAX);
        u64::try_from(self.offset.load(Ordering::Relaxed).saturating_add(since)).unwrap_or(0)
    }

    /// A live write is about to be sent, which was accepted at `accepted` and [holds](Self::hold) its keys.
    pub(crate) fn begin(&self, written: Written<'_, '_>, accepted: UnixMillis) -> Begun {
        let owner = Owner::Live(self.next.fetch_add(1, Ordering::Relaxed));
        let mut entries = self.entries.lock();
        let deadlines = self.settled(&entries, written, accepted.get());
        self.own(&mut entries, written, owner);
        Begun { owner, deadlines }
    }

    /// Whose a command of a queued call is: the call as its caller sent it, and the command's place in it.
    pub(crate) fn owner(&self, original: &[u8], place: usize) -> u64 {
        self.hasher.hash_one((original, place))
    }

    /// A queued write is about to be sent that sets its key's deadline on the server, and holds its keys.
    pub(crate) fn replay(
        &self,
        written: Written<'_, '_>,
        owner: u64,
        accepted: UnixMillis,
    ) -> Begun {
        let deadlines = self.settled(&self.entries.lock(), written, accepted.get());
        Begun { owner: Owner::Queued(owner), deadlines }
    }

    /// The write was answered with `reply`. It still holds its keys.
    pub(crate) fn answered(&self, written: Written<'_, '_>, begun: &Begun, reply: &[u8]) {
        if !begun.awaits_answer() || work_done(written, reply) != Some(true) {
            return;
        }
        let mut entries = self.entries.lock();
        for Settled { place, at, source } in &begun.deadlines {
            let had_it = source
                .is_none_or(|lane| entries.by_lane.get(&lane).is_some_and(|entry| !entry.is_mixed));
            if had_it
                && let Some(entry) = entries.get_mut(*place)
                && entry.owner == begun.owner
                && !entry.is_mixed
            {
                entry.at = Some(*at);
            }
        }
        self.make_room(&mut entries, 0);
        self.counts(&entries);
    }

    /// A command is being queued: the deadlines that it inherits.
    pub(crate) fn stored<'a>(&self, written: Written<'_, 'a>, owner: u64) -> Vec<(&'a [u8], u64)> {
        let now = self.now();
        let mut entries = self.entries.lock();
        let mut inherited = Vec::new();
        let moves = matches!(written.name, "rename" | "renamenx" | "copy");
        for (key, touch) in written.touches() {
            let inherits = match touch.fate {
                Fate::Inherits | Fate::Leaves(_) => true,
                Fate::Keeps => moves,
                _ => false,
            };
            if inherits && let Some(at) = self.alive(&entries, key, now) {
                inherited.push((key, at));
            }
        }
        let taken = self.taken(&entries, written, now);
        self.own(&mut entries, written, Owner::Queued(owner));
        for Settled { place, at, .. } in taken {
            if let Some(entry) = entries.get_mut(place)
                && entry.held == 0
            {
                entry.at = Some(at);
            }
        }
        inherited
    }

    /// How long `key` still has, if it has a deadline; zero for one that has passed no longer than `lately` ago.
    pub(crate) fn left(&self, key: &[u8], lately: Duration) -> Option<Duration> {
        if self.is_empty() {
            return None;
        }
        let at = self.entries.lock().get(self.place(key))?.at?;
        let (now, lately) = (self.now(), u64::try_from(lately.as_millis()).unwrap_or(u64::MAX));
        (at.saturating_add(lately) >= now).then(|| Duration::from_millis(at.saturating_sub(now)))
    }

    /// Whether any of the write's keys has a deadline that it may inherit.
    pub(crate) fn may_inherit(&self, written: Written<'_, '_>) -> bool {
        if self.is_empty() {
            return false;
        }
        let now = self.now();
        let entries = self.entries.lock();
        written.touches().any(|(key, _)| self.alive(&entries, key, now).is_some())
    }

    fn alive(&self, entries: &Entries, key: &[u8], now: u64) -> Option<u64> {
        entries.get(self.place(key))?.at.filter(|at| *at > now)
    }

    /// The deadlines that the write's keys have after it.
    fn settled(&self, entries: &Entries, written: Written<'_, '_>, accepted: u64) -> Vec<Settled> {
        let mut settled = self.taken(entries, written, self.now());
        for (key, touch) in written.touches() {
            if let Fate::Sets(expiry) = touch.fate
                && let Some(at) = ttl::deadline(expiry, accepted)
            {
                settled.push(Settled { place: self.place(key), at, source: None });
            }
        }
        settled
    }

    /// The deadlines that keys take over from others.
    fn taken(&self, entries: &Entries, written: Written<'_, '_>, now: u64) -> Vec<Settled> {
        let taken = written.touches().filter_map(|(key, touch)| match touch.fate {
            Fate::Takes(from) if touch.sure || ttl::replaces(written.args) => {
                let source = *written.args.get(from)?;
                let at = self.alive(entries, source, now)?;
                Some(Settled { place: self.place(key), at, source: Some(self.place(source).lane) })
            }
            _ => None,
        });
        taken.collect()
    }

    /// Makes the entries `owner`'s that the write settles, and forgets what it may have ended.
    fn own(&self, entries: &mut Entries, written: Written<'_, '_>, owner: Owner) {
        let is_queued = matches!(owner, Owner::Queued(_));
        for (key, touch) in written.touches() {
            let sets = match touch.fate {
                Fate::Keeps | Fate::Inherits => continue,
                Fate::Sets(_) | Fate::Takes(_) => true,
                Fate::Shrinks | Fate::Clears | Fate::Leaves(_) | Fate::Unknown => false,
            };
            let Place { lane, key } = self.place(key);
            if is_queued && sets {
                self.make_room(entries, 1);
                self.holds.store(true, Ordering::SeqCst);
                entries.by_lane.entry(lane).or_insert(Entry::NEW);
            }
            entries.change(lane, |entry| {
                // What is on the wire is applied before a queued write, or after it.
                entry.is_mixed |= is_queued && entry.held > 0;
                (entry.key, entry.at) = (key, None);
                entry.owner = if sets { owner } else { Owner::NOBODY };
            });
        }
        self.counts(entries);
    }

    /// Forgets what is least needed if there would be too many entries with so many more.
    fn make_room(&self, Entries { by_lane: entries, held }: &mut Entries, more: usize) {
        if entries.len() + more <= KEYS_MAX + *held {
            return;
        }
        let now = self.now();
        entries.retain(|_, entry| entry.held > 0 || entry.at.is_some_and(|at| at > now));
        let mut times: Vec<u64> = entries.values().filter_map(|entry| entry.at).collect();
        if entries.len() >= KEYS_MAX / 2 && !times.is_empty() {
            let middle = times.len() / 2;
            let (_, median, _) = times.select_nth_unstable(middle);
            let median = *median;
            entries.retain(|_, entry| entry.held > 0 || entry.at.is_some_and(|at| at > median));
        }
    }
}

/// Whether `reply` says that the write has done what [`ttl::touch`] says of it; `None` if it does not say.
pub(crate) fn work_done(written: Written<'_, '_>, reply: &[u8]) -> Option<bool> {
    let get = written.name == "set"
        && written.args.iter().skip(3).any(|arg| arg.eq_ignore_ascii_case(b"GET"));
    if get {
        return written.touches().all(|(_, touch)| touch.sure).then_some(true);
    }
    Some(!matches!(Reply::of(reply), None | Some(Reply::Nil | Reply::Error(_) | Reply::Int(0))))
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::super::{commands::Commands, resp};
    use super::*;

    const NOW: u64 = 1_000_000;

    struct Map(Arc<Deadlines>);

    /// A write on the wire.
    struct Sent {
        command: &'static str,
        begun: Begun,
        on_wire: OnWire,
    }

    impl Map {
        fn new() -> Self {
            let map = Self(Arc::new(Deadlines::new("0")));
            map.0.tell(UnixMillis::new(NOW));
            map
        }

        fn with<T>(
            &self,
            command: &str,
            f: impl FnOnce(&Arc<Deadlines>, Written<'_, '_>, &[u8]) -> T,
        ) -> T {
            let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
            let spec = Commands::default().find(&args).unwrap();
            let places = spec.keys(&args).unwrap();
            let written = Written { name: &spec.name, args: &args, places: &places };
            f(&self.0, written, &resp::command(&args))
        }

        fn begin(&self, command: &'static str) -> Sent {
            self.begin_by(command, None)
        }

        fn begin_by(&self, command: &'static str, way: Way) -> Sent {
            self.with(command, |map, written, _| {
                let on_wire = map.hold(&[written], way);
                Sent { command, begun: map.begin(written, UnixMillis::new(NOW)), on_wire }
            })
        }

        fn answer(&self, sent: Sent, reply: &str) {
            self.with(sent.command, |map, written, _| {
                map.answered(written, &sent.begun, reply.as_bytes());
            });
            drop(sent.on_wire);
        }

        fn live(&self, command: &str, reply: &str) {
            self.with(command, |map, written, _| {
                let _on_wire = map.hold(&[written], None);
                let begun = map.begin(written, UnixMillis::new(NOW));
                map.answered(written, &begun, reply.as_bytes());
            });
        }

        fn queue(&self, command: &str) -> Vec<(String, u64)> {
            self.with(command, |map, written, body| {
                let inherited = map.stored(written, map.owner(body, 0)).into_iter();
                inherited
                    .map(|(k, at)| (String::from_utf8_lossy(k).into_owned(), at - NOW))
                    .collect()
            })
        }

        fn replayed(&self, command: &str) {
            self.with(command, |map, written, body| {
                let _on_wire = map.hold(&[written], None);
                let begun = map.replay(written, map.owner(body, 0), UnixMillis::new(NOW));
                map.answered(written, &begun, b"+OK\r\n");
            });
        }

        /// What a write that is queued now would inherit.
        #[track_caller]
        fn inherits(&self, key: &str, expected: Option<u64>) {
            let inherited = self.queue(&format!("APPEND {key} x"));
            assert_eq!(inherited.first().map(|(_, at)| *at), expected, "{key}");
        }
    }

    #[test]
    fn what_was_carried_is_known_once_it_was_answered() {
        let map = Map::new();
        for (command, reply, expected) in [
            ("SET k v EX 5", "+OK\r\n", Some(5000)),
            ("PSETEX k 70000 v", "+OK\r\n", Some(70_000)),
            ("SET k v NX PX 9000", "_\r\n", None),
            ("SET k v NX PX 9000", "+OK\r\n", Some(9000)),
            ("SET k v PX 9000 GET", "_\r\n", Some(9000)),
            ("SET k v PX 9000 NX GET", "_\r\n", None),
            ("EXPIRE k 7", ":1\r\n", Some(7000)),
            ("EXPIRE k 8", ":0\r\n", None),
            ("GETEX k EX 9", "$1\r\nv\r\n", Some(9000)),
            ("GETEX k EX 9", "_\r\n", None),
            ("SET k v EX 5", "-OOM\r\n", None),
        ] {
            map.live("DEL k", ":1\r\n");
            map.live(command, reply);
            map.inherits("k", expected);
        }
    }

    #[test]
    fn what_settles_a_key_otherwise_is_not_inherited_past() {
        for (command, left) in [
            ("HSET k f v", true),
            ("SET k v KEEPTTL", true),
            ("GETEX k", true),
            ("SET k v", false),
            ("DEL k", false),
            ("PERSIST k", false),
            ("LPOP k", false),
            ("RESTORE k 0 x", false),
        ] {
            for live in [false, true] {
                let map = Map::new();
                map.live("SET k v EX 5", "+OK\r\n");
                if live {
                    drop(map.begin(command));
                } else {
                    map.queue(command);
                }
                map.inherits("k", left.then_some(5000));
            }
        }
    }

    #[test]
    fn nothing_is_known_of_the_lanes_of_what_is_not_read_one_by_one() {
        for (lanes, is_its) in [
            (Some(LaneId::of(b"0", b"k")), true),
            (None, true),
            (Some(LaneId::of(b"1", b"k")), false),
        ] {
            let left = |time| (!is_its).then_some(time);
            let map = Map::new();
            let begin = || map.0.begin_unread(lanes.as_slice().first().map(slice::from_ref), None);
            map.live("SET k v EX 5", "+OK\r\n");
            let script = begin();
            map.inherits("k", left(5000));
            // Nor is what is begun and answered while it is on the wire,
            map.live("EXPIRE k 6", ":1\r\n");
            map.inherits("k", left(6000));
            let sent = map.begin("EXPIRE k 7");
            drop(script);
            map.answer(sent, ":1\r\n");
            map.inherits("k", left(7000));
            // or what was begun before it and is answered after it.
            let sent = map.begin("EXPIRE k 8");
            drop(begin());
            map.answer(sent, ":1\r\n");
            map.inherits("k", left(8000));
            map.live("EXPIRE k 9", ":1\r\n");
            map.inherits("k", Some(9000));
        }
    }

    #[test]
    fn which_of_two_writes_that_overlap_is_applied_last_is_not_known() {
        let second = "EXPIRE k 5";
        for first in ["DEL k", "SET k v", "EXPIRE k 9", "LPOP k", "RENAME k j", "RENAME j k"] {
            for (one, other) in [(None, None), (None, Some(1)), (Some(2), Some(1))] {
                for is_lost in [false, true] {
                    let map = Map::new();
                    map.live("SET k v EX 7", "+OK\r\n");
                    let (early, late) = (map.begin_by(first, one), map.begin_by(second, other));
                    map.answer(late, ":1\r\n");
                    map.inherits("k", None);
                    if is_lost {
                        drop(early);
                    } else {
                        map.answer(early, ":1\r\n");
                    }
                    map.inherits("k", None);
                    map.live(second, ":1\r\n");
                    map.inherits("k", Some(5000));
                }
            }
        }
    }

    #[test]
    fn what_goes_by_one_connection_is_applied_in_its_order() {
        let map = Map::new();
        let commands = ["EXPIRE k 9", "DEL k", "SET k v EX 5", "RENAME k j"];
        let [first, second, third, last] = commands.map(|command| map.begin_by(command, Some(1)));
        map.answer(first, ":1\r\n");
        map.answer(second, ":1\r\n");
        map.inherits("k", None);
        map.answer(third, "+OK\r\n");
        map.inherits("k", None);
        map.answer(last, "+OK\r\n");
        map.inherits("k", None);
        let (first, last) = (map.begin_by("DEL k", Some(1)), map.begin_by("EXPIRE k 5", Some(1)));
        map.answer(first, ":1\r\n");
        map.answer(last, ":1\r\n");
        map.inherits("k", Some(5000));
    }

    #[test]
    fn what_was_sent_before_the_first_deadline_may_end_after_it() {
        let map = Map::new();
        let counted = map.0.unheld().unwrap();
        map.live("EXPIRE k 5", ":1\r\n");
        map.inherits("k", None);
        assert!(map.0.unheld().is_none(), "from now on writes hold their keys");
        map.live("EXPIRE k 5", ":1\r\n");
        map.inherits("k", None);
        drop(counted);
        map.live("EXPIRE k 5", ":1\r\n");
        map.inherits("k", Some(5000));
    }

    #[test]
    fn a_command_that_waits_for_others_holds_nothing_but_its_keys() {
        for command in [format!("BLPOP {}jobs 0", "j ".repeat(65)), "BLPOP jobs 0".to_owned()] {
            for sets_before in [false, true] {
                let map = Map::new();
                if sets_before {
                    map.live("EXPIRE jobs 9", ":1\r\n");
                }
                let waits =
                    map.with(&command, |map, written, _| map.hold_waiting(written, Some(1)));
                assert_eq!(map.0.is_empty(), !sets_before, "nothing is looked up in vain");
                map.live("EXPIRE k 5", ":1\r\n");
                map.inherits("k", Some(5000));
                map.live("EXPIRE jobs 5", ":1\r\n");
                map.inherits("jobs", None);
                drop(waits);
                map.live("EXPIRE jobs 5", ":1\r\n");
                map.inherits("jobs", Some(5000));
            }
        }
    }

    #[test]
    fn a_plain_set_settles_its_key_and_no_other() {
        let map = Map::new();
        assert!(!map.0.begin_plain(b"k", None).holds(), "there is nothing to know yet");
        map.live("SET k v EX 5", "+OK\r\n");
        map.live("SET j v EX 6", "+OK\r\n");
        let late = map.begin("EXPIRE k 7");
        let plain = map.0.begin_plain(b"k", None);
        map.answer(late, ":1\r\n");
        drop(plain);
        map.inherits("k", None);
        map.inherits("j", Some(6000));
        map.live("EXPIRE k 8", ":1\r\n");
        drop(map.0.begin_plain(b"k", None));
        map.inherits("k", None);
    }

    #[test]
    fn what_is_held_takes_no_place_from_what_is_known() {
        let map = Map::new();
        for n in 0..KEYS_MAX {
            map.live(&format!("SET k{n} v EX 90"), "+OK\r\n");
        }
        let keys: Vec<String> = (0..HELD_MAX).map(|number| format!("h{number}")).collect();
        let removal = format!("DEL {}", keys.join(" "));
        let on_wire = map.with(&removal, |map, written, _| map.hold(&[written], None));
        assert!(on_wire.holds());
        assert!(!map.0.begin_plain(b"other", None).holds(), "so many are held at once");
        assert!(map.0.begin_plain(b"h5", None).holds(), "that one is held already");
        let waits = |map: &Arc<Deadlines>, written: Written<'_, '_>, _: &[u8]| {
            map.hold_waiting(written, None)
        };
        let waits = map.with("BLPOP jobs 0", waits);
        assert!(waits.holds(), "it waits for ever");
        map.inherits("k0", Some(90_000));
        map.inherits(&format!("k{}", KEYS_MAX - 1), Some(90_000));
        drop(on_wire);
        map.queue("EXPIRE late 70");
        map.replayed("EXPIRE late 70");
        map.inherits("late", Some(70_000));
        assert!(map.0.begin_plain(b"other", None).holds());
        drop(waits);
        assert_eq!(map.0.entries.lock().held, 0);
    }

    #[test]
    fn a_write_of_very_many_keys_holds_none_of_them() {
        let map = Map::new();
        map.live("SET k0 v EX 5", "+OK\r\n");
        map.live("SET other v EX 5", "+OK\r\n");
        let keys: Vec<String> = (0..=HELD_MAX).map(|number| format!("k{number}")).collect();
        let removal = format!("DEL {}", keys.join(" "));
        let on_wire = map.with(&removal, |map, written, _| map.hold(&[written], None));
        assert!(!on_wire.holds());
        map.inherits("k0", None);
        map.inherits("other", Some(5000));
        map.live("EXPIRE k0 5", ":1\r\n");
        map.inherits("k0", None);
        drop(on_wire);
        map.live("EXPIRE k0 5", ":1\r\n");
        map.inherits("k0", Some(5000));
    }

    #[test]
    fn a_queued_write_is_settled_by_nothing_that_was_on_the_wire() {
        let map = Map::new();
        map.live("SET k v EX 9", "+OK\r\n");
        let sent = map.begin("EXPIRE k 7");
        map.queue("SET k v EX 5");
        map.answer(sent, ":1\r\n");
        map.inherits("k", None);
        map.replayed("SET k v EX 5");
        map.inherits("k", Some(5000));
    }

    #[test]
    fn a_map_whose_keys_are_not_on_the_wire_any_more_is_empty() {
        let map = Map::new();
        map.live("SET k v EX 5", "+OK\r\n");
        let commands = ["DEL k", "COPY a b", "EXPIRE a 5", "SET b v", "RENAME c d"];
        let sent = commands.map(|command| map.begin(command));
        assert!(!map.0.is_empty());
        for sent in sent {
            map.answer(sent, "-ERR no\r\n");
        }
        assert!(map.0.is_empty());
    }

    #[test]
    fn an_answer_that_comes_late_tells_nothing_of_a_newer_write() {
        for newer in ["SET k v", "EXPIRE k 9"] {
            let map = Map::new();
            let first = map.begin("SET k v EX 5");
            map.live(newer, ":1\r\n");
            map.answer(first, "+OK\r\n");
            map.inherits("k", None);
        }
    }

    #[test]
    fn what_is_taken_along_is_what_nobody_has_settled_meanwhile() {
        for (settles, left) in [(None, Some(5000)), (Some("EXPIRE a 9"), None)] {
            let map = Map::new();
            map.live("SET a v EX 5", "+OK\r\n");
            let copy = map.begin("COPY a b REPLACE");
            if let Some(settles) = settles {
                map.live(settles, ":1\r\n");
            }
            map.answer(copy, ":1\r\n");
            map.inherits("b", left);
            map.inherits("a", left);
        }
    }

    #[test]
    fn a_name_takes_its_deadline_along() {
        let map = Map::new();
        map.live("SET a v EX 5", "+OK\r\n");
        map.live("RENAME a b", "+OK\r\n");
        map.inherits("a", None);
        map.inherits("b", Some(5000));
        assert_eq!(map.queue("RENAME b c"), [("b".to_owned(), 5000)]);
        map.inherits("b", None);
        assert_eq!(map.queue("COPY c d REPLACE"), [("c".to_owned(), 5000)]);
        map.inherits("c", Some(5000));
        map.inherits("d", Some(5000));
        map.queue("RENAMENX d e");
        map.inherits("d", None);
        map.inherits("e", None);
    }

    #[test]
    fn a_queued_deadline_is_known_once_it_was_replayed_and_nothing_came_since() {
        let map = Map::new();
        map.queue("EXPIRE k 5");
        map.inherits("k", None);
        map.replayed("EXPIRE k 5");
        map.inherits("k", Some(5000));
        map.queue("EXPIRE k 5");
        map.queue("DEL k");
        map.replayed("EXPIRE k 5");
        map.inherits("k", None);
    }

    #[test]
    fn a_full_map_forgets_what_ends_soonest() {
        let map = Map::new();
        for n in 0..KEYS_MAX + 10 {
            map.live(&format!("SET k{n} v EX {}", 90_000 - n), "+OK\r\n");
        }
        assert!(map.0.count.load(Ordering::Relaxed) <= KEYS_MAX);
        map.inherits("k5", Some(89_995_000));
        map.inherits(&format!("k{}", KEYS_MAX - 1), None);
        map.inherits(&format!("k{}", KEYS_MAX + 9), Some((90_000 - (KEYS_MAX as u64 + 9)) * 1000));
    }

    #[test]
    fn what_has_passed_lately_has_no_time_left() {
        let map = Map::new();
        map.live("SET k v PX 400", "+OK\r\n");
        let second = Duration::from_secs(1);
        assert!(map.0.left(b"k", second).unwrap() <= Duration::from_millis(400));
        map.0.tell(UnixMillis::new(NOW + 1000));
        assert_eq!(map.0.left(b"k", second), Some(Duration::ZERO));
        map.0.tell(UnixMillis::new(NOW + 1500));
        assert_eq!(map.0.left(b"k", second), None);
        map.inherits("k", None);
    }
}
