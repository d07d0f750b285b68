//! What is shown of who depends on whom, and of what is to blame.

use std::{borrow::Cow, collections::HashMap, net::IpAddr};

use fusebox_state::{
    breaker::State,
    dependencies::{Findings, Graph, Head, Shared, What},
};

use crate::{
    clock::Clock,
    connector::SharedConnector,
    metrics::Metrics,
    roster::Roster,
    view::{DependenciesView, EdgeView, NodeView, RootCauseView},
};

/// What a host is called that is this one.
const HERE: &str = "this host";

/// The whole graph.
pub(crate) fn view(roster: &Roster, clock: Clock) -> DependenciesView {
    let findings = roster.findings.load();
    let mut nodes: Vec<NodeView> = roster
        .iter()
        .map(|entry| {
            let breaker = entry.shared.breaker_view();
            let holds = entry.shared.circuit.holds();
            NodeView {
                name: entry.name().to_owned(),
                kind: "backend".into(),
                state: match (holds.opening, holds.is_offline()) {
                    (true, _) => "OPENING".into(),
                    (false, true) => "OFFLINE".into(),
                    (false, false) => state(&breaker.state),
                },
                since: breaker.since,
            }
        })
        .collect();
    let mut edges = declared(roster, &roster.graph());
    edges.extend(same_host(roster));
    for head in &findings.heads {
        let What::Here(shared) = head.what else { continue };
        nodes.push(NodeView {
            name: shared.as_str().to_owned(),
            kind: "host".into(),
            state: "DOWN".into(),
            since: clock.to_unix(head.since),
        });
        let seen = roster.names(&head.seen_by).into_iter();
        edges.extend(seen.map(|from| seen_edge(from, shared.as_str(), shared.seen())));
    }
    DependenciesView { nodes, edges, root_causes: root_causes(roster, clock) }
}

fn state(state: &crate::lenient::Lenient<State>) -> Cow<'static, str> {
    state.known().map_or_else(|| state.to_string().into(), |known| known.as_str().into())
}

fn declared(roster: &Roster, graph: &Graph) -> Vec<EdgeView> {
    let name = |at: usize| roster.get(at).map(|entry| entry.name().to_owned());
    let edges = graph.edges().filter_map(|(from, to, required)| {
        let because = if required { "depends_on" } else { "depends_on_optional" };
        let kind = "declared".into();
        Some(EdgeView { from: name(from)?, to: name(to)?, kind, required, because: because.into() })
    });
    edges.collect()
}

fn seen_edge(from: String, to: &str, because: &'static str) -> EdgeView {
    let kind = "seen".into();
    EdgeView { from, to: to.to_owned(), kind, required: false, because: because.into() }
}

/// The host that a backend is on, as its address has it.
fn host_of(roster: &Roster, at: usize) -> Option<String> {
    let target = SharedConnector::clone(&roster.get(at)?.shared.connector.load()).target();
    let host = target.host();
    let is_here = host.starts_with('/')
        || host.eq_ignore_ascii_case("localhost")
        || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    Some(if is_here { HERE.to_owned() } else { host.to_ascii_lowercase() })
}

/// Each backend and the one before it on the same host.
fn same_host(roster: &Roster) -> Vec<EdgeView> {
    let mut last: HashMap<String, &str> = HashMap::new();
    let edges = roster.iter().enumerate().filter_map(|(at, entry)| {
        let before = last.insert(host_of(roster, at)?, entry.name())?;
        Some(seen_edge(entry.name().to_owned(), before, "same host"))
    });
    edges.collect()
}

/// What others are down for the sake of.
pub(crate) fn root_causes(roster: &Roster, clock: Clock) -> Vec<RootCauseView> {
    let (findings, graph) = (roster.findings.load(), roster.graph());
    let view = |head: &Head| {
        let together = match head.what {
            What::Backend(at) => findings.together_with(at, &graph),
            What::Here(_) => Vec::new(),
        };
        let (backend, confidence) = match head.what {
            What::Backend(at) => (roster.names(&[at]).concat(), "declared"),
            What::Here(shared) => (shared.as_str().to_owned(), "likely"),
        };
        RootCauseView {
            backend,
            since: clock.to_unix(head.since),
            impairs: roster.names(&head.impairs),
            because: because(roster, head, &together),
            together_with: roster.names(&together),
            confidence: confidence.into(),
        }
    };
    findings.roots().map(view).collect()
}

fn because(roster: &Roster, head: &Head, together: &[usize]) -> String {
    let at = match head.what {
        What::Here(shared) => return shared_because(roster, shared, head),
        What::Backend(at) => at,
    };
    let mut because =
        vec!["it is down, and everything that it depends on was up when it went down".to_owned()];
    if !head.uses.is_empty() {
        let uses = roster.names(&head.uses).join(", ");
        because.push(format!("backends that it uses but can do without are down as well: {uses}"));
    }
    if !together.is_empty() {
        let host = host_of(roster, at);
        let same = together.iter().all(|other| host_of(roster, *other) == host);
        let same = if same { " on the same host" } else { "" };
        let others = roster.names(together).join(", ");
        because.push(format!("it went down within 5 s of {others}{same}"));
    }
    because.join("; ")
}

fn shared_because(roster: &Roster, shared: Shared, head: &Head) -> String {
    let seen = roster.names(&head.seen_by).join(", ");
    format!("{}: {seen} {}", shared.said(), shared.seen())
}

/// Sets the gauges of what is to blame.
pub(crate) fn set_gauges(roster: &Roster, metrics: &Metrics) {
    let findings = roster.findings.load();
    let fails = |shared| findings.roots().any(|head| head.what == What::Here(shared));
    let impaired = roster.iter().enumerate().map(|(at, entry)| {
        // A disk hinders, and takes nothing down.
        let first = findings.roots_of(at).find(|head| head.what != What::Here(Shared::Disk));
        let by = first.and_then(|first| match first.what {
            What::Backend(root) => Some(roster.get(root)?.name()),
            What::Here(shared) => Some(shared.as_str()),
        });
        (entry.name(), by)
    });
    metrics.set_causes(fails, impaired);
}

/// What the causes say of one backend, in sentences.
pub(crate) fn told_of(roster: &Roster, at: usize) -> Vec<String> {
    let findings: &Findings = &roster.findings.load();
    let mut told = Vec::new();
    for head in &findings.heads {
        match head.what {
            What::Here(shared) if head.impairs.contains(&at) => {
                told.push(format!("The likely cause: {}.", shared_because(roster, shared, head)));
            }
            What::Backend(of) if of == at => {
                if !head.impairs.is_empty() {
                    let with = roster.names(&head.impairs).join(", ");
                    told.push(format!("Other backends are down because of it: {with}."));
                }
                let graph = roster.graph();
                let together = findings.together_with(at, &graph);
                if !head.after.is_empty() {
                    let after = roster.names(&head.after).join(", ");
                    told.push(format!(
                        "Backends that it depends on were down and are up again: {after}."
                    ));
                } else if graph.is_bound(at) || !together.is_empty() {
                    let because = because(roster, head, &together);
                    told.push(format!("It is a root cause: {because}."));
                }
            }
            What::Here(_) | What::Backend(_) => {}
        }
    }
    told
}
