use std::sync::Barrier;

use super::*;
use crate::{shelf::ShelfSettings, units::UnixMillis};

const LANE: LaneId = LaneId(1);

fn at(seconds: u64) -> Moment {
    Moment::from_millis(seconds * 1_000)
}

fn cache() -> Cache {
    Cache::new(CacheSettings {
        items: 1_000,
        bytes: 1 << 20,
        ttl: Duration::from_secs(300),
        max_stale: Duration::from_secs(3_600),
        entry_max: 16 << 20,
        disk_bytes: 0,
    })
}

fn key(name: &'static str) -> Bytes {
    Bytes::from_static(name.as_bytes())
}

fn look(cache: &Cache, now: u64) -> Option<(u64, bool)> {
    cache.get(LANE, &key("k"), None, at(now)).map(|hit| (hit.age.as_secs(), hit.fresh))
}

#[test]
fn what_is_answered_again_as_before_is_fresh_again() {
    let cache = cache();
    let fill = |value, at_second| {
        cache.fill(cache.begin(LANE), key("k"), key(value), at(at_second), None);
    };
    fill("v", 0);
    fill("v", 200);
    assert_eq!(look(&cache, 400), Some((200, true)));
    assert_eq!(cache.entries()[0].1.stored_at, at(200));
    assert_eq!(cache.sweep(at(3_700)), 0);
    cache.fill(cache.begin(LANE), key("l"), key("w"), at(210), None);
    assert_eq!(look(&cache, 400), Some((200, true)), "it keeps its time beside another");
    let late = cache.begin(LANE);
    cache.invalidate(LANE);
    cache.fill(late, key("k"), key("v"), at(400), None);
    assert_eq!(look(&cache, 400), None);
    assert_eq!(cache.sweep(at(5_000)), 0);
}

#[test]
fn what_was_withdrawn_for_a_write_that_wrote_nothing_comes_back() {
    let filled = || {
        let cache = cache();
        cache.fill(cache.begin(LANE), key("k"), key("v"), at(0), None);
        cache
    };
    let cache = filled();
    let early = cache.begin(LANE);
    let first = cache.withdraw(LANE, None);
    assert_eq!(look(&cache, 1), None);
    let again = cache.withdraw(LANE, first).unwrap();
    cache.put_back(again);
    assert_eq!(look(&cache, 1), Some((1, true)), "after two attempts");
    cache.fill(early, key("k"), key("old"), at(1), None);
    assert_eq!(look(&cache, 1), Some((1, true)), "a fill from before is void all the same");

    let other_write = filled();
    let withdrawn = other_write.withdraw(LANE, None).unwrap();
    assert!(other_write.withdraw(LANE, None).is_none());
    other_write.put_back(withdrawn);
    assert_eq!(look(&other_write, 1), None, "another write was sent meanwhile");
    let stale = filled().withdraw(LANE, None);
    assert!(other_write.withdraw(LANE, stale).is_none(), "of another cache");

    let read = filled();
    let withdrawn = read.withdraw(LANE, None).unwrap();
    read.fill(read.begin(LANE), key("k"), key("new"), at(2), None);
    read.put_back(withdrawn);
    assert_eq!(look(&read, 2), Some((0, true)), "what was read since is newer");

    let (one, other) = (filled(), self::cache());
    other.invalidate(LANE);
    other.put_back(one.withdraw(LANE, None).unwrap());
    assert_eq!(look(&other, 1), None, "into another cache");
}

#[test]
fn an_entry_is_fresh_then_stale_then_gone() {
    let cache = cache();
    cache.fill(cache.begin(LANE), key("k"), key("v"), at(0), None);
    assert_eq!(look(&cache, 300), Some((300, true)));
    assert_eq!(look(&cache, 301), Some((301, false)));
    assert_eq!(look(&cache, 3_600), Some((3_600, false)));
    assert_eq!(look(&cache, 3_601), None);
    assert_eq!(cache.sweep(at(3_601)), 1);
    assert_eq!(cache.stats().0, 0);
}

