//! The causes against a plain model, over every graph of few backends and every order in which they go.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::*;
use crate::units::Moment;

fn at(millis: u64) -> Moment {
    Moment::from_millis(millis)
}

fn graph(required: &[(usize, usize)], optional: &[(usize, usize)], count: usize) -> Graph {
    let names: Vec<String> = (0..count).map(|at| at.to_string()).collect();
    let on = |edges: &[(usize, usize)], who: usize| -> Vec<String> {
        edges.iter().filter(|(from, _)| *from == who).map(|(_, to)| to.to_string()).collect()
    };
    let edges: Vec<_> = (0..count).map(|who| (on(required, who), on(optional, who))).collect();
    let declared: Vec<Declared<'_>> = names
        .iter()
        .zip(&edges)
        .map(|(name, (required, optional))| Declared { name, required, optional })
        .collect();
    Graph::new(&declared)
}

/// What is seen of backends whose breakers opened, failed before, or are not open.
fn down(opened: Option<u64>, failing: Option<u64>) -> Sight {
    let down = Down { opened: opened.map(at), failing: failing.map(at) };
    Sight { down: Some(down), ..Sight::default() }
}

fn opened(millis: u64) -> Sight {
    down(Some(millis), None)
}

const UP: Sight = Sight { down: None, fault: None, store_refuses: false };

fn blaming(sight: Sight, shared: Shared, since: u64) -> Sight {
    Sight { fault: Some((shared, at(since))), ..sight }
}

fn roots(findings: &Findings) -> Vec<usize> {
    let backend = |head: &Head| match head.what {
        What::Backend(at) => Some(at),
        What::Here(_) => None,
    };
    let mut roots: Vec<usize> = findings.roots().filter_map(backend).collect();
    roots.sort_unstable();
    roots
}

fn needs(required: &[(usize, usize)], who: usize) -> BTreeSet<usize> {
    let on = required.iter().filter(|(from, _)| *from == who).map(|(_, on)| *on);
    on.flat_map(|on| needs(required, on).into_iter().chain([on])).collect()
}

/// Each with all that are before it.
fn pairs(count: usize) -> Vec<(usize, usize)> {
    (0..count).flat_map(|from| (0..from).map(move |to| (from, to))).collect()
}

/// The rules as they are written down: paths, and every outage that there was.
#[derive(Clone, Debug)]
struct Model {
    edges: Vec<(usize, usize)>,
    /// All that each one needs.
    needs: Vec<BTreeSet<usize>>,
    /// Each one's outages: begin and end.
    outages: Vec<Vec<(u64, Option<u64>)>>,
    went: Vec<u64>,
}

impl Model {
    fn new(required: &[(usize, usize)], optional: &[(usize, usize)], count: usize) -> Self {
        Self {
            edges: [required, optional].concat(),
            needs: (0..count).map(|who| needs(required, who)).collect(),
            outages: vec![Vec::new(); count],
            went: vec![0; count],
        }
    }

    fn is_down(&self, who: usize) -> bool {
        self.outages[who].last().is_some_and(|(_, end)| end.is_none())
    }

    fn goes(&mut self, who: usize, now: u64) {
        self.outages[who].push((now, None));
        self.went[who] = now;
    }

    fn returns(&mut self, who: usize, now: u64) {
        self.outages[who].last_mut().unwrap().1 = Some(now);
    }

    fn all(&self) -> std::ops::Range<usize> {
        0..self.outages.len()
    }

    fn was_down_in(&self, who: usize, from: u64) -> bool {
        self.outages[who].iter().any(|(_, end)| end.is_none_or(|end| end >= from))
    }

    fn roots(&self) -> Vec<usize> {
        let is_root = |who: &usize| {
            let from = self.went[*who].saturating_sub(5_000);
            self.is_down(*who) && !self.needs[*who].iter().any(|on| self.was_down_in(*on, from))
        };
        self.all().filter(is_root).collect()
    }

