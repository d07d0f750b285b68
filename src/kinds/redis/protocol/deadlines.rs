//! The deadlines that fusebox has carried to the server, key by key.
//!
//! A queued write that changes a key and leaves its time to live alone inherits the one that the key has *when
//! the write is accepted*. By the time of its replay the server may have let the key expire; then the write
//! would create it again, to live for ever. So it is stored with the deadline that the key had
//! ([`super::internal`]), and this map knows it.
//!
//! ```text
//!  live write ── begin ──▶ the key's entry is its own, without a deadline
//!       │ answered         └──▶ the deadline, if the entry is still this write's
//!  queued write ── stored ──▶ the deadline that it inherits; else the entry is its own
//!       │ replayed, answered  └──▶ the deadline, if the entry is still this write's
//! ```
//! **An entry belongs to the last write that was begun or stored for its key.** So a deadline whose answer comes
//! late never outlives a newer write that settled the key otherwise. Whatever the map is not sure of it
//! forgets: an unknown outcome, a command that is not in [`super::ttl`]'s table, one that may have emptied the
//! key. What is forgotten is not inherited; a key is never ended by a deadline that it may not have.
//!
//! A write whose commands are not read one by one, a script say, forgets all of its lanes, when it is sent
//! and when it ends ([`Deadlines::forget`]).
//!
//! It holds 65,536 keys, each in the place of its lane and recognised by a keyed 64-bit hash, so that keys whose lanes
//! collide forget each other; when it is full, what has passed goes first, and then the half with the nearest
//! deadlines. It is empty after a start.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use fusebox_state::{LaneId, UnixMillis};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    resp::Reply,
    ttl::{self, Fate},
};

const KEYS_MAX: usize = 65_536;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The key, by its keyed hash.
    key: u64,
    /// When the key ends, in milliseconds since the epoch; `None` while that is not known.
    at: Option<u64>,
    /// Whose the entry is.
    owner: u64,
}

/// A key's place in the map.
#[derive(Clone, Copy, Debug)]
struct Place {
    lane: LaneId,
    key: u64,
}

#[derive(Debug, Default)]
struct Entries(HashMap<LaneId, Entry>);

impl Entries {
    fn get(&self, place: Place) -> Option<&Entry> {
        self.0.get(&place.lane).filter(|entry| entry.key == place.key)
    }

    fn get_mut(&mut self, place: Place) -> Option<&mut Entry> {
        self.0.get_mut(&place.lane).filter(|entry| entry.key == place.key)
    }
}

/// The map.
#[derive(Debug)]
pub(crate) struct Deadlines {
    entries: Mutex<Entries>,
    /// The database's number, as it is part of lanes.
    namespace: String,
    count: AtomicUsize,
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
#[derive(Debug, Default)]
pub(crate) struct Begun {
    owner: u64,
    deadlines: Vec<(Place, u64)>,
}

impl Deadlines {
    /// For the keys of the database of this number.
    pub(crate) fn new(namespace: &str) -> Self {
        Self {
            entries: Mutex::default(),
            namespace: namespace.to_owned(),
            count: AtomicUsize::new(0),
            hasher: RandomState::new(),
            // Apart from the hashes of bodies, as far as that can be.
            next: AtomicU64::new(1),
            offset: AtomicI64::new(0),
            base: Instant::now(),
        }
    }