#[test]
fn what_a_program_cannot_start_without_answers_for_a_day() {
    let cache = cache();
    let fill = cache.begin(LANE).outlasting(true);
    cache.fill(fill, key("k"), key("v"), at(0), None);
    assert_eq!(look(&cache, 3_601), Some((3_601, false)));
    assert_eq!((cache.sweep(at(86_400)), look(&cache, 86_401)), (0, None));
    assert!(cache.entries()[0].1.outlasts);
    let asked = Some(Duration::from_secs(60));
    assert!(cache.get(LANE, &key("k"), asked, at(61)).is_none(), "a caller asks for less");
    assert_eq!(cache.sweep(at(86_401)), 1);
    let before = cache.outlasting();
    cache.invalidate_all();
    assert_ne!(cache.outlasting(), before, "what keeps it has to hear that it has gone");
}

#[test]
fn a_caller_may_ask_for_less_staleness_but_not_for_more() {
    let cache = cache();
    cache.fill(cache.begin(LANE), key("k"), key("v"), at(0), None);
    let get = |max| cache.get(LANE, &key("k"), Some(Duration::from_secs(max)), at(100)).is_some();
    assert!(get(100) && !get(99));
    assert!(cache.get(LANE, &key("k"), Some(Duration::MAX), at(3_601)).is_none());
}

#[test]
fn a_write_drops_the_lane_and_voids_a_fill_that_began_earlier() {
    let cache = cache();
    cache.fill(cache.begin(LANE), key("k"), key("old"), at(0), None);
    let late = cache.begin(LANE);
    cache.invalidate(LANE);
    assert_eq!(look(&cache, 1), None);
    cache.fill(late, key("k"), key("old"), at(1), None);
    assert_eq!(look(&cache, 1), None);
    cache.fill(cache.begin(LANE), key("k"), key("new"), at(2), None);
    assert_eq!(look(&cache, 2), Some((0, true)));
}

#[test]
fn what_a_write_drops_while_the_cache_is_swept_does_not_come_back() {
    const ROUNDS: u64 = 1_000;
    let cache = cache();
    let (begun, swept) = (Barrier::new(2), Barrier::new(2));
    let mut came_back = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                begun.wait();
                cache.sweep(at(10));
                swept.wait();
            }
        });
        for round in 0..ROUNDS {
            // One of them has ended: the others are to be kept.
            for number in 0..READS_PER_LANE {
                let until = (number == 0).then(|| at(5));
                cache.fill(cache.begin(LANE), format!("k{number}"), "v", at(0), until);
            }
            begun.wait();
            (0..round % 64 * 16).for_each(|_| std::hint::spin_loop());
            cache.invalidate(LANE);
            swept.wait();
            came_back += cache.stats().0;
            cache.invalidate(LANE);
        }
    });
    assert_eq!(came_back, 0);
}

#[test]
fn an_entry_ends_when_its_value_does() {
    let cache = cache();
    cache.fill(cache.begin(LANE), key("k"), key("v"), at(0), Some(at(2)));
    assert_eq!(look(&cache, 1), Some((1, true)));
    assert_eq!(look(&cache, 2), None);
    assert_eq!((cache.sweep(at(1)), cache.sweep(at(2))), (0, 1));
}

#[test]
fn what_ends_a_little_later_is_refreshed_in_place_and_never_kept_beyond_its_end() {
    let cache = cache();
    let ms = Moment::from_millis;
    for (until, kept) in [(5_000, 5_000), (5_010, 5_000), (4_999, 4_999), (5_010, 5_010)] {
        cache.fill(cache.begin(LANE), key("k"), key("v"), at(1), Some(ms(until)));
        let held = cache.inner.get(&LANE).unwrap();
        assert_eq!(held.first().and_then(|read| read.until), Some(ms(kept)), "{until}");
    }
    cache.fill(cache.begin(LANE), key("k"), key("v"), at(1), None);
    assert_eq!(look(&cache, 7), Some((6, true)), "it has no end any more");
}

#[test]
fn fills_are_barred_where_a_write_may_still_land() {
    let cache = cache();
    cache.bar(&Lanes::One(LANE), at(5));
    cache.bar(&Lanes::One(LANE), at(3));
    assert!(cache.is_barred(LANE, at(4)) && !cache.is_barred(LaneId(2), at(4)));
    assert!(!cache.is_barred(LANE, at(5)));
    cache.bar(&Lanes::All, at(9));
    assert!(cache.is_barred(LANE, at(8)) && cache.is_barred(LaneId(7), at(8)));
}

