use std::{collections::BTreeMap, path::Path, time::Duration};

use fusebox_actors::view::{BackendView, ForcedView, ResilienceView, RootCauseView};
use fusebox_state::{Moment, UnixMillis, Words, breaker::State, system::SystemState};
use tokio::time::Instant;

use super::{
    command::{self, Around},
    conditions::{ALL, Found, Key, Kind, Watch},
    ledger::{Ledger, Notice, PAUSE},
};
use crate::config::{AlertSettings, Severity};

fn at(seconds: u64) -> Moment {
    Moment::from_millis(1_000_000 + seconds * 1_000)
}

/// A view in which all is well, of one backend.
fn well() -> ResilienceView {
    let mut backend = BackendView { name: "redis".into(), ..BackendView::default() };
    backend.breaker.state = State::Closed.into();
    ResilienceView {
        state: SystemState::Healthy.into(),
        backends: BTreeMap::from([("redis".into(), backend)]),
        ..ResilienceView::default()
    }
}

fn with(change: impl FnOnce(&mut BackendView)) -> ResilienceView {
    let mut view = well();
    change(view.backends.get_mut("redis").unwrap());
    view
}

/// The names of what holds in `view`, looked at for the first time.
fn held(view: &ResilienceView) -> Vec<&'static str> {
    names(Watch::default().look(view, at(0)))
}

fn names(found: BTreeMap<Key, Found>) -> Vec<&'static str> {
    let holds = found.into_iter().filter(|(_, found)| matches!(found, Found::Holds(_)));
    holds.map(|(key, _)| key.kind.name).collect()
}

/// What the rules for Prometheus have for `field` of the alert `name`.
fn of_rule<'a>(rules: &'a str, name: &str, field: &str) -> Option<&'a str> {
    let rule = rules.split("- alert: ").find(|rule| rule.lines().next() == Some(name))?;
    rule.lines().find_map(|line| line.trim().strip_prefix(field))
}

#[test]
fn names_severities_and_times_are_those_of_the_rules_for_prometheus() {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/prometheus/fusebox.rules.yml");
    let rules = std::fs::read_to_string(rules).unwrap();
    for Kind { name, severity, seconds } in ALL {
        assert_eq!(of_rule(&rules, name, "severity: "), Some(severity.as_str()), "{name}");
        let of_rule = of_rule(&rules, name, "for: ").unwrap_or("0s");
        let of_rule = humantime::parse_duration(of_rule).unwrap();
        assert_eq!(of_rule, Duration::from_secs(*seconds), "{name}");
    }
}

#[test]
fn nothing_holds_if_all_is_well() {
    assert!(held(&well()).is_empty());
    assert!(held(&ResilienceView::default()).is_empty());
}

#[test]
fn each_condition_is_found_by_itself() {
    let system = |state: SystemState| ResilienceView { state: state.into(), ..well() };
    let host = RootCauseView { backend: "host:dns".into(), ..RootCauseView::default() };
    let subjects = |subject: &'static str| {
        with(|it| {
            it.alerts = vec!["words".into()];
            it.alert_subjects = vec![subject.into()];
        })
    };
    let cases = [
        (system(SystemState::Degraded), "FuseboxDegraded"),
        (system(SystemState::Critical), "FuseboxCritical"),
        (system(SystemState::Emergency), "FuseboxEmergency"),
        (with(|it| it.breaker.state = State::Open.into()), "FuseboxBreakerOpen"),
        (with(|it| it.breaker.state = State::HalfOpen.into()), "FuseboxBreakerOpen"),
        (with(|it| it.breaker.forced = Some(ForcedView::default())), "FuseboxBackendHeld"),
        (with(|it| it.offline = true), "FuseboxBackendHeld"),
        (
            with(|it| it.prediction.state = fusebox_state::predict::State::AtRisk.into()),
            "FuseboxBreakerAtRisk",
        ),
        (with(|it| it.queue.fill_percent = 85.1), "FuseboxQueueNearlyFull"),
        (with(|it| it.queue.dead_letters = 1), "FuseboxDeadLettersWaiting"),
        (with(|it| it.queue.store_refuses = Some("full".into())), "FuseboxStoreRefusesWrites"),
        (subjects("lost"), "FuseboxOperatorMustAct"),
        (ResilienceView { root_causes: vec![host], ..well() }, "FuseboxHostCause"),
        (
            ResilienceView { settings_left_out: vec!["a".into()], ..well() },
            "FuseboxSettingsLeftOut",
        ),
    ];
    for (view, name) in &cases {
        assert_eq!(held(view), [*name]);
    }
    assert!(held(&subjects("store")).is_empty(), "it is an alert of its own");
    let forced = with(|it| {
        it.breaker.state = State::Open.into();
        it.breaker.forced = Some(ForcedView::default());
    });
    assert_eq!(held(&forced), ["FuseboxBackendHeld"], "somebody wants it open");
}

