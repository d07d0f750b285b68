//! What the conditions of a moment come to, and how the state follows them.

use super::*;
use crate::dependencies::{Causes, Declared, Down, Graph, Sight};

fn backend(name: &str, critical: bool, operational: bool) -> BackendCondition {
    BackendCondition {
        name: name.into(),
        critical,
        operational,
        cause: "OPEN".into(),
        full: false,
        queue_percent: 0.0,
        store_trouble: None,
    }
}

/// `C` and `c` are a critical backend that is up or down, `O` and `o` an ordinary one.
#[track_caller]
fn check(backends: &str, expected: SystemState) {
    let list: Vec<_> = backends
        .chars()
        .map(|letter| backend("b", letter.eq_ignore_ascii_case(&'c'), letter.is_uppercase()))
        .collect();
    assert_eq!(told_of(&list, &[]).state, expected, "{backends}");
}

/// What is reported of these backends, which need each other like this: (who, on whom).
fn told_of(backends: &[BackendCondition], edges: &[(&str, &str)]) -> Assessment {
    let needs = |name: &str| -> Vec<String> {
        let on = edges.iter().filter(|(who, _)| *who == name);
        on.map(|(_, on)| (*on).to_owned()).collect()
    };
    let needs: Vec<Vec<String>> = backends.iter().map(|it| needs(&it.name)).collect();
    let declared: Vec<Declared<'_>> = backends
        .iter()
        .zip(&needs)
        .map(|(it, required)| Declared { name: &it.name, required, optional: &[] })
        .collect();
    let sight = |it: &BackendCondition| Sight {
        down: (!it.operational).then(Down::default),
        ..Sight::default()
    };
    let sights: Vec<Sight> = backends.iter().map(sight).collect();
    let now = Moment::from_millis(1);
    assess(backends, &Causes::default().observe(&Graph::new(&declared), &sights, now))
}

#[test]
fn one_root_cause_is_named_once() {
    let up = |name| backend(name, false, true);
    let found = told_of(
        &[
            backend("root", false, false),
            backend("leaf", false, false),
            backend("twig", false, false),
            up("d"),
            up("e"),
            up("f"),
        ],
        &[("leaf", "root"), ("twig", "leaf")],
    );
    assert_eq!(
        found.reasons,
        ["backend root is down (OPEN); this affects 2 other backends: leaf, twig"]
    );
    let both = [backend("root", false, false), backend("leaf", true, false)];
    let found = told_of(&both, &[("leaf", "root")]);
    assert_eq!(found.state, SystemState::Emergency);
    assert_eq!(
        found.reasons,
        [
            "backend root is down (OPEN); this affects 1 other backend: leaf (critical)",
            "only 0 % of the backends are operational"
        ]
    );
}

#[test]
fn what_is_needed_changes_what_is_told_and_never_the_state() {
    for down in 0..8_u8 {
        let list: Vec<_> = ["a", "b", "c"]
            .into_iter()
            .enumerate()
            .map(|(at, name)| backend(name, name == "c", down & (1 << at) == 0))
            .collect();
        let alone = told_of(&list, &[]);
        let bound = told_of(&list, &[("b", "a"), ("c", "b")]);
        assert_eq!(alone.state, bound.state, "{down:b}");
        let heads = bound.reasons.iter().filter(|it| it.contains(" is down ("));
        let wanted = match down {
            0 => 0,
            // The one between them is up, and all is a's fault all the same.
            _ => 1,
        };
        assert_eq!(heads.count(), wanted, "{down:b}: {:?}", bound.reasons);
    }
}

#[test]
fn a_part_of_this_host_is_told_in_the_place_of_what_it_takes_down() {
    let head = |what, impairs: &[usize], after: &[usize]| Head {
        what,
        since: Moment::from_millis(1),
        impairs: impairs.to_vec(),
        after: after.to_vec(),
        uses: Vec::new(),
        seen_by: Vec::new(),
    };
    let list: Vec<_> =
        "abcdefgh".chars().map(|it| backend(&it.to_string(), false, false)).collect();
    let told = |head: Head| {
        let findings = Findings { heads: vec![head], returned: Vec::new() };
        assess(&list, &findings).reasons.concat()
    };
    let network = told(head(What::Here(Shared::Network), &[0, 1, 2, 3, 4, 5, 6], &[]));
    let wanted = "this host's network is down; this affects 7 backends: a, b, c, d, e, 2 more";
    assert!(network.contains(wanted), "{network}");
    let left = told(head(What::Backend(0), &[], &[1, 2]));
    assert!(left.contains("backend a is down (OPEN), although b, c are up again"), "{left}");
    assert!(!told(head(What::Here(Shared::Disk), &[0, 1], &[])).contains("disk"));
}