#[test]
fn several_reads_share_a_lane() {
    let cache = cache();
    for name in ["HGET h a", "HGET h b", "HGETALL h"] {
        cache.fill(cache.begin(LANE), key(name), key(name), at(0), None);
    }
    assert_eq!(
        cache.get(LANE, &key("HGET h a"), None, at(0)).unwrap().value,
        Value::Memory(key("HGET h a"))
    );
    assert_eq!(cache.stats().0, 3);
    cache.invalidate(LANE);
    assert_eq!(cache.stats().0, 0);
}

#[test]
fn it_stays_within_its_items_and_bytes() {
    let small = Cache::new(CacheSettings { items: 100, bytes: 64 << 10, ..cache().settings });
    for lane in 0..5_000 {
        let lane = LaneId(lane);
        small.fill(small.begin(lane), key("k"), key("v"), at(0), None);
    }
    assert!(small.stats().0 <= 100, "{} entries", small.stats().0);
    for lane in 0..5_000 {
        let lane = LaneId(lane);
        small.fill(small.begin(lane), key("k"), Bytes::from(vec![b'x'; 4_096]), at(0), None);
    }
    assert!(small.stats().1 <= 64 << 10, "{} bytes", small.stats().1);
    small.fill(small.begin(LANE), key("k"), Bytes::from(vec![b'x'; 32 << 10]), at(0), None);
    assert!(small.get(LANE, &key("k"), None, at(0)).is_none_or(|hit| hit.value.weight() == 4_096));
}

#[test]
fn a_full_cache_keeps_one_newcomer_in_eight_and_what_is_read_often() {
    let small = Cache::new(CacheSettings { items: 64, bytes: 1 << 20, ..cache().settings });
    let read = |lane: u64, value: &'static str| {
        small.fill(small.begin(LaneId(lane)), key("k"), value, at(1), None);
    };
    let held = |lane: u64| {
        small.get(LaneId(lane), &key("k"), None, at(1)).and_then(|hit| hit.value.in_memory())
    };
    (0..40).for_each(|lane| read(lane, "v"));
    assert!((0..40).all(|lane| held(lane).is_some()), "it keeps all while there is room");
    (0..1_000).for_each(|lane| read(lane, "v"));
    let newcomers = 2_000..2_800;
    let kept = newcomers.filter(|lane| {
        read(*lane, "v");
        held(*lane).is_some()
    });
    let kept: Vec<u64> = kept.collect();
    assert!((50..=100).contains(&kept.len()), "{} of 800", kept.len());
    // What is held is changed at any time.
    let last = *kept.last().unwrap();
    read(last, "w");
    assert_eq!(held(last).unwrap(), "w");
    let comes_again = (0..16).any(|_| {
        read(5_000, "v");
        held(5_000).is_some()
    });
    assert!(comes_again, "what comes again is kept");
}

#[test]
fn its_counts_are_what_a_walk_would_count() {
    let small = Cache::new(CacheSettings { items: 50, bytes: 8 << 10, ..cache().settings });
    let walked = |cache: &Cache| {
        let held = cache.entries();
        let size = |read: &CachedRead| read.key.len() + read.value.weight();
        let bytes: usize = held.iter().map(|(_, read)| size(read)).sum();
        (held.len() as u64, bytes as u64)
    };
    let counted = |cache: &Cache| (cache.stats().0, cache.stats().1);
    let mut random = fastrand::Rng::with_seed(1);
    for step in 0..4_000_u64 {
        let lane = LaneId(random.u64(..100));
        match step % 16 {
            0 => small.invalidate(lane),
            1 => assert!(small.sweep(at(step / 8)) <= 50),
            _ => {
                let value = Bytes::from(vec![b'x'; random.usize(..2_000)]);
                let name = ["k", "l", "m"][random.usize(..3)];
                small.fill(small.begin(lane), key(name), value, at(step / 8), None);
            }
        }
        if step % 64 == 0 {
            assert_eq!(counted(&small), walked(&small), "at step {step}");
        }
    }
    assert!(counted(&small).0 > 0, "something was left to count");
    small.invalidate_all();
    assert_eq!(counted(&small), (0, 0));
}

