//! The page of metrics, as promtool, a real Prometheus and the shipped alerts, dashboard and table read it.
#![expect(clippy::float_cmp, reason = "samples are floats, and those compared are whole numbers")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::daemon::{Builder, Client, Daemon};
use crate::support::outage::{begin_outage, operated, recover};
use crate::support::poll::eventually;
use crate::support::port::Port;
use crate::support::prometheus::{Got, Prometheus, get, promtool};
use crate::support::raw::call_raw;
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(30);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const OTHER_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// What the daemon is asked for, on a TCP address that stays its own.
struct Scraped {
    daemon: Daemon,
    http: Port,
}

impl Scraped {
    fn start(builder: Builder) -> Self {
        let http = Port::lease();
        let daemon = builder.set("http.listen", http.address().to_string()).start();
        Self { daemon, http }
    }

    fn address(&self) -> SocketAddr {
        self.http.address()
    }

    #[track_caller]
    fn page(&self, accept: &str) -> Got {
        let got = get(self.address(), "/metrics", &[("Accept", accept)]).expect("the metrics");
        assert_eq!(got.status, 200, "{}", got.head);
        got
    }
}

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/prometheus").join(name)
}

fn shipped_text(name: &str) -> String {
    fs::read_to_string(shipped(name)).expect("it is shipped")
}

/// The shipped rules, in which what takes minutes takes seconds.
fn hurried_rules() -> String {
    let mut rules = String::new();
    for line in shipped_text("fusebox.rules.yml").lines() {
        let line = match line.split_once("for: ") {
            Some((indent, _)) if indent.trim().is_empty() => format!("{indent}for: 1s"),
            _ => with_ranges_of(line, "5s"),
        };
        rules.extend([&line, "\n"]);
    }
    rules
}

/// `expression`, with every range in it, such as `[5m]`, replaced.
fn with_ranges_of(expression: &str, range: &str) -> String {
    let mut parts = expression.split('[');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| match part.split_once(']') {
        Some((_, rest)) => format!("{text}[{range}]{rest}"),
        None => format!("{text}[{part}"),
    })
}

/// The series of a page, without their values.
fn series(page: &str) -> BTreeSet<&str> {
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    samples
        .filter_map(|line| line.split_once(" # ").unwrap_or((line, "")).0.rsplit_once(' '))
        .map(|s| s.0)
        .collect()
}

/// What a page says of its metrics: by name, the type and the names of the labels.
fn described(page: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut found = BTreeMap::new();
    for line in page.lines() {
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|it| it.split_once(' '))
        else {
            continue;
        };
        let of = |series: &str| {
            let (full, labels) = series.split_once('{').unwrap_or((series, ""));
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|it| full.strip_suffix(it));
            let base = base.filter(|_| kind == "histogram").unwrap_or(full);
            (base == name).then(|| labels.trim_end_matches('}').to_owned())
        };
        let labels = series(page).into_iter().filter_map(of).flat_map(|labels| {
            let pairs = labels.split("\",").filter_map(|pair| pair.split_once('='));
            pairs.map(|(label, _)| label.to_owned()).collect::<Vec<_>>()
        });
        let labels = labels.filter(|label| label != "le").collect();
        found.insert(name.to_owned(), (kind.to_owned(), labels));
    }
    found
}

/// The selectors of an expression, such as `fusebox_queue_calls{state="dead"}`; of `fusebox_…` and of
/// the start of the process.
fn selectors(expression: &str) -> Vec<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (mut found, mut rest) = (Vec::new(), expression);
    while let Some(at) = rest.find(is_name) {
        let (word, after) =
            rest[at..].split_at(rest[at..].find(|c| !is_name(c)).unwrap_or(rest.len() - at));
        let labels = after.strip_prefix('{').and_then(|it| it.split_once('}'));
        if word.starts_with("fusebox_") || word == "process_start_time_seconds" {
            found.push(labels.map_or(word.to_owned(), |(labels, _)| format!("{word}{{{labels}}}")));
        }
        rest = labels.map_or(after, |(_, after)| after);
    }
    found
}