#[test]
fn the_four_states() {
    check("COO", SystemState::Healthy);
    check("OOOOo", SystemState::Healthy);
    check("COo", SystemState::Degraded);
    check("COOOo", SystemState::Healthy);
    check("Coo", SystemState::Critical);
    check("cOO", SystemState::Critical);
    check("cOo", SystemState::Emergency);
    check("ccO", SystemState::Emergency);
    check("c", SystemState::Critical);
    check("o", SystemState::Critical);
    check("O", SystemState::Healthy);
}

#[test]
fn a_full_queue_counts_only_while_its_backend_is_operational() {
    let full = |operational| BackendCondition {
        full: true,
        queue_percent: 100.0,
        ..backend("redis", true, operational)
    };
    let rest = [backend("a", false, true), backend("b", false, true)];
    let list = |first: BackendCondition| [vec![first], rest.to_vec()].concat();
    assert_eq!(told_of(&list(full(true)), &[]).state, SystemState::Critical);
    assert_eq!(told_of(&list(full(false)), &[]).state, SystemState::Critical);
}

#[test]
fn refusing_stores_count_once() {
    let refusing = |name| BackendCondition {
        store_trouble: Some("disk".into()),
        ..backend(name, false, true)
    };
    assert_eq!(told_of(&[refusing("a"), refusing("b")], &[]).state, SystemState::Critical);
}

#[test]
fn a_filling_queue_degrades_at_seventy_percent() {
    let list = |queue_percent| [BackendCondition { queue_percent, ..backend("a", false, true) }];
    assert_eq!(told_of(&list(69.9), &[]).state, SystemState::Healthy);
    assert_eq!(told_of(&list(70.0), &[]).state, SystemState::Degraded);
}

#[test]
fn worse_is_immediate_and_better_waits() {
    let at = Moment::from_millis;
    let mut tracker = Tracker::default();
    let to = |change: Option<Change>| change.map(|change| change.to);
    assert_eq!(to(tracker.observe(SystemState::Emergency, at(0))), Some(SystemState::Emergency));
    assert_eq!(to(tracker.observe(SystemState::Healthy, at(1_000))), None);
    assert_eq!(tracker.next_look(), Some(at(6_000)));
    assert_eq!(to(tracker.observe(SystemState::Degraded, at(2_000))), None);
    assert_eq!(to(tracker.observe(SystemState::Healthy, at(5_999))), None);
    // It was never worse than DEGRADED for 5 s, and HEALTHY for one millisecond.
    assert_eq!(to(tracker.observe(SystemState::Healthy, at(6_000))), Some(SystemState::Degraded));
    assert_eq!(tracker.next_look(), Some(at(10_999)));
    assert_eq!(to(tracker.observe(SystemState::Healthy, at(10_999))), Some(SystemState::Healthy));
    assert_eq!(tracker.next_look(), None);
}

#[test]
fn two_that_recover_together_are_believed_together() {
    let at = Moment::from_millis;
    let mut tracker = Tracker::default();
    tracker.observe(SystemState::Emergency, at(0));
    tracker.observe(SystemState::Critical, at(1_000));
    tracker.observe(SystemState::Healthy, at(1_300));
    let to = |change: Option<Change>| change.map(|change| change.to);
    assert_eq!(to(tracker.observe(SystemState::Healthy, at(6_000))), Some(SystemState::Critical));
    assert_eq!(to(tracker.observe(SystemState::Healthy, at(6_300))), Some(SystemState::Healthy));
}

#[test]
fn a_flapping_backend_does_not_make_the_system_flap() {
    let mut tracker = Tracker::default();
    let changes = (0..600_u64)
        .filter_map(|second| {
            let state = if second % 2 == 0 { SystemState::Critical } else { SystemState::Healthy };
            tracker.observe(state, Moment::from_millis(second * 1_000))
        })
        .count();
    assert_eq!(changes, 1);
}