#[test]
fn a_cache_that_takes_anothers_place_takes_over_nothing_that_was_written_since() {
    let old = Arc::new(cache());
    let new = Cache::in_place_of(&old, old.settings);
    let other = LaneId(2);
    old.fill(old.begin(LANE), key("k"), key("v"), at(100), None);
    old.fill(old.begin(other), key("k"), key("v"), at(100), None);
    // `new` is in use; a write comes before the old entries are read.
    new.invalidate(LANE);
    new.take_over();
    assert_eq!(look(&new, 101), None);
    assert!(new.get(other, &key("k"), None, at(101)).unwrap().fresh);
}

#[test]
fn a_cache_that_takes_anothers_place_keeps_what_was_read_since() {
    let old = Arc::new(cache());
    old.fill(old.begin(LANE), key("k"), key("old"), at(100), None);
    old.fill(old.begin(LANE), key("l"), key("old"), at(100), None);
    let new = Cache::in_place_of(&old, old.settings);
    new.fill(new.begin(LANE), key("k"), key("new"), at(150), None);
    new.take_over();
    assert_eq!(look(&new, 151), Some((1, true)), "it is the newer one");
    let beside = new.get(LANE, &key("l"), None, at(151)).unwrap();
    assert_eq!(beside.age, Duration::from_secs(51), "what was not read since is taken over");
    old.fill(old.begin(LaneId(2)), key("k"), key("old"), at(150), None);
    new.take_over();
    assert_eq!(new.stats().0, 2, "it is taken over once");
}

#[test]
fn what_is_taken_over_is_older_than_what_was_read_since_and_takes_no_place_of_it() {
    let of = |cache: &Cache, names: std::ops::Range<usize>, at_second| {
        for name in names {
            cache.fill(cache.begin(LANE), format!("k{name}"), "v", at(at_second), None);
        }
    };
    let held = |cache: &Cache| -> Vec<String> {
        let names = cache.entries().into_iter().map(|(_, read)| read.key);
        names.map(|name| String::from_utf8(name.to_vec()).unwrap()).collect()
    };
    let old = Arc::new(cache());
    of(&old, 0..READS_PER_LANE, 100);
    let full = Cache::in_place_of(&old, old.settings);
    of(&full, 100..100 + READS_PER_LANE, 150);
    let read = held(&full);
    full.take_over();
    assert_eq!(held(&full), read, "there is no room for what is older");

    let new = Cache::in_place_of(&old, old.settings);
    of(&new, 100..101, 150);
    new.take_over();
    let names = |numbers: std::ops::Range<usize>| numbers.map(|number| format!("k{number}"));
    let as_read: Vec<String> = names(1..READS_PER_LANE).chain(names(100..101)).collect();
    assert_eq!(held(&new), as_read, "the oldest of them has no room");
    let restored = cache();
    of(&restored, 100..101, 150);
    restored.restore(old.entries());
    assert_eq!(held(&restored), as_read);
}

#[test]
fn what_is_older_takes_no_place_of_what_was_read_since() {
    let few = CacheSettings { items: 64, ..cache().settings };
    let read = |cache: &Cache, lane| {
        cache.fill(cache.begin(LaneId(lane)), key("k"), key("v"), at(1), None);
    };
    let fill_up = |cache: &Cache| {
        let mut lanes = 0..;
        while !cache.is_full() {
            read(cache, lanes.next().unwrap());
        }
    };
    let lanes = |cache: &Cache| {
        let mut lanes: Vec<LaneId> = cache.entries().into_iter().map(|(lane, _)| lane).collect();
        lanes.sort_unstable();
        lanes
    };
    let old = Arc::new(cache());
    (10_000..10_640).for_each(|lane| read(&old, lane));
    let new = Cache::in_place_of(&old, few);
    let restored = Cache::new(few);
    for cache in [&new, &restored] {
        fill_up(cache);
    }
    let before = [&new, &restored].map(lanes);
    new.take_over();
    restored.restore(old.entries());
    assert_eq!([&new, &restored].map(lanes), before);

    let start = LaneId(20_000);
    let old = Arc::new(cache());
    old.fill(old.begin(start).outlasting(true), key("k"), key("v"), at(1), None);
    let new = Cache::in_place_of(&old, few);
    fill_up(&new);
    new.take_over();
    assert!(new.holds(start, b"k", None, at(1)), "no program could start without it");
}