#[test]
fn what_is_down_for_another_s_sake_is_part_of_that_one_s_alert() {
    let mut view = with(|it| it.breaker.state = State::Open.into());
    let mut other = view.backends["redis"].clone();
    (other.name, other.impaired_by) = ("sessions".into(), vec!["redis".into()]);
    view.backends.insert("sessions".into(), other);
    view.root_causes = vec![RootCauseView {
        backend: "redis".into(),
        impairs: vec!["sessions".into()],
        ..RootCauseView::default()
    }];
    let found = Watch::default().look(&view, at(0));
    let found: Vec<_> = found.values().collect();
    let what = "the breaker of redis is OPEN; also down because of it: sessions";
    assert_eq!(found, [&Found::Holds(what.into())]);
}

#[test]
fn words_of_a_server_are_not_handed_over() {
    let view = with(|it| {
        it.alerts = vec![Words::quoting("the server refuses us", "NOPERM card=4111")];
        it.alert_subjects = vec!["blocked".into()];
    });
    let found = format!("{:?}", Watch::default().look(&view, at(0)));
    assert!(found.contains("the server refuses us") && !found.contains("4111"), "{found}");
}

#[test]
fn counters_alert_while_they_rise_and_for_a_while_after() {
    let mut watch = Watch::default();
    let mut look = |refused, became_dead, seconds| {
        let view = with(|it| {
            (it.queue.refused, it.queue.became_dead) = (refused, became_dead);
        });
        names(watch.look(&view, at(seconds)))
    };
    assert!(look(7, 7, 0).is_empty(), "that was before the first look");
    assert_eq!(look(8, 8, 1), ["FuseboxDeadLettersGrowing", "FuseboxWritesRefused"]);
    assert_eq!(look(8, 8, 299), ["FuseboxDeadLettersGrowing", "FuseboxWritesRefused"]);
    assert_eq!(look(8, 8, 301), ["FuseboxDeadLettersGrowing"]);
    assert!(look(8, 8, 901).is_empty());
}

#[test]
fn replay_is_stalled_if_nothing_was_replayed_for_five_minutes_that_might_have_been() {
    let mut watch = Watch::default();
    let mut look = |calls, replayed, open, seconds| {
        let view = with(|it| {
            (it.queue.calls, it.queue.replayed) = (calls, replayed);
            it.offline = open;
        });
        let stalled = names(watch.look(&view, at(seconds)));
        stalled.contains(&"FuseboxReplayStalled")
    };
    assert!(!look(1, 0, false, 0));
    assert!(!look(1, 0, true, 299));
    assert!(!look(1, 0, false, 301), "it was offline");
    assert!(!look(1, 5, false, 500));
    assert!(!look(1, 5, false, 799));
    assert!(look(1, 5, false, 800));
    assert!(!look(0, 5, false, 801));
}

/// A ledger that is looked at each second.
struct Said {
    ledger: Ledger,
    settings: AlertSettings,
    room: usize,
    works: bool,
}

impl Said {
    fn new(after: Option<u64>) -> Self {
        let settings = AlertSettings {
            command: vec!["/x".into()],
            severity: Severity::Warning,
            after: after.map(Duration::from_secs),
        };
        Self { ledger: Ledger::new(PAUSE), settings, room: 9, works: true }
    }

    fn begin(&mut self, view: &ResilienceView, second: u64) -> Vec<Notice> {
        let found = Watch::default().look(view, at(second));
        self.ledger.note(found, at(second), UnixMillis::new(second * 1_000));
        self.ledger.take(&self.settings, at(second), self.room)
    }

