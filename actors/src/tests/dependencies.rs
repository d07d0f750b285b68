//! Who is down for whose sake, and what comes of it.

use super::*;
use crate::view::RootCauseView;

fn on(name: &str, on: &[&str]) -> BackendSettings {
    BackendSettings { depends_on: on.iter().map(|it| (*it).to_owned()).collect(), ..settings(name) }
}

/// The same, with an open time that does not end within a test.
fn patient(settings: BackendSettings) -> BackendSettings {
    let long = Duration::from_secs(600);
    let breaker =
        BreakerSettings { recovery_timeout: long, recovery_timeout_max: long, ..settings.breaker };
    BackendSettings { breaker, ..settings }
}

fn state(world: &World, name: &str) -> State {
    world.fusebox.health().backends[name].breaker.known().unwrap()
}

fn reasons(world: &World) -> Vec<String> {
    let reasons = world.fusebox.health().reasons;
    reasons.into_iter().filter(|it| it.contains(" is down")).collect()
}

fn roots(world: &World) -> Vec<RootCauseView> {
    world.fusebox.dependencies().root_causes
}

#[tokio::test]
async fn a_dependent_is_tried_as_soon_as_its_root_closes() {
    let world = World::start(vec![
        patient(on("one", &["two"])),
        patient(on("two", &["three"])),
        settings("three"),
    ])
    .await;
    world.servers.iter().for_each(|server| server.set(Mode::Down));
    for name in ["one", "two", "three"] {
        world.until("it opens", |world| state(world, name) == State::Open).await;
    }
    let told = ["backend three is down (OPEN); this affects 2 other backends: one, two"];
    world.until("the root alone is told", |world| reasons(world) == told).await;
    let story = world.backend().explain().story;
    assert!(story.iter().any(|it| it.said() == "It is impaired by three."), "{story:?}");
    world.servers.iter().for_each(|server| server.set(Mode::Up));
    for name in ["three", "two", "one"] {
        world.until("it closes", |world| state(world, name) == State::Closed).await;
    }
    for name in ["two", "one"] {
        let transitions = world.fusebox.backend(name).unwrap().transitions(10);
        let why: Vec<_> = transitions.iter().map(|it| it.transition.reason).collect();
        let wanted = [Reason::PingsFailed, Reason::DependencyReturned, Reason::ProbesSucceeded];
        assert_eq!(why, wanted, "{name}");
    }
}

#[tokio::test]
async fn what_may_not_leave_open_by_itself_does_not_for_a_dependency_either() {
    let stays = on("one", &["two"]);
    let breaker = BreakerSettings { auto_recovery: false, ..stays.breaker };
    let world = World::start(vec![BackendSettings { breaker, ..stays }, settings("two")]).await;
    world.servers.iter().for_each(|server| server.set(Mode::Down));
    for name in ["one", "two"] {
        world.until("it opens", |world| state(world, name) == State::Open).await;
    }
    world.servers.iter().for_each(|server| server.set(Mode::Up));
    world.until("the root closes", |world| state(world, "two") == State::Closed).await;
    let told = ["backend one is down (OPEN), although two is up again"];
    world.until("it is left over", |world| reasons(world) == told).await;
    assert_eq!((state(&world, "one"), roots(&world)), (State::Open, vec![]));
    assert_eq!(world.backend().transitions(10).len(), 1);
}

#[tokio::test]
async fn a_root_that_is_down_opens_nobody_elses_breaker() {
    let world = World::start(vec![on("one", &["two"]), patient(settings("two"))]).await;
    world.servers[1].set(Mode::Down);
    world.until("it opens", |world| state(world, "two") == State::Open).await;
    for _ in 0..20 {
        assert_eq!(world.call("GET a").await.unwrap().source, Source::Live);
    }
    assert_eq!(state(&world, "one"), State::Closed);
    world.until("it is known", |world| roots(world).len() == 1).await;
    let root = roots(&world).remove(0);
    assert_eq!((root.backend.as_str(), root.impairs.len()), ("two", 0), "one is not down");
}

#[tokio::test]
async fn a_network_that_is_cut_is_told_in_the_place_of_all_that_it_takes_down() {
    let all = ["one", "two", "three"];
    let world = World::start(all.map(settings).to_vec()).await;
    world.servers.iter().for_each(|server| server.set(Mode::Cut));
    let told = ["this host's network is down; this affects 3 backends: one, two, three"];
    world.until("the network is told", |world| reasons(world) == told).await;
    let root = roots(&world).remove(0);
    assert_eq!((root.backend.as_str(), &*root.confidence), ("host:network", "likely"));
    assert_eq!(root.impairs, all);
    let page = world.fusebox.metrics(Format::Prometheus);
    for line in [
        r#"fusebox_host_cause{cause="host:network"} 1"#,
        r#"fusebox_host_cause{cause="host:dns"} 0"#,
        r#"fusebox_backend_impaired{backend="two",impaired_by="host:network"} 1"#,
    ] {
        assert!(page.contains(line), "{line}: {page}");
    }
    world.servers.iter().for_each(|server| server.set(Mode::Up));
    world.until("nothing is told any more", |world| reasons(world).is_empty()).await;
    let page = world.fusebox.metrics(Format::Prometheus);
    let line = r#"fusebox_backend_impaired{backend="two",impaired_by=""} 0"#;
    assert!(page.contains(line) && !page.contains("impaired_by=\"host"), "{page}");
}

#[tokio::test]
async fn the_graph_shows_what_is_declared_and_what_was_seen() {
    let one = BackendSettings { depends_on_optional: vec!["three".into()], ..on("one", &["two"]) };
    let world = World::start(vec![one, settings("two"), settings("three")]).await;
    let edges = world.fusebox.dependencies().edges;
    let of = |kind: &str| -> Vec<(String, String, bool)> {
        let edges = edges.iter().filter(|edge| edge.kind == kind);
        edges.map(|it| (it.from.clone(), it.to.clone(), it.required)).collect()
    };
    let edge = |from: &str, to: &str, required| (from.to_owned(), to.to_owned(), required);
    assert_eq!(of("declared"), [edge("one", "two", true), edge("one", "three", false)]);
    assert_eq!(of("seen"), [edge("two", "one", false), edge("three", "two", false)], "same host");
    for server in &world.servers[1..] {
        server.set(Mode::Down);
    }
    world.until("both are roots", |world| roots(world).len() == 2).await;
    let roots = roots(&world);
    assert!(roots.iter().all(|root| root.together_with.len() == 1), "{roots:?}");
    assert!(roots[0].because.ends_with("on the same host"), "{roots:?}");
}