    fn together(&self, who: usize) -> Vec<usize> {
        let began = |who: usize| self.outages[who].last().unwrap().0;
        let is_edge = |pair: &(usize, usize)| self.edges.contains(pair);
        let others = self.roots().into_iter().filter(|other| *other != who);
        others
            .filter(|other| began(*other).abs_diff(began(who)) <= 5_000)
            .filter(|other| !is_edge(&(who, *other)) && !is_edge(&(*other, who)))
            .collect()
    }
}

/// Compares, and checks what holds whatever happened.
#[track_caller]
fn compare(graph: &Graph, model: &Model, found: &Findings, what: &dyn std::fmt::Debug) {
    let wanted = model.roots();
    assert_eq!(roots(found), wanted, "{what:?}");
    let mut headed = BTreeSet::new();
    for head in &found.heads {
        let What::Backend(root) = head.what else { panic!("{what:?}: {head:?}") };
        assert!(headed.insert(root), "{what:?}: {root} is told twice");
        let needy = |who: &usize| model.is_down(*who) && model.needs[*who].contains(&root);
        let impairs: Vec<usize> = model.all().filter(needy).collect();
        assert_eq!(head.impairs, impairs, "{what:?}: of {root}");
        let together = if head.is_root() { model.together(root) } else { Vec::new() };
        let mut found = found.together_with(root, graph);
        found.sort_unstable();
        assert_eq!(found, together, "{what:?}: with {root}");
    }
    let down = model.all().filter(|who| model.is_down(*who));
    for who in down.filter(|who| !headed.contains(who)) {
        let has_head = found.heads.iter().any(|head| head.impairs.contains(&who));
        assert!(has_head, "{what:?}: {who} is down and nobody is told why");
    }
}

/// Every list of `length` out of `values`.
fn lists<T: Copy>(values: &[T], length: usize) -> Vec<Vec<T>> {
    if length == 0 {
        return vec![Vec::new()];
    }
    let shorter = lists(values, length - 1);
    let longer = shorter.iter().flat_map(|list| {
        values.iter().map(move |value| list.iter().copied().chain([*value]).collect())
    });
    longer.collect()
}

/// What has happened so far.
#[derive(Clone)]
struct World {
    model: Model,
    causes: Causes,
    sights: Vec<Sight>,
    now: u64,
}

impl World {
    fn new(required: &[(usize, usize)], optional: &[(usize, usize)], count: usize) -> Self {
        let model = Model::new(required, optional, count);
        Self { model, causes: Causes::default(), sights: vec![UP; count], now: 20_000 }
    }

    /// Kills each of those that are left after each of `waits`, and goes on from there in every order.
    fn kill_the_rest(&self, graph: &Graph, waits: &[u64]) {
        for who in self.model.all().filter(|who| !self.model.is_down(*who)) {
            // Nothing is asked of the time before the first.
            let first = self.model.all().all(|who| !self.model.is_down(who));
            for wait in waits.iter().take(if first { 1 } else { waits.len() }) {
                let mut next = self.clone();
                next.now += wait;
                next.sights[who] = opened(next.now);
                next.model.goes(who, next.now);
                let found = next.causes.observe(graph, &next.sights, at(next.now));
                assert!(found.returned.is_empty());
                compare(graph, &next.model, &found, &next.model);
                next.kill_the_rest(graph, waits);
            }
        }
    }
}

/// A graph without a cycle is one in which each needs only what comes before it, by other names: the orders of
/// killing represent the names.
#[test]
fn in_every_graph_and_order_the_roots_are_those_of_the_model() {
    for count in 1..=4 {
        let pairs = pairs(count);
        for chosen in lists(&[false, true], pairs.len()) {
            let edges = pairs.iter().zip(chosen).filter(|(_, chosen)| *chosen);
            let edges: Vec<(usize, usize)> = edges.map(|(pair, _)| *pair).collect();
            let graph = graph(&edges, &[], count);
            World::new(&edges, &[], count).kill_the_rest(&graph, &[0, 1_000, 5_000, 5_001, 10_000]);
        }
    }
}