#[test]
fn what_is_not_taken_over_yet_answers_by_the_new_limits() {
    let old = Arc::new(cache());
    old.fill(old.begin(LANE), key("k"), key("v"), at(100), None);
    let (ttl, max_stale) = (Duration::from_secs(60), Duration::from_secs(600));
    let new = Arc::new(Cache::in_place_of(&old, CacheSettings { ttl, max_stale, ..old.settings }));
    // As if another thread was taking it over.
    let taking_over = new.taking_over.lock();
    assert!(new.holds_something());
    assert_eq!(look(&new, 160), Some((60, true)));
    assert_eq!(look(&new, 161), Some((61, false)));
    assert_eq!((look(&new, 700), look(&new, 701)), (Some((600, false)), None));
    let newer = Cache::in_place_of(&new, old.settings);
    assert_eq!(look(&newer, 701), Some((601, false)), "two have not been taken over");
    new.fill(new.begin(LANE), key("l"), key("w"), at(150), None);
    assert_eq!(look(&new, 160), Some((60, true)), "what is read since does not hide it");
    new.invalidate(LANE);
    assert_eq!((look(&new, 160), look(&newer, 160)), (None, None), "it was written");
    drop(taking_over);
    new.take_over();
    assert!(!new.holds_something());
}

#[test]
fn what_is_read_while_a_cache_takes_over_is_not_replaced_by_what_is_older() {
    for round in 0..1_000_u32 {
        let old = Arc::new(cache());
        old.fill(old.begin(LANE), key("k"), key("old"), at(100), None);
        let new = Cache::in_place_of(&old, old.settings);
        let together = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                together.wait();
                new.take_over();
            });
            together.wait();
            (0..round % 64).for_each(|_| std::hint::spin_loop());
            new.fill(new.begin(LANE), key("k"), key("new"), at(150), None);
        });
        assert_eq!(look(&new, 151), Some((1, true)), "in round {round}");
    }
}

#[test]
fn caches_that_take_one_anothers_place_lose_nothing_and_bring_nothing_back() {
    let (first, other) = (Arc::new(cache()), LaneId(2));
    for lane in [LANE, other] {
        first.fill(first.begin(lane), key("k"), key("v"), at(100), None);
    }
    let second = Arc::new(Cache::in_place_of(&first, first.settings));
    second.invalidate(other);
    // Its place is taken before it has taken over anything.
    let third = Cache::in_place_of(&second, second.settings);
    third.take_over();
    assert_eq!(look(&third, 101), Some((1, true)));
    assert!(third.get(other, &key("k"), None, at(101)).is_none(), "it was written in between");
}

#[test]
fn a_cache_that_takes_anothers_place_keeps_its_bars_and_counts() {
    let old = Arc::new(cache());
    old.fill(old.begin(LANE), key("k"), key("v"), at(100), None);
    assert!(look(&old, 101).is_some() && old.get(LANE, &key("l"), None, at(101)).is_none());
    old.bar(&Lanes::One(LANE), at(500));
    let new = Cache::in_place_of(&old, CacheSettings { items: 3, ..old.settings });
    assert_eq!((new.is_barred(LANE, at(499)), new.is_barred(LANE, at(500))), (true, false));
    old.bar(&Lanes::One(LANE), at(600));
    assert!(new.is_barred(LANE, at(599)), "who has the old one in hand bars it here, too");
    let (entries, _, hits, misses) = new.stats();
    assert_eq!((entries, hits, misses), (0, 1, 1));
}

fn label(name: &'static str) -> Label {
    let at = UnixMillis::new(1);
    Label { target: "t".into(), lane: LANE, key: key(name), at, until: None }
}