/// Every `expr` of a JSON document.
fn expressions(json: &Value) -> Vec<String> {
    match json {
        Value::Object(fields) => {
            let own = fields.get("expr").and_then(Value::as_str).map(str::to_owned);
            own.into_iter().chain(fields.values().flat_map(expressions)).collect()
        }
        Value::Array(items) => items.iter().flat_map(expressions).collect(),
        _ => Vec::new(),
    }
}

fn traceparent(trace: &str) -> String {
    format!("00-{trace}-00f067aa0ba902b7-01")
}

/// A SET under a trace.
#[track_caller]
fn set_traced(daemon: &Client, key: &str, trace: &str) -> u16 {
    let command = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n$1\r\nv\r\n", key.len());
    let headers = [("traceparent", traceparent(trace))];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    call_raw(daemon, "redis", &headers, command.as_bytes(), 1).status
}

#[test]
fn the_metrics_of_the_contract_are_there_with_their_labels() {
    let scraped = Scraped::start(Builder::default());
    let page = scraped.page("text/plain").body;
    let found = described(&page);
    for (name, kind, labels) in [
        ("breaker_state", "gauge", "backend state"),
        ("breaker_transitions_total", "counter", "backend from reason to"),
        ("calls_total", "counter", "backend class source"),
        ("attempts_total", "counter", "backend outcome"),
        ("attempt_duration_seconds", "histogram", "backend"),
        ("retries_total", "counter", "backend result"),
        ("fallbacks_active", "gauge", "backend"),
        ("cache_entries", "gauge", "backend"),
        ("cache_requests_total", "counter", "backend result"),
        ("queue_calls", "gauge", "backend state"),
        ("queue_bytes", "gauge", "backend"),
        ("queue_oldest_age_seconds", "gauge", "backend"),
        ("queue_operations_total", "counter", "backend event"),
        ("durable_ack_seconds", "histogram", "backend"),
        ("recovery_attempts_total", "counter", "backend result"),
        ("system_state", "gauge", "state"),
        ("operational_percent", "gauge", ""),
    ] {
        let labels = labels.split(' ').filter(|it| !it.is_empty()).map(str::to_owned).collect();
        let is = found.get(&format!("fusebox_{name}"));
        assert_eq!(is, Some(&(kind.to_owned(), labels)), "{name}");
    }
}

#[test]
fn the_table_describes_what_is_on_the_page_and_nothing_else() {
    let scraped = Scraped::start(Builder::default());
    let mut table = BTreeMap::new();
    for row in shipped_text("README.md").lines() {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, said] = cells.as_slice() else { continue };
        let Some(name) = name.strip_prefix('`').and_then(|name| name.strip_suffix('`')) else {
            continue;
        };
        assert!(!said.is_empty(), "{name} is not described");
        let labels = labels.split(", ").filter(|label| !label.is_empty());
        let labels: BTreeSet<String> = labels.map(|label| label.replace('`', "")).collect();
        // The older text format has no type for it.
        let kind = if *kind == "info" { "gauge" } else { kind };
        table.insert(name.to_owned(), (kind.to_owned(), labels));
    }
    let mut found = described(&scraped.page("text/plain").body);
    // Which of them there are follows the doors; `metrics::doors` in actors compares those.
    for all in [&mut table, &mut found] {
        all.retain(|name, _| !name.starts_with("fusebox_door_"));
    }
    assert_eq!(table, found);
}

#[test]
fn promtool_finds_nothing_wrong_with_the_page() {
    let mut redis = RedisServer::start();
    let scraped = Scraped::start(operated(&redis.url()));
    assert_eq!(set_traced(&scraped.daemon, "k", TRACE), 200);
    begin_outage(&mut redis, &scraped.daemon);
    assert_eq!(set_traced(&scraped.daemon, "k", TRACE), 202);
    let page = scraped.page("*/*").body;
    let checked = promtool(&["check", "metrics"], &page);
    let said = [checked.stdout, checked.stderr].concat();
    assert_eq!((String::from_utf8_lossy(&said).as_ref(), checked.status.code()), ("", Some(0)));

    let spoilt = page.replace("# HELP fusebox_queue_calls ", "# HELPLESS fusebox_queue_calls ");
    let checked = promtool(&["check", "metrics"], &spoilt);
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(said.contains("fusebox_queue_calls no help text"), "it does look: {said}");
}