    /// What the command is run for at that second, at which it ends too.
    fn at(&mut self, view: &ResilienceView, second: u64) -> Vec<String> {
        let notices = self.begin(view, second);
        let said = notices.iter().map(|notice| {
            self.ledger.settle(notice, self.works);
            let state = if notice.is_firing { "firing" } else { "resolved" };
            format!("{} {state}", notice.key.kind.name)
        });
        said.collect()
    }
}

const FIRING: &str = "FuseboxBreakerOpen firing";
const RESOLVED: &str = "FuseboxBreakerOpen resolved";

fn open() -> ResilienceView {
    with(|it| it.breaker.state = State::Open.into())
}

#[test]
fn a_condition_is_said_once_it_has_held_for_long_enough_and_once_when_it_is_over() {
    let mut said = Said::new(None);
    for second in 0..60 {
        assert!(said.at(&open(), second).is_empty());
    }
    assert_eq!(said.at(&open(), 60), [FIRING]);
    for second in 61..300 {
        assert!(said.at(&open(), second).is_empty());
    }
    assert_eq!(said.at(&well(), 300), [RESOLVED]);
    for second in 301..600 {
        assert!(said.at(&well(), second).is_empty());
    }
    // A break begins the time again.
    assert!(said.at(&open(), 600).is_empty());
    assert!(said.at(&well(), 630).is_empty());
    assert!(said.at(&open(), 631).is_empty());
    assert!(said.at(&open(), 690).is_empty());
    assert_eq!(said.at(&open(), 691), [FIRING]);
}

#[test]
fn an_alert_that_flutters_is_said_at_most_once_a_minute_and_ends_right() {
    let mut said = Said::new(Some(0));
    let mut runs = Vec::new();
    for second in 0..=300 {
        let view = if second % 2 == 0 { open() } else { well() };
        runs.extend(said.at(&view, second).into_iter().map(|what| (second, what)));
    }
    assert!(runs.windows(2).all(|two| two[1].0 - two[0].0 >= PAUSE.as_secs()), "{runs:?}");
    assert!((5..=6).contains(&runs.len()), "{runs:?}");
    assert!(runs.windows(2).all(|two| two[0].1 != two[1].1), "{runs:?}");
    for second in 301..400 {
        runs.extend(said.at(&well(), second).into_iter().map(|what| (second, what)));
    }
    assert_eq!(runs.last().unwrap().1, RESOLVED);
    said.at(&well(), 500);
    assert!(format!("{:?}", said.ledger).contains("entries: {}"), "{:?}", said.ledger);
}

#[test]
fn a_command_that_failed_is_run_again_after_a_minute_and_not_for_what_is_over() {
    let mut said = Said::new(Some(0));
    said.works = false;
    assert_eq!(said.at(&open(), 0), [FIRING]);
    assert!(said.at(&open(), 59).is_empty());
    assert_eq!(said.at(&open(), 60), [FIRING]);
    assert!(said.at(&well(), 120).is_empty(), "nobody has heard of it");
    said.works = true;
    assert_eq!(said.at(&open(), 121), [FIRING]);
}

#[test]
fn one_that_runs_is_not_run_beside_itself_and_the_most_severe_is_first() {
    let mut said = Said::new(Some(0));
    said.room = 1;
    let mut view = open();
    view.state = SystemState::Emergency.into();
    let first = said.begin(&view, 0);
    assert_eq!(first[0].key.kind.name, "FuseboxEmergency");
    let second = said.begin(&view, 1);
    assert_eq!(second[0].key.kind.name, "FuseboxBreakerOpen");
    assert!(said.begin(&view, 100).is_empty(), "both run");
    said.ledger.settle(&first[0], false);
    assert_eq!(said.begin(&view, 101), first);
}

#[test]
fn a_state_that_gets_worse_is_not_over() {
    let mut said = Said::new(Some(0));
    let system = |state: SystemState| ResilienceView { state: state.into(), ..well() };
    assert_eq!(said.at(&system(SystemState::Critical), 0), ["FuseboxCritical firing"]);
    assert_eq!(said.at(&system(SystemState::Emergency), 100), ["FuseboxEmergency firing"]);
    assert_eq!(said.at(&system(SystemState::Critical), 200), ["FuseboxEmergency resolved"]);
    assert_eq!(said.at(&well(), 300), ["FuseboxCritical resolved"]);
}