/// Waits until the shelf has done what it was asked.
fn settle(cache: &Arc<Cache>) {
    let (done, told) = std::sync::mpsc::channel();
    let shelf = cache.shelf().unwrap();
    shelf.put(label("last"), Bytes::from_static(b"x"), move |shelved| {
        drop(shelved);
        done.send(()).unwrap();
    });
    told.recv().unwrap();
}

#[test]
fn what_is_large_lies_in_a_file_and_goes_with_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Arc::new(Cache::new(CacheSettings { disk_bytes: 8 << 20, ..cache().settings }));
    assert_eq!(cache.entry_max(), 1 << 17, "without a shelf");
    cache.set_shelf(Arc::new(Shelf::new(ShelfSettings {
        dir: dir.path().join("results"),
        lasts: false,
        bytes: 0,
        floor: 0,
    })));
    assert_eq!(cache.entry_max(), 16 << 20);
    let large = Bytes::from(vec![7; 2 << 20]);
    let fill = |fill, at_second| {
        let (room, value) = (Cache::copying(&cache), large.clone());
        Cache::fill_large(&cache, fill, label("k"), value, (at(at_second), None), room);
        settle(&cache);
    };
    let held = |now| match cache.get(LANE, &key("k"), None, at(now)).map(|hit| hit.value) {
        Some(Value::File(shelved)) => Some(shelved),
        Some(Value::Memory(_)) => panic!("it is in memory"),
        None => None,
    };
    fill(cache.begin(LANE), 0);
    let first = held(0).unwrap();
    assert_eq!(first.length(), 2 << 20);
    assert_eq!((cache.stats().0, cache.stats().1), (1, 1), "it takes no memory");
    fill(cache.begin(LANE), 30);
    assert!(Arc::ptr_eq(&first, &held(30).unwrap()), "a young one is not written again");
    fill(cache.begin(LANE), 31);
    assert!(!Arc::ptr_eq(&first, &held(31).unwrap()));
    drop(first);

    let late = cache.begin(LANE);
    cache.invalidate(LANE);
    assert!(held(32).is_none(), "a write drops it");
    fill(late, 32);
    assert!(held(32).is_none(), "it was read before a write");
    settle(&cache);
    settle(&cache);
    assert!(std::fs::read_dir(dir.path().join("results")).unwrap().count() <= 1);

    fill(cache.begin(LANE), 40);
    let withdrawn = cache.withdraw(LANE, None).unwrap();
    assert!(held(41).is_none());
    cache.put_back(withdrawn);
    assert!(held(41).is_some());
    cache.shelf().unwrap().set_bytes(1);
    settle(&cache);
    assert!(held(41).is_none(), "it gave its place to another");
    assert_eq!(cache.sweep(at(41)), 1);
}

#[test]
fn what_a_restart_brought_back_is_stale() {
    let (old, new) = (cache(), cache());
    old.fill(old.begin(LANE), key("k"), key("v"), at(100), None);
    new.restore(old.entries());
    assert_eq!(look(&new, 101), Some((1, false)));
}

#[test]
fn what_comes_back_late_replaces_nothing_newer() {
    let (old, read, written) = (cache(), cache(), cache());
    old.fill(old.begin(LANE), key("k"), key("old"), at(100), None);
    read.fill(read.begin(LANE), key("k"), key("new"), at(150), None);
    read.restore(old.entries());
    assert_eq!(look(&read, 151), Some((1, true)), "it is the one that was read");
    written.invalidate(LANE);
    written.restore(old.entries());
    assert_eq!(look(&written, 151), None, "it was written since");
}

#[test]
fn what_comes_back_before_a_cache_has_taken_over_replaces_nothing_of_this_run() {
    let (old, read, written) = (cache(), Arc::new(cache()), Arc::new(cache()));
    old.fill(old.begin(LANE), key("k"), key("old"), at(100), None);
    read.fill(read.begin(LANE), key("k"), key("new"), at(150), None);
    let new = Cache::in_place_of(&read, read.settings);
    new.restore(old.entries());
    new.take_over();
    assert_eq!(look(&new, 151), Some((1, true)), "it is the one that was read");
    written.invalidate(LANE);
    let new = Cache::in_place_of(&written, written.settings);
    new.restore(old.entries());
    assert_eq!(look(&new, 151), None, "it was written in this run");
}