#[test]
fn optional_edges_take_nothing_along() {
    let pairs = pairs(3);
    for kinds in lists(&[0, 1, 2], pairs.len()) {
        let of = |kind: u8| -> Vec<(usize, usize)> {
            pairs.iter().zip(&kinds).filter(|(_, it)| **it == kind).map(|(pair, _)| *pair).collect()
        };
        let graph = graph(&of(1), &of(2), 3);
        World::new(&of(1), &of(2), 3).kill_the_rest(&graph, &[0, 5_001]);
    }
}

proptest! {
    /// Kills, returns and failed probes in any order; the model remembers every outage.
    #[test]
    fn whatever_goes_and_returns_the_roots_are_those_of_the_model(
        chosen in prop::collection::vec(0..3_u8, 10),
        steps in prop::collection::vec((0..5_usize, 0..9_000_u64), 1..40),
    ) {
        let count = 5;
        let pairs = pairs(count);
        let of = |kind: u8| -> Vec<(usize, usize)> {
            pairs.iter().zip(&chosen).filter(|(_, it)| **it == kind).map(|(pair, _)| *pair).collect()
        };
        let (required, optional) = (of(1), of(2));
        let graph = graph(&required, &optional, count);
        let mut model = Model::new(&required, &optional, count);
        let (mut causes, mut sights, mut now) = (Causes::default(), vec![UP; count], 20_000);
        let mut followed = BTreeSet::new();
        for (nth, (who, wait)) in steps.iter().enumerate() {
            now += wait + 1;
            if !model.is_down(*who) {
                model.goes(*who, now);
                sights[*who] = opened(now);
            } else if nth % 3 == 0 {
                // A probe failed.
                model.went[*who] = now;
                sights[*who] = opened(now);
            } else {
                model.returns(*who, now);
                sights[*who] = UP;
            }
            let found = causes.observe(&graph, &sights, at(now));
            compare(&graph, &model, &found, &(&required, &optional, &steps, nth));
            let follows = |who: &usize| {
                model.is_down(*who) && model.needs[*who].iter().any(|on| model.is_down(*on))
            };
            let follow: BTreeSet<usize> = model.all().filter(follows).collect();
            let left = |who: &&usize| model.is_down(**who) && !follow.contains(*who);
            let heads: Vec<usize> = roots(&found);
            let wanted: Vec<usize> = followed
                .iter()
                .filter(left)
                .copied()
                .filter(|who: &usize| !heads.contains(who))
                .collect();
            prop_assert_eq!(&found.returned, &wanted);
            followed = follow;
        }
    }
}

#[test]
fn one_that_is_left_over_is_tried_once_and_is_a_root_when_it_fails_on() {
    let graph = graph(&[(0, 1)], &[], 2);
    let mut causes = Causes::default();
    let mut look = |sights: [Sight; 2], now| causes.observe(&graph, &sights, at(now));
    look([opened(1_000), opened(1_500)], 2_000);
    let found = look([opened(1_000), UP], 60_000);
    assert_eq!((found.returned.as_slice(), roots(&found)), (&[0][..], vec![]));
    assert_eq!(found.heads[0].after, [1]);
    assert!(look([down(None, None), UP], 60_100).returned.is_empty(), "it is half-open");
    let found = look([opened(60_200), UP], 60_200);
    assert_eq!((found.returned.as_slice(), found.heads[0].after.as_slice()), (&[][..], &[1][..]));
    let found = look([opened(90_000), UP], 90_000);
    assert_eq!((roots(&found), found.heads[0].since), (vec![0], at(1_000)));
}

#[test]
fn a_root_is_named_with_its_first_failure() {
    let mut causes = Causes::default();
    let found = causes.observe(&graph(&[], &[], 1), &[down(Some(9_000), Some(4_000))], at(9_500));
    assert_eq!(found.heads[0].since, at(4_000));
    let mut causes = Causes::default();
    let found = causes.observe(&graph(&[], &[], 1), &[down(None, None)], at(9_500));
    assert_eq!(found.heads[0].since, at(9_500), "offline, and nobody saw it fail");
}