#[test]
fn the_severity_that_is_wanted_decides() {
    let offline = with(|it| it.offline = true);
    let mut said = Said::new(Some(0));
    assert!(said.at(&offline, 0).is_empty(), "it is for information");
    said.settings.severity = Severity::Info;
    assert_eq!(said.at(&offline, 1), ["FuseboxBackendHeld firing"]);
    // What was said is taken back even if the setting has changed.
    said.settings.severity = Severity::Critical;
    assert_eq!(said.at(&well(), 100), ["FuseboxBackendHeld resolved"]);
}

fn notice() -> Notice {
    let mut said = Said::new(Some(0));
    said.begin(&open(), 7).remove(0)
}

/// Runs a script.
async fn run(script: &str) -> Result<(), Words> {
    let argv = ["/bin/sh", "-c", script].map(str::to_owned);
    command::run(&argv, &notice(), Around { at: UnixMillis::new(9_000), chaos: true }).await
}

#[tokio::test]
async fn a_command_gets_the_alert_and_nothing_secret_of_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (input, env) = (path("input"), path("env"));
    run(&format!("cat > {}; env > {}; pwd", input.display(), env.display())).await.unwrap();
    let input: serde_json::Value = serde_json::from_slice(&std::fs::read(input).unwrap()).unwrap();
    assert_eq!(
        input,
        serde_json::json!({
            "alert": "FuseboxBreakerOpen", "state": "firing", "severity": "warning",
            "backend": "redis", "subject": null, "message": "the breaker of redis is OPEN",
            "since": "1970-01-01T00:00:07.000Z", "at": "1970-01-01T00:00:09.000Z", "chaos": true,
        })
    );
    let env = std::fs::read_to_string(env).unwrap();
    let mut of_ours: Vec<&str> = env.lines().filter(|line| line.starts_with("FUSEBOX_")).collect();
    of_ours.sort_unstable();
    assert_eq!(
        of_ours,
        [
            "FUSEBOX_ALERT=FuseboxBreakerOpen",
            "FUSEBOX_BACKEND=redis",
            "FUSEBOX_MESSAGE=the breaker of redis is OPEN",
            "FUSEBOX_SEVERITY=warning",
            "FUSEBOX_STATE=firing",
        ]
    );
    // cargo sets many, none of which are among the few that are passed on.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some() && !env.contains("CARGO"), "{env}");
}

#[tokio::test]
async fn how_a_command_failed_is_said_and_its_own_words_are_for_admins() {
    let error =
        run("echo token=s3cr3t >&2; head -c 300000 /dev/zero >&2; exit 3").await.unwrap_err();
    assert_eq!(error.said(), "exit status: 3");
    assert!(error.whole().starts_with("exit status: 3: token=s3cr3t"), "{}", error.whole());
    assert!(error.whole().len() < 1_100, "{}", error.whole().len());
    let argv = ["/nowhere/alert".to_owned()];
    let around = Around { at: UnixMillis::new(0), chaos: false };
    let error = command::run(&argv, &notice(), around).await.unwrap_err();
    assert_eq!(error.said(), "it cannot be started");
    // One that reads nothing, and leaves something behind that holds its standard error.
    let began = Instant::now();
    run("sleep 20 & exit 0").await.unwrap();
    assert!(began.elapsed() < command::PATIENCE, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_command_that_does_not_end_is_killed_with_what_it_has_started() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // The reader sees the end of the pipe when the last process that holds it is gone.
    let script = format!("exec > {}; echo begun; sleep 600 & sleep 600", pipe.display());
    let running = tokio::spawn(async move { run(&script).await });
    let read = tokio::task::spawn_blocking(move || {
        use std::io::BufRead;
        let mut lines = std::io::BufReader::new(std::fs::File::open(pipe).unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        move || (first, lines.next().is_none())
    });
    let rest = read.await.unwrap();
    // As if its time were over: what waits for it ends.
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    let ended = tokio::task::spawn_blocking(rest);
    let ended = tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap().unwrap();
    assert_eq!(ended, ("begun".to_owned(), true));
}

#[tokio::test(start_paused = true)]
async fn a_command_has_ten_seconds() {
    let error = run("sleep 600").await.unwrap_err();
    assert_eq!(error.said(), "it was killed after 10 s");
}