    /// Whether nothing is known of any key.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Nothing is known any more of the keys in `lanes`, or of any.
    pub(crate) fn forget(&self, lanes: Option<&[LaneId]>) {
        if self.is_empty() {
            return;
        }
        let mut entries = self.entries.lock();
        match lanes {
            None => entries.0.clear(),
            Some(lanes) => {
                for lane in lanes {
                    entries.0.remove(lane);
                }
            }
        }
        self.count.store(entries.0.len(), Ordering::Release);
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

    /// A live write is about to be sent, which was accepted at `accepted`.
    pub(crate) fn begin(&self, written: Written<'_, '_>, accepted: UnixMillis) -> Begun {
        let owner = self.next.fetch_add(1, Ordering::Relaxed);
        let mut begun = Begun { owner, deadlines: Vec::new() };
        let mut entries = self.entries.lock();
        begun.deadlines = self.settled(&entries, written, accepted.get());
        self.own(&mut entries, written, owner);
        begun
    }

    /// Whose a command of a queued call is: the call as its caller sent it, and the command's place in it.
    pub(crate) fn owner(&self, original: &[u8], place: usize) -> u64 {
        self.hasher.hash_one((original, place))
    }

    /// A queued write is about to be sent that sets its key's deadline on the server.
    pub(crate) fn replay(
        &self,
        written: Written<'_, '_>,
        owner: u64,
        accepted: UnixMillis,
    ) -> Begun {
        let deadlines = self.settled(&self.entries.lock(), written, accepted.get());
        Begun { owner, deadlines }
    }

    /// The write was answered with `reply`.
    pub(crate) fn answered(&self, written: Written<'_, '_>, begun: &Begun, reply: &[u8]) {
        if begun.deadlines.is_empty() || work_done(written, reply) != Some(true) {
            return;
        }
        let mut entries = self.entries.lock();
        for (place, at) in &begun.deadlines {
            if let Some(entry) = entries.get_mut(*place)
                && entry.owner == begun.owner
            {
                entry.at = Some(*at);
            }
        }
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
        self.own(&mut entries, written, owner);
        for (place, at) in taken {
            if let Some(entry) = entries.get_mut(place) {
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
    fn settled(
        &self,
        entries: &Entries,
        written: Written<'_, '_>,
        accepted: u64,
    ) -> Vec<(Place, u64)> {
        let mut settled = self.taken(entries, written, self.now());
        for (key, touch) in written.touches() {
            if let Fate::Sets(expiry) = touch.fate
                && let Some(at) = ttl::deadline(expiry, accepted)
            {
                settled.push((self.place(key), at));
            }
        }
        settled
    }

    /// The deadlines that keys take over from others.
    fn taken(&self, entries: &Entries, written: Written<'_, '_>, now: u64) -> Vec<(Place, u64)> {
        let taken = written.touches().filter_map(|(key, touch)| match touch.fate {
            Fate::Takes(from) if touch.sure || ttl::replaces(written.args) => {
                let at = self.alive(entries, written.args.get(from)?, now)?;
                Some((self.place(key), at))
            }
            _ => None,
        });
        taken.collect()
    }

    /// Makes the entries `owner`'s that the write settles, and forgets what it may have ended.
    fn own(&self, entries: &mut Entries, written: Written<'_, '_>, owner: u64) {
        for (key, touch) in written.touches() {
            let Place { lane, key } = self.place(key);
            match touch.fate {
                Fate::Keeps | Fate::Inherits => {}
                Fate::Sets(_) | Fate::Takes(_) => {
                    self.make_room(entries);
                    entries.0.insert(lane, Entry { key, at: None, owner });
                }
                Fate::Shrinks | Fate::Clears | Fate::Leaves(_) | Fate::Unknown => {
                    entries.0.remove(&lane);
                }
            }
        }
        self.count.store(entries.0.len(), Ordering::Release);
    }

    fn make_room(&self, Entries(entries): &mut Entries) {
        if entries.len() < KEYS_MAX {
            return;
        }
        let now = self.now();
        entries.retain(|_, entry| entry.at.is_some_and(|at| at > now));
        if entries.len() >= KEYS_MAX / 2 {
            let mut times: Vec<u64> = entries.values().filter_map(|entry| entry.at).collect();
            let middle = times.len() / 2;
            let (_, median, _) = times.select_nth_unstable(middle);
            let median = *median;
            entries.retain(|_, entry| entry.at.is_some_and(|at| at > median));
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
    use super::super::{commands::Commands, resp};
    use super::*;

    const NOW: u64 = 1_000_000;

    struct Map(Deadlines);

    impl Map {
        fn new() -> Self {
            let map = Self(Deadlines::new("0"));
            map.0.tell(UnixMillis::new(NOW));
            map
        }

        fn with<T>(
            &self,
            command: &str,
            f: impl FnOnce(&Deadlines, Written<'_, '_>, &[u8]) -> T,
        ) -> T {
            let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
            let spec = Commands::default().find(&args).unwrap();
            let places = spec.keys(&args).unwrap();
            let written = Written { name: &spec.name, args: &args, places: &places };
            f(&self.0, written, &resp::command(&args))
        }

        fn begin(&self, command: &str) -> Begun {
            self.with(command, |map, written, _| map.begin(written, UnixMillis::new(NOW)))
        }

        fn answer(&self, command: &str, begun: &Begun, reply: &str) {
            self.with(command, |map, written, _| map.answered(written, begun, reply.as_bytes()));
        }

        fn live(&self, command: &str, reply: &str) {
            let begun = self.begin(command);
            self.answer(command, &begun, reply);
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
    fn what_is_not_read_one_by_one_forgets_its_lanes() {
        for (lanes, left) in [
            (Some(LaneId::of(b"0", b"k")), None),
            (None, None),
            (Some(LaneId::of(b"1", b"k")), Some(5000)),
        ] {
            let map = Map::new();
            let first = map.begin("SET k v EX 5");
            map.answer("SET k v EX 5", &first, "+OK\r\n");
            map.0.forget(lanes.as_slice().first().map(std::slice::from_ref));
            map.inherits("k", left);
            // Not even what was begun before and is answered after.
            map.answer("SET k v EX 5", &first, "+OK\r\n");
            map.inherits("k", left);
        }
    }

    #[test]
    fn an_answer_that_comes_late_tells_nothing_of_a_newer_write() {
        let map = Map::new();
        let first = map.begin("SET k v EX 5");
        drop(map.begin("SET k v"));
        map.answer("SET k v EX 5", &first, "+OK\r\n");
        map.inherits("k", None);
        let first = map.begin("SET k v EX 5");
        map.live("EXPIRE k 9", ":1\r\n");
        map.answer("SET k v EX 5", &first, "+OK\r\n");
        map.inherits("k", Some(9000));
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