#[test]
fn what_two_saw_fail_together_is_the_cause_and_not_they() {
    let mut causes = Causes::default();
    // 3 needs 2; 4 has a failure of its own.
    let graph = graph(&[(3, 2)], &[], 5);
    let net = |opened_at, since| blaming(opened(opened_at), Shared::Network, since);
    let mut look = |sights: [Sight; 5], now| causes.observe(&graph, &sights, at(now));
    let found = look([net(3_000, 1_000), UP, UP, UP, opened(3_000)], 3_000);
    assert_eq!(roots(&found), [0, 4], "one is no sign");
    let found = look([net(3_000, 1_000), net(8_000, 6_001), UP, UP, UP], 8_000);
    assert_eq!(roots(&found), [0, 1], "too far apart");
    let found = look(
        [net(3_000, 1_000), net(8_000, 6_001), net(9_000, 8_000), opened(9_000), opened(3_000)],
        9_000,
    );
    assert_eq!(roots(&found), [4]);
    let network = found.heads.iter().find(|head| head.what == What::Here(Shared::Network)).unwrap();
    assert_eq!((network.since, network.impairs.as_slice()), (at(6_001), &[0, 1, 2, 3][..]));
    let found = look([net(3_000, 1_000), UP, net(9_000, 8_000), opened(9_000), UP], 30_000);
    assert!(found.heads.len() == 1 && found.heads[0].impairs == [0, 2, 3], "two see it yet");
    let found = look([net(3_000, 1_000), UP, UP, UP, UP], 31_000);
    assert_eq!(roots(&found), [0], "one alone has its own trouble");
}

#[test]
fn a_disk_hinders_and_takes_nothing_down() {
    let full = |sight| Sight { store_refuses: true, ..sight };
    let mut causes = Causes::default();
    let graph = graph(&[(2, 0)], &[], 3);
    let found = causes.observe(&graph, &[full(opened(1_000)), full(UP), UP], at(2_000));
    assert_eq!(roots(&found), [0]);
    let disk = found.heads.iter().find(|head| head.what == What::Here(Shared::Disk)).unwrap();
    assert_eq!(disk.impairs, [0, 1]);
    let found = causes.observe(&graph, &[full(opened(1_000)), UP, UP], at(3_000));
    assert_eq!(found.heads.len(), 1);
}

#[test]
fn recovery_takes_each_after_what_it_needs() {
    let graph = graph(&[(0, 2), (2, 1), (3, 0)], &[(1, 3)], 4);
    assert_eq!(graph.dependencies_first(), [1, 2, 0, 3]);
    assert_eq!(graph.impaired_by(3, |at| at != 3), [1]);
    assert_eq!(graph.impaired_by(3, |at| at == 0), [0]);
    assert!(graph.impaired_by(1, |_| true).is_empty(), "an optional one impairs nothing");
    assert_eq!(graph.edges().filter(|(_, _, required)| !required).count(), 1);
}

#[test]
fn names_of_nobody_and_circles_do_no_harm() {
    let names = [vec!["b".to_owned(), "nobody".to_owned()], vec!["a".to_owned()]];
    let declared = [
        Declared { name: "a", required: &names[0], optional: &[] },
        Declared { name: "b", required: &names[1], optional: &[] },
    ];
    let graph = Graph::new(&declared);
    assert_eq!((graph.len(), graph.dependencies_first()), (2, &[0, 1][..]));
    Causes::default().observe(&graph, &[opened(1), opened(1)], at(2));
}

/// As few as the model has, and as many as nobody has: each of 200 needs all those before it.
#[test]
#[expect(clippy::disallowed_methods, reason = "how long it takes is what this is about")]
fn a_round_of_two_hundred_takes_less_than_a_millisecond() {
    let count = 200;
    for edges in [Vec::new(), pairs(count)] {
        let graph = graph(&edges, &[], count);
        let mut causes = Causes::default();
        let mut shortest = Duration::MAX;
        for round in 0..200 {
            let sights: Vec<Sight> = (0..count)
                .map(|at| if (at + round) % 3 == 0 { UP } else { opened(round as u64) })
                .collect();
            let began = Instant::now();
            causes.observe(&graph, &sights, at(round as u64 * 1_000));
            shortest = shortest.min(began.elapsed());
        }
        assert!(shortest < Duration::from_millis(1), "{} edges: {shortest:?}", edges.len());
    }
}