#[test]
fn who_asks_for_openmetrics_gets_it_and_everybody_else_the_older_text() {
    let mut redis = RedisServer::start();
    let scraped = Scraped::start(operated(&redis.url()));
    assert_eq!(set_traced(&scraped.daemon, "k", TRACE), 200);
    begin_outage(&mut redis, &scraped.daemon);
    assert_eq!(set_traced(&scraped.daemon, "k", OTHER_TRACE), 202);

    let text = scraped.page("text/html,*/*;q=0.8");
    assert!(text.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"));
    for foreign in ["# EOF", "# UNIT", "# {", "trace_id", "_created", " info\n"] {
        assert!(!text.body.contains(foreign), "{foreign:?} in\n{}", text.body);
    }
    assert!(text.body.contains("# TYPE fusebox_calls_total counter\n"));

    let open = scraped.page("application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    assert!(open.head.contains(&format!("content-type: {OPEN_METRICS}")), "{}", open.head);
    assert!(open.body.contains("# TYPE fusebox_calls counter\n"));
    assert!(open.body.ends_with("\n# EOF\n"));
    let exemplar = |metric: &str, trace: &str| {
        let metric = format!("fusebox_{metric}_bucket{{");
        let mut lines = open.body.lines().filter(|line| line.starts_with(&metric));
        lines.any(|line| line.contains(&format!(" # {{trace_id=\"{trace}\"}} ")))
    };
    assert!(exemplar("attempt_duration_seconds", TRACE));
    assert!(exemplar("durable_ack_seconds", OTHER_TRACE));
    assert!(!exemplar("durable_ack_seconds", TRACE), "what was live was not queued");
    assert_eq!(series(&text.body), series(&open.body), "both have the same series");

    // The command socket answers alike.
    let socket = scraped.daemon.try_request("GET", "/metrics", None).unwrap();
    assert_eq!(
        socket.headers.get("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let body = String::from_utf8(socket.body).unwrap();
    assert_eq!(series(&body), series(&text.body));
}

#[test]
fn no_caller_makes_a_series() {
    let mut redis = RedisServer::start();
    let scraped = Scraped::start(operated(&redis.url()));
    let daemon = &scraped.daemon;
    let before = scraped.page("text/plain").body;
    let calls = |round: u32| {
        for index in 0..20 {
            let key = format!("key-{round}-{index}");
            daemon.redis(&["SET", &key, "v"]).assert_acknowledged();
            daemon.redis_with(&["GET", &key], json!({ "priority": "low", "max_stale": "7m" }));
            daemon.redis(&["NOSUCH", &key]);
            let trace = format!("{:032x}", 1 + round * 100 + index);
            assert!(matches!(set_traced(daemon, &key, &trace), 200 | 202));
        }
    };
    calls(0);
    begin_outage(&mut redis, daemon);
    calls(1);
    redis.restart();
    recover(daemon);
    daemon.wait_until_drained("redis", LONG);
    daemon.order("/admin/circuit-breaker/redis/force-open");
    let after = scraped.page("text/plain").body;
    let (before, after) = (series(&before), series(&after));
    let new: Vec<_> = after.difference(&before).collect();
    assert_eq!(new.len(), 1, "a transition by order, and nothing else: {new:?}");
    assert!(new[0].contains("reason=\"forced_open\""), "{new:?}");
    assert!(before.is_subset(&after), "nothing goes away");
}

#[test]
fn what_becomes_of_queued_calls_is_counted() {
    let mut redis = RedisServer::start();
    let scraped = Scraped::start(operated(&redis.url()).set("backends.redis.queue.items", 10));
    let daemon = &scraped.daemon;
    let metric = |name: &str, labels: &[(&str, &str)]| daemon.metric(name, labels);
    let events = || {
        ["enqueued", "replayed", "dead", "refused", "requeued", "discarded"]
            .map(|event| metric("queue_operations_total", &[("event", event)]))
    };
    daemon.redis(&["SET", "text", "v"]).assert_live();
    daemon.redis(&["GET", "text"]).assert_live();
    assert_eq!(metric("cache_entries", &[]), 1.0);
    assert!(metric("cache_bytes", &[]) > 0.0);
    assert_eq!(events(), [0.0; 6]);
    begin_outage(&mut redis, daemon);
    // Two that Redis will refuse, and eight that it will take.
    for field in ["a", "b"] {
        daemon.redis(&["HSET", "text", field, "v"]).assert_queued();
    }
    for key in 0..8 {
        daemon.redis(&["SET", &format!("k{key}"), "v"]).assert_queued();
    }
    assert_eq!(daemon.redis(&["SET", "k8", "v"]).status, 507, "the queue is full");
    assert_eq!(events(), [10.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
    let limits = ["queue_limit_calls", "queue_fill_ratio", "replay_paused", "fallbacks_active"];
    assert_eq!(limits.map(|name| metric(name, &[])), [10.0, 1.0, 1.0, 1.0]);
    assert_eq!(metric("queue_calls", &[("state", "pending")]), 10.0);
    assert_eq!(metric("durable_ack_seconds_count", &[]), 10.0);
    let acks = metric("durable_ack_seconds_sum", &[]);
    assert!(acks > 0.0, "an acknowledgement takes less than a millisecond, and more than nothing");
    daemon.wait_until("the oldest ages", LONG, |daemon| {
        daemon.metric("queue_oldest_age_seconds", &[]) > 0.2
    });

    redis.restart();
    recover(daemon);
    daemon.wait_until("all is settled", LONG, |d| d.queued("redis", "pending") == 0);
    assert_eq!(events(), [10.0, 8.0, 2.0, 1.0, 0.0, 0.0]);
    assert_eq!(metric("queue_calls", &[("state", "dead")]), 2.0);
    assert_eq!(metric("queue_wait_seconds_count", &[]), 8.0);
    assert!(metric("queue_wait_seconds_sum", &[]) >= 8.0 * 0.1, "each waited for the outage's end");
    let batches = metric("replay_batch_seconds_count", &[]);
    assert!(batches >= 1.0 && metric("replay_batch_seconds_sum", &[]) > 0.0, "{batches} batches");
    let limits =
        ["queue_fill_ratio", "replay_paused", "fallbacks_active", "queue_oldest_age_seconds"];
    assert_eq!(limits.map(|name| metric(name, &[])), [0.0; 4]);

    let (_, page) = daemon.get("/v1/backends/redis/queue?state=dead");
    let id = |index: usize| page["calls"][index]["op_id"].as_str().unwrap().to_owned();
    let (status, body) = daemon.delete(&format!("/admin/backends/redis/queue/{}", id(0)));
    assert_eq!(status, 200, "{body}");
    assert_eq!(redis.query::<u64>(&["DEL", "text"]), 1);
    let again = format!("/admin/backends/redis/queue/{}/requeue", id(1));
    assert_eq!(daemon.post(&again, json!({ "force": true })).0, 200);
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(events(), [11.0, 9.0, 2.0, 1.0, 1.0, 1.0]);
}

#[test]
fn a_store_that_refuses_writes_shows() {
    let mut redis = RedisServer::start();
    let builder = operated(&redis.url()).set("backends.redis.queue.disk_floor", "1000TiB");
    let scraped = Scraped::start(builder);
    begin_outage(&mut redis, &scraped.daemon);
    assert_eq!(scraped.daemon.redis(&["SET", "k", "v"]).status, 507);
    assert_eq!(scraped.daemon.metric("store_refusing", &[]), 1.0);
    assert_eq!(scraped.daemon.metric("alert_active", &[("alert", "store")]), 1.0);
    assert_eq!(scraped.daemon.metric("alert_active", &[]), 1.0, "and no other alert");
    assert_eq!(scraped.daemon.metric("queue_operations_total", &[("event", "refused")]), 1.0);
    assert_eq!(scraped.daemon.metric("durable_ack_seconds_count", &[]), 0.0, "nothing was acked");
}

#[test]
fn an_order_shows_for_as_long_as_it_holds() {
    let redis = RedisServer::start();
    let scraped = Scraped::start(operated(&redis.url()));
    let daemon = &scraped.daemon;
    let held = || {
        let state = |state| daemon.metric("breaker_state", &[("state", state)]);
        let flags = ["breaker_forced", "backend_offline"].map(|name| daemon.metric(name, &[]));
        (state("OPEN"), state("CLOSED"), flags)
    };
    assert_eq!(held(), (0.0, 1.0, [0.0, 0.0]));
    daemon.order("/admin/circuit-breaker/redis/force-open");
    assert_eq!(held(), (1.0, 0.0, [1.0, 0.0]));
    daemon.order("/admin/circuit-breaker/redis/force-close");
    assert_eq!(held(), (0.0, 1.0, [1.0, 0.0]));
    daemon.order("/admin/circuit-breaker/redis/release");
    daemon.order("/admin/backends/redis/offline");
    assert_eq!(held(), (0.0, 1.0, [0.0, 1.0]));
    daemon.order("/admin/backends/redis/online");
    assert_eq!(held(), (0.0, 1.0, [0.0, 0.0]));
}

#[test]
fn promtool_accepts_the_alerts_and_sees_each_fire_stay_quiet_and_clear() {
    let path = |name| shipped(name).to_str().unwrap().to_owned();
    let check = promtool(&["check", "rules", &path("fusebox.rules.yml")], "");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    let tests = promtool(&["test", "rules", &path("fusebox.rules_test.yml")], "");
    let said = [tests.stdout, tests.stderr].concat();
    assert!(tests.status.success(), "{}", String::from_utf8_lossy(&said));
}

/// Seconds, bytes and numbers each have panels of their own.
#[track_caller]
fn assert_one_unit(panel: &Value) {
    let family = |unit: &str| match unit {
        "s" => "seconds",
        "bytes" => "bytes",
        _ => "numbers",
    };
    let config = &panel["fieldConfig"];
    let usual = config["defaults"]["unit"].as_str().unwrap_or_default();
    for target in panel["targets"].as_array().into_iter().flatten() {
        let expression = target["expr"].as_str().unwrap();
        let is_ratio = expression.contains(") / (") || expression.contains("fill_ratio");
        let wanted = match expression {
            _ if is_ratio => family(usual),
            it if it.contains("_seconds") => "seconds",
            it if it.contains("_bytes") => "bytes",
            _ => "numbers",
        };
        assert_eq!(family(usual), wanted, "{}: {expression}", panel["title"]);
    }
    let others = config["overrides"].as_array().into_iter().flatten();
    let mut others = others.flat_map(|it| it["properties"].as_array().into_iter().flatten());
    assert!(!others.any(|it| it["id"] == "unit"), "{} has another unit", panel["title"]);
}

#[test]
fn rules_and_dashboard_name_what_there_is() {
    let scraped = Scraped::start(Builder::default());
    let prometheus = Prometheus::scraping(scraped.address(), &hurried_rules());
    prometheus.wait_until("up == 1", LONG);
    let groups = prometheus.api("rules", &[]);
    let rules = groups["groups"][0]["rules"].as_array().expect("the shipped rules").clone();
    let tests = shipped_text("fusebox.rules_test.yml");
    let table = shipped_text("README.md");
    for rule in &rules {
        let name = rule["name"].as_str().unwrap();
        let severity = rule["labels"]["severity"].as_str().unwrap_or("none");
        assert!(matches!(severity, "critical" | "warning" | "info"), "{name}: {severity}");
        for annotation in ["summary", "description"] {
            let text = rule["annotations"][annotation].as_str().unwrap_or_default();
            assert!(text.len() > 20, "the {annotation} of {name}: {text:?}");
        }
        assert!(tests.contains(name), "{name} has no test");
        assert!(table.contains(&format!("`{name}`")), "{name} is not in the table");
    }
    let dashboard: Value = serde_json::from_str(&shipped_text("fusebox.dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut shown: Vec<String> = panels.iter().flat_map(expressions).collect();
    assert!(shown.len() >= panels.len(), "every panel shows something");
    shown.extend(expressions(&dashboard["annotations"]));
    panels.iter().for_each(assert_one_unit);
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let variables = variables.iter().filter(|variable| variable["type"] == "query");
    let asked = variables.map(|variable| variable["query"].as_str().unwrap().to_owned());
    let asked: Vec<String> = asked.flat_map(|query| selectors(&query)).collect();
    assert_eq!(asked.len(), 2, "{asked:?}");
    let concrete = |text: &str| {
        let text = text.replace("$instance", ".*").replace("$backend", ".*");
        text.replace("$__rate_interval", "5s")
    };
    // Each expression is one, and each series that it names is there.
    let mut named = BTreeSet::new();
    for expression in shown.iter().map(|text| concrete(text)) {
        prometheus.query(&expression);
        named.extend(selectors(&expression));
    }
    named.extend(asked.iter().map(|text| concrete(text)));
    for rule in &rules {
        named.extend(selectors(rule["query"].as_str().unwrap()));
    }
    assert!(named.len() > 40, "{named:?}");
    for selector in &named {
        prometheus.wait_until(selector, LONG);
    }
}

#[test]
fn prometheus_sees_an_outage_as_it_was_and_its_alert_fires_and_clears() {
    const WRITES: usize = 20;
    let mut redis = RedisServer::start();
    // Half-open lasts until the frozen server goes on.
    let scraped = Scraped::start(operated(&redis.url()).set("backends.redis.timeout", "20s"));
    let daemon = &scraped.daemon;
    let prometheus = Prometheus::scraping(scraped.address(), &hurried_rules());
    let sees = |expression: &str| {
        prometheus.wait_until(expression, LONG);
    };
    let fires = |name: &str| prometheus.alerts(name).iter().any(|it| it["state"] == "firing");
    sees("fusebox_breaker_state{state=\"CLOSED\"} == 1");
    sees("fusebox_queue_calls{state=\"pending\"} == 0");

    begin_outage(&mut redis, daemon);
    for key in 0..WRITES {
        assert_eq!(set_traced(daemon, &format!("k{key}"), TRACE), 202);
    }
    sees(&format!("fusebox_queue_calls{{state=\"pending\"}} == {WRITES}"));
    sees("fusebox_breaker_state{state=\"OPEN\"} == 1");
    eventually("the alert fires", LONG, || fires("FuseboxBreakerOpen"));
    let alert = &prometheus.alerts("FuseboxBreakerOpen")[0];
    let (labels, said) = (&alert["labels"], &alert["annotations"]);
    assert_eq!((&labels["severity"], &labels["backend"]), (&json!("warning"), &json!("redis")));
    let (summary, description) = (said["summary"].as_str(), said["description"].as_str());
    let instance = scraped.address();
    assert_eq!(summary, Some(format!("the breaker of redis on {instance} is open").as_str()));
    assert!(description.is_some_and(|text| text.contains("`fusebox explain redis`")), "{said}");
    assert!(fires("FuseboxDegraded") || fires("FuseboxCritical"), "the system's state, too");
    for quiet in ["FuseboxStoreRefusesWrites", "FuseboxReplayStalled", "FuseboxBackendHeld"] {
        assert!(!fires(quiet), "{quiet}");
    }

    redis.restart();
    redis.freeze();
    let (status, body) =
        daemon.post("/admin/resilience/force-recovery", json!({ "backend": "redis" }));
    assert_eq!(status, 200, "{body}");
    sees("fusebox_breaker_state{state=\"HALF_OPEN\"} == 1");
    redis.thaw();
    daemon.wait_for_breaker("redis", "CLOSED", LONG);
    daemon.wait_until_drained("redis", LONG);
    sees("fusebox_breaker_state{state=\"CLOSED\"} == 1");
    sees("fusebox_queue_calls{state=\"pending\"} == 0");
    eventually("the alert clears", LONG, || prometheus.alerts("FuseboxBreakerOpen").is_empty());

    // At each scrape one state, and the states in the order in which they were.
    let mut moments: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for series in prometheus.query("fusebox_breaker_state[1h]") {
        for (at, _) in series.samples.iter().filter(|(_, value)| *value == 1.0) {
            let state = series.labels["state"].as_str().unwrap().to_owned();
            moments.entry(at.to_bits()).or_default().push(state);
        }
    }
    let mut order: Vec<String> = Vec::new();
    for state in moments.into_values() {
        assert_eq!(state.len(), 1, "one state at a time: {state:?}");
        order.extend(state);
    }
    order.dedup();
    assert_eq!(order, ["CLOSED", "OPEN", "HALF_OPEN", "CLOSED"]);

    let depths = prometheus.query("fusebox_queue_calls{state=\"pending\"}[1h]");
    let depths: Vec<f64> = depths[0].samples.iter().map(|(_, depth)| *depth).collect();
    let most = depths.iter().copied().fold(0.0, f64::max);
    let writes = f64::from(u32::try_from(WRITES).unwrap());
    assert_eq!((depths.first(), most, depths.last()), (Some(&0.0), writes, Some(&0.0)));
    for (series, count) in [
        ("fusebox_queue_operations_total{event=\"enqueued\"}", writes),
        ("fusebox_queue_operations_total{event=\"replayed\"}", writes),
        ("fusebox_queue_wait_seconds_count", writes),
        ("fusebox_durable_ack_seconds_count", writes),
        (
            "fusebox_breaker_transitions_total{from=\"CLOSED\",to=\"OPEN\",reason=\"failure_rate\"}",
            1.0,
        ),
        ("fusebox_recovery_attempts_total{result=\"succeeded\"}", 1.0),
    ] {
        sees(&format!("{series} == {count}"));
    }
}

#[test]
fn prometheus_leads_from_a_slow_call_to_its_trace() {
    let mut redis = RedisServer::start();
    let scraped = Scraped::start(operated(&redis.url()));
    let daemon = &scraped.daemon;
    let prometheus = Prometheus::scraping(scraped.address(), &hurried_rules());
    assert_eq!(set_traced(daemon, "live", TRACE), 200);
    begin_outage(&mut redis, daemon);
    assert_eq!(set_traced(daemon, "queued", OTHER_TRACE), 202);
    let traces = |metric: &str| -> Vec<(Value, f64)> {
        let query = format!("fusebox_{metric}_bucket");
        let parameters = [("query", query.as_str()), ("start", "0"), ("end", "9999999999")];
        let found = prometheus.api("query_exemplars", &parameters);
        let series = found.as_array().unwrap().iter();
        let exemplars = series.flat_map(|it| it["exemplars"].as_array().unwrap().clone());
        let value = |it: &Value| it["value"].as_str().and_then(|text| text.parse().ok()).unwrap();
        exemplars.map(|it| (it["labels"].clone(), value(&it))).collect()
    };
    for (metric, trace) in
        [("attempt_duration_seconds", TRACE), ("durable_ack_seconds", OTHER_TRACE)]
    {
        let labels = json!({ "trace_id": trace });
        eventually(metric, LONG, || traces(metric).iter().any(|(found, _)| *found == labels));
        let (_, took) = traces(metric).into_iter().find(|(found, _)| *found == labels).unwrap();
        assert!((0.000_01..5.0).contains(&took), "{metric}: {took} s");
    }
}
