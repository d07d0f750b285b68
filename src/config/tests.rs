//! The configuration from source to message.

use super::*;
use crate::net::secret::Secret;

/// The configuration of a file with this text, in this environment.
fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fusebox.toml");
    std::fs::write(&path, text).unwrap();
    let mut all = vec![("HOME", "/home/ada"), ("XDG_RUNTIME_DIR", "/run/user/1")];
    all.extend_from_slice(env);
    let flags = Flags { config: Some(path), ..Flags::default() };
    Config::load(&flags, &Environment::of(&all), &crate::kinds::sections())
}

fn good(text: &str, env: &[(&str, &str)]) -> Config {
    load(text, env).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The backend of that name.
#[track_caller]
fn named<'a>(config: &'a Config, name: &str) -> &'a BackendConfig {
    let found = config.backends.iter().find(|backend| backend.settings.name == name);
    found.unwrap_or_else(|| panic!("no backend {name}"))
}

#[track_caller]
fn problems(text: &str, env: &[(&str, &str)], expected: &[&str]) {
    match load(text, env) {
        Ok(_) => panic!("no problem in {text:?}"),
        Err(errors) => assert_eq!(errors.problems, expected, "{text}"),
    }
}

#[test]
fn an_empty_file_is_one_backend_of_each_kind_with_the_usual_settings() {
    let config = good("", &[]);
    assert_eq!(config.state_dir, PathBuf::from("/home/ada/.local/state/fusebox"));
    assert_eq!(
        (config.client_group.name.as_str(), config.admin_group.name.as_str()),
        ("fusebox", "root")
    );
    let thirty = std::time::Duration::from_secs(30);
    assert_eq!(
        (config.pings.interval, config.show()["health"]["auto_recovery"].as_bool()),
        (thirty, Some(true))
    );
    let names: Vec<&str> = config.backends.iter().map(|it| it.settings.name.as_str()).collect();
    assert_eq!(names, crate::kinds::sections().iter().map(|it| it.name()).collect::<Vec<_>>());
    let expected = r#"
        kind = "redis"
        enabled = true
        url = "redis://127.0.0.1:6379"
        critical = false
        depends_on = []
        depends_on_optional = []
        timeout = "5s"
        on_miss = "nil"
        scripts = "declared"
        breaker = { failure_threshold = 5, failure_rate = 0.5, recovery_timeout = "30s", recovery_timeout_max = "5m", success_threshold = 3, window = "1m", jitter = 0.5, slow_call_duration = "2s 500ms", slow_call_rate = 0.0 }
        retry = { attempts = 3, base = "50ms", cap = "2s" }
        bulkhead = { in_flight_max = 256 }
        cache = { items = 1000, bytes = "64 MiB", entry_max = "16 MiB", disk_bytes = "256 MiB", ttl = "5m", max_stale = "5m", answer_after = "1s" }
        queue = { items = 50000, bytes = "1 GiB", dead_items = 5000, dead_bytes = "256 MiB", disk_floor = "64 MiB", format = 1, write_fallback = "queue", dead_letter_policy = "continue" }
    "#;
    let expected: toml::Value = toml::from_str(expected).unwrap();
    let shown = |name: &str| toml::Value::try_from(config.show_backend(name)).unwrap();
    assert_eq!(shown("redis"), expected);
    let clickhouse = shown("clickhouse");
    let of = |section: &str, key: &str| clickhouse[section][key].clone();
    assert_eq!(clickhouse["critical"], true.into());
    assert_eq!(clickhouse["timeout"], "30s".into());
    assert_eq!(of("breaker", "failure_threshold"), 3.into());
    assert_eq!(of("breaker", "recovery_timeout"), "2m".into());
    assert_eq!(of("breaker", "success_threshold"), 2.into());
    assert_eq!((of("cache", "ttl"), of("cache", "max_stale")), ("5m".into(), "1h".into()));
    assert_eq!(of("queue", "write_fallback"), "refuse".into());
}

#[test]
fn what_check_prints_is_a_configuration_again() {
    let text = "[backends.redis]\nurl = 'redis://h:1'\n[backends.redis.cache]\nbytes = '10MB'\n\
                [http]\nlisten = '127.0.0.1:9180'\n[tracing]\njaeger_url = 'https://j:1/ui/'\nkeep_unsampled = false\n\
                [backends.b]\nkind = 'redis'\ndepends_on = ['redis']";
    let config = good(text, &[]);
    let again = good(&config.show_toml(), &[]);
    assert_eq!(config.show()["backends"]["b"], again.show()["backends"]["b"]);
    assert_eq!(config.show()["http"], again.show()["http"]);
    let tracing = serde_json::json!({ "jaeger_url": "https://j:1/ui", "keep_unsampled": false });
    assert_eq!(again.show()["tracing"], tracing);
}

#[test]
fn later_sources_win() {
    let file = "[backends.redis.breaker]\nfailure_threshold = 6\n[health]\ninterval = '20s'";
    let threshold =
        |env: &[(&str, &str)]| named(&good(file, env), "redis").settings.breaker.failure_threshold;
    assert_eq!(threshold(&[]), 6);
    let seed = ("REDIS_CIRCUIT_BREAKER_THRESHOLD", "7");
    assert_eq!(threshold(&[seed]), 7);
    assert_eq!(threshold(&[seed, ("FUSEBOX_BACKENDS__REDIS__BREAKER__FAILURE_THRESHOLD", "8")]), 8);
    let flags =
        Flags { state_dir: Some("/f".into()), http: Some("[::1]:9".into()), ..Flags::default() };
    let env = Environment::of(&[("FUSEBOX_CONFIG", "/dev/null"), ("FUSEBOX_STATE_DIR", "/e")]);
    let config = Config::load(&flags, &env, &crate::kinds::sections()).unwrap();
    assert_eq!(config.state_dir, PathBuf::from("/f"));
    assert_eq!(config.http.unwrap().listen.port(), 9);
}

#[test]
fn the_seeds_and_the_ecosystems_names_work() {
    let config = good(
        "",
        &[
            ("HEALTH_CHECK_INTERVAL", "15"),
            ("ENABLE_AUTO_RECOVERY", "False"),
            ("REDIS_FALLBACK_CACHE_DIR", "/c"),
            ("REDIS_URL", "redis://cache:7000"),
            ("FIRESTORE_QUEUE_FILE", "/q"),
            ("FIRESTORE_EMULATOR_HOST", "localhost:9"),
            ("GOOGLE_CLOUD_PROJECT", "p"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://o"),
            ("CLICKHOUSE_URL", "http://ch"),
        ],
    );
    assert_eq!(config.pings.interval, std::time::Duration::from_secs(15));
    let redis = named(&config, "redis");
    assert!(!redis.settings.breaker.auto_recovery);
    assert_eq!(redis.settings.cache_dir, Some("/c".into()));
    assert_eq!(redis.endpoint.url.0, "redis://cache:7000");
    assert_eq!(named(&config, "clickhouse").endpoint.url.0, "http://ch");
    let firestore = named(&config, "firestore");
    assert_eq!(firestore.settings.queue_dir, Some("/q".into()));
    assert_eq!(firestore.endpoint.url.0, "http://localhost:9");
    assert_eq!(config.show_backend("firestore")["project"], "p");
    assert_eq!(config.notes, [""; 0]);
}

#[test]
fn variables_reach_every_type_and_names_with_a_dash() {
    let config = good(
        "[backends.my-cache]\nkind = 'redis'",
        &[
            ("FUSEBOX_BACKENDS__MY_CACHE__CRITICAL", "yes"),
            ("FUSEBOX_BACKENDS__MY_CACHE__DEPENDS_ON", "redis"),
            ("FUSEBOX_BACKENDS__MY_CACHE__CACHE__BYTES", "2MiB"),
            ("FUSEBOX_BACKENDS__MY_CACHE__BREAKER__JITTER", "0"),
            ("FUSEBOX_PORT", "tcp://10.0.0.1:80"),
        ],
    );
    let settings = &named(&config, "my-cache").settings;
    assert!(settings.critical);
    assert_eq!(
        (settings.depends_on.as_slice(), settings.cache.bytes),
        (["redis".to_owned()].as_slice(), 2 << 20)
    );
    assert!(settings.breaker.jitter.get() < 1e-9);
    assert_eq!(config.warnings, ["FUSEBOX_PORT is set, but names no setting: ignored"]);
}

#[test]
fn every_bound_has_its_message() {
    for (text, message) in [
        (
            "[backends.redis.queue]\nbytes = '9.8KiB'",
            "backends.redis.queue.bytes must be at least 1 MiB, got 9.8 KiB",
        ),
        ("[backends.redis]\ntimeout = '0s'", "backends.redis.timeout must be at least 1ms, got 0s"),
        (
            "[backends.redis.breaker]\nfailure_threshold = 0",
            "backends.redis.breaker.failure_threshold must be at least 1, got 0",
        ),
        (
            "[backends.redis.breaker]\nfailure_rate = 1.5",
            "backends.redis.breaker.failure_rate must be between 0 and 1, got 1.5",
        ),
        (
            "[backends.redis.breaker]\njitter = -1",
            "backends.redis.breaker.jitter must be between 0 and 1, got -1",
        ),
        (
            "[backends.redis.breaker]\nrecovery_timeout_max = '5s'",
            "backends.redis.breaker.recovery_timeout_max must be at least recovery_timeout (30s), got 5s",
        ),
        (
            "[backends.redis.breaker]\nsuccess_threshold = 0",
            "backends.redis.breaker.success_threshold must be at least 1, got 0",
        ),
        (
            "[backends.redis.breaker]\nwindow = '10ms'",
            "backends.redis.breaker.window must be at least 60ms, got 10ms",
        ),
        (
            "[backends.redis.retry]\nattempts = 0",
            "backends.redis.retry.attempts must be at least 1, got 0",
        ),
        (
            "[backends.redis.retry]\nbase = '3s'\ncap = '1s'",
            "backends.redis.retry.cap must be at least base (3s), got 1s",
        ),
        (
            "[backends.redis.bulkhead]\nin_flight_max = 0",
            "backends.redis.bulkhead.in_flight_max must be at least 1, got 0",
        ),
        (
            "[backends.redis.cache]\nitems = 0",
            "backends.redis.cache.items must be at least 1, got 0",
        ),
        (
            "[backends.redis.cache]\nttl = '5m'\nmax_stale = '1m'",
            "backends.redis.cache.max_stale must be at least ttl (5m), got 1m",
        ),
        (
            "[backends.redis.queue]\nitems = 0",
            "backends.redis.queue.items must be at least 1, got 0",
        ),
        (
            "[backends.redis.queue]\ndead_items = 0",
            "backends.redis.queue.dead_items must be at least 1, got 0",
        ),
        (
            "[backends.redis.queue]\nwrite_fallback = 'drop'",
            "backends.redis.queue.write_fallback must be \"queue\" or \"refuse\", got \"drop\"",
        ),
        (
            "[backends.redis.queue]\ndead_letter_policy = 'x'",
            "backends.redis.queue.dead_letter_policy must be \"continue\" or \"block\", got \"x\"",
        ),
        (
            "[backends.redis]\non_miss = 'zero'",
            "backends.redis.on_miss must be \"nil\" or \"error\", got \"zero\"",
        ),
        (
            "[backends.redis]\nscripts = 'all'",
            "backends.redis.scripts must be \"declared\" or \"barrier\", got \"all\"",
        ),
    ] {
        problems(text, &[], &[message]);
    }
}

#[test]
fn every_reference_has_its_message() {
    for (text, message) in [
        ("[health]\ninterval = '1ms'", "health.interval must be at least 100ms, got 1ms"),
        (
            "[http]\nlisten = 'here'",
            "http.listen must be an address such as 127.0.0.1:9180, got \"here\"",
        ),
        (
            "[tracing]\njaeger_url = 'jaeger:16686'",
            "tracing.jaeger_url must be an http or https URL such as http://127.0.0.1:16686, got \"jaeger:16686\"",
        ),
        (
            "[tracing]\njaeger_url = 'ftp://h/'",
            "tracing.jaeger_url must be an http or https URL such as http://127.0.0.1:16686, got \"ftp://h/\"",
        ),
        (
            "[tracing]\njaeger_url = 'http://h/?a'",
            "tracing.jaeger_url must be an http or https URL such as http://127.0.0.1:16686, got \"http://h/?a\"",
        ),
        (
            "[tracing]\njaeger = 'http://h'",
            "tracing.jaeger is not a setting; the nearest is tracing.jaeger_url",
        ),
        (
            "[http]\nlisten = '[::1]:1'\ntoken_file = '/nowhere'",
            "http.token_file is not usable: /nowhere cannot be read: No such file or directory (os error 2)",
        ),
        (
            "[backends.redis]\npassword_file = '/nowhere'",
            "backends.redis.password_file is not usable: /nowhere cannot be read: No such file or directory (os error 2)",
        ),
        (
            "[backends.redis]\nurl = 'rediss://h'\ntls.ca_file = '/nowhere'",
            "backends.redis.tls.ca_file cannot be read: /nowhere: No such file or directory (os error 2)",
        ),
        (
            "[backends.db]\nkind = 'postgres'",
            "backends.db.kind \"postgres\" is not supported by this release, which supports: clickhouse, firestore, \
             redis",
        ),
        (
            "[backends.\"A b\"]\nkind = 'redis'",
            "backends.A b is not a name for a backend: use up to 64 of a-z, 0-9, _ and -",
        ),
        (
            "[backends]\nredis.enabled = false\nclickhouse.enabled = false\nfirestore.enabled = false",
            "backends must have at least one enabled backend, got none",
        ),
        (
            "[backends.redis]\ndepends_on = ['db']",
            "backends.redis.depends_on names \"db\", which is not a backend; there are: clickhouse, firestore, redis",
        ),
        (
            "[backends.redis]\ndepends_on = ['b']\n[backends.b]\nkind = 'redis'\nenabled = false",
            "backends.redis.depends_on names \"b\", which is not enabled",
        ),
        (
            "[backends.redis]\ndepends_on = ['b']\n[backends.b]\nkind = 'redis'\ndepends_on = ['redis']",
            "depends_on must not form a cycle: b -> redis -> b",
        ),
        (
            "[backends.redis]\ndepends_on_optional = ['b']\n[backends.b]\nkind = 'redis'\ndepends_on = ['redis']",
            "depends_on must not form a cycle: b -> redis -> b",
        ),
        (
            "[backends.redis]\ndepends_on_optional = ['db']",
            "backends.redis.depends_on_optional names \"db\", which is not a backend; there are: clickhouse, firestore, redis",
        ),
        (
            "[backends.redis]\ndepends_on = ['b']\ndepends_on_optional = ['b']\n[backends.b]\nkind = 'redis'",
            "backends.redis.depends_on_optional names \"b\", which depends_on also names",
        ),
        (
            "[backends.clickhouse]\non_miss = 'nil'",
            "backends.clickhouse.on_miss is a setting of the kind redis, and this backend's kind is clickhouse",
        ),
        (
            "[backends.clickhouse]\nordered = 3",
            "backends.clickhouse.ordered is not usable: invalid type: integer `3`, expected a boolean",
        ),
        ("sate_dir = '/x'", "sate_dir is not a setting; the nearest is state_dir"),
        (
            "[backends.redis]\nfailure_threshold = 3",
            "backends.redis.failure_threshold is not a setting; the nearest is backends.redis.breaker.failure_threshold",
        ),
    ] {
        problems(text, &[], &[message]);
    }
}

#[test]
fn a_value_of_another_type_is_named_with_what_it_must_be() {
    for (text, problem) in [
        (
            "breaker = { failure_threshold = -1 }",
            "breaker.failure_threshold must be at least 1, got -1",
        ),
        (
            "breaker = { failure_threshold = 'many' }",
            "breaker.failure_threshold must be a whole number between 1 and 1000000, got \"many\"",
        ),
        (
            "breaker = { failure_rate = 'half' }",
            "breaker.failure_rate must be a number between 0 and 1, got \"half\"",
        ),
        (
            "queue = { bytes = 'lots' }",
            "queue.bytes must be a size such as \"64MiB\" between 1 MiB and 1 TiB, got \"lots\"",
        ),
        ("depends_on = [1]", "depends_on must be a list of texts, got [1]"),
        ("url = 5", "url must be a text, got another type"),
    ] {
        problems(
            &format!("[backends.redis]\n{text}"),
            &[],
            &[&format!("backends.redis.{problem}")],
        );
    }
    let long = "x".repeat(1_000);
    let told = load(&format!("[backends.redis]\ntimeout = '{long}'"), &[]).map(|_| ()).unwrap_err();
    assert!(told.problems[0].len() < 200, "{told}");
}

#[test]
fn all_problems_are_told_at_once() {
    problems(
        "sate_dir = 1\n[backends.redis]\ntimeout = 5\ncritical = 'maybe'\n[backends.redis.queue]\nitems = 0",
        &[("FUSEBOX_BACKENDS__REDIS__RETRY__ATTEMPTS", "0"), ("FUSEBOX_HTTP__LISTN", "x")],
        &[
            "sate_dir is not a setting; the nearest is state_dir",
            "FUSEBOX_HTTP__LISTN sets http.listn, which is not a setting; the nearest is http.listen",
            "backends.redis.critical must be true or false, got \"maybe\"",
            "backends.redis.timeout must be a duration such as \"30s\" between 1ms and 1day, got 5",
            "backends.redis.retry.attempts must be at least 1, got 0 (set by FUSEBOX_BACKENDS__REDIS__RETRY__ATTEMPTS)",
            "backends.redis.queue.items must be at least 1, got 0",
        ],
    );
}

#[test]
fn a_file_that_is_no_toml_or_is_not_there_says_so() {
    let errors = load("x = [", &[]).map(|_| ()).unwrap_err();
    assert!(errors.to_string().contains("fusebox.toml, line 1: "), "{errors}");
    let flags = Flags { config: Some("/nowhere".into()), ..Flags::default() };
    let env = Environment::of(&[("HOME", "/h")]);
    let errors = Config::load(&flags, &env, &crate::kinds::sections()).map(|_| ()).unwrap_err();
    assert_eq!(
        errors.problems,
        ["/nowhere cannot be read: No such file or directory (os error 2)"]
    );
}

#[test]
fn a_socket_address_that_does_not_fit_is_refused() {
    let long = format!("/{}", "x".repeat(120));
    let errors = load("", &[("FUSEBOX_SOCKET", &long)]).map(|_| ()).unwrap_err();
    assert!(errors.problems[0].starts_with("socket must be shorter than 108 bytes, got 121"));
}

#[test]
fn passwords_are_found_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("redis_password");
    std::fs::write(&file, "s3cret\n").unwrap();
    let credentials = ("CREDENTIALS_DIRECTORY", dir.path().to_str().unwrap());
    let config = good("[backends.redis]\nurl = 'redis://ada:s3cret@h:1'", &[credentials]);
    let endpoint = &named(&config, "redis").endpoint;
    assert_eq!(endpoint.password.as_ref().map(Secret::expose), Some("s3cret"));
    assert_eq!(config.show_backend("redis")["url"], "redis://ada:***@h:1");
    assert!(!config.show_toml().contains("s3cret"));
    assert!(!format!("{endpoint:?}").contains("s3cret"));
    let text = format!("[backends.redis]\npassword_file = {:?}", file.to_str().unwrap());
    assert_eq!(
        named(&good(&text, &[]), "redis").endpoint.password.as_ref().map(Secret::expose),
        Some("s3cret")
    );
}

#[test]
fn a_default_that_is_in_the_way_can_be_left_out() {
    let names = |config: &Config| -> Vec<String> {
        config.backends.iter().map(|it| it.settings.name.clone()).collect()
    };
    let all = names(&good("", &[]));
    let config = good("[backends.redis]\nenabled = false\n[backends.b]\nkind = 'redis'", &[]);
    assert!(!names(&config).contains(&"redis".to_owned()) && names(&config).len() == all.len());
    let config = good("[backends.b]\nkind = 'redis'", &[]);
    assert_eq!(names(&config).len(), all.len() + 1);
    for name in all {
        let note = format!("the backend {name} exists by default");
        assert!(config.notes.iter().any(|told| told.starts_with(&note)), "{name}");
    }
}

#[test]
fn a_file_that_does_not_parse_is_told_by_its_line_and_shows_no_password() {
    let Err(errors) = load("[backends.redis]\nurl = \"redis://:s3cret@h:1\n", &[]) else {
        panic!("it does not parse");
    };
    assert_eq!(errors.problems.len(), 1);
    assert!(errors.problems[0].contains("line 2: "), "{errors}");
    assert!(!errors.to_string().contains("s3cret"), "{errors}");
}

#[test]
fn the_tcp_listener_beyond_loopback_wants_tls_or_a_written_plaintext() {
    let listens =
        |listen: &str, more: &str| load(&format!("[http]\nlisten = '{listen}'\n{more}"), &[]);
    for listen in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        assert!(!listens(listen, "").unwrap().http.unwrap().is_exposed(), "{listen}");
    }
    for listen in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
        let errors = listens(listen, "plaintext = false").map(|_| ()).unwrap_err();
        assert!(
            errors.problems[0].starts_with("http.listen must be a loopback address"),
            "{errors}"
        );
        let http = listens(listen, "plaintext = true").unwrap();
        assert_eq!(http.show()["http"]["plaintext"], true);
        assert!(http.http.unwrap().is_exposed(), "{listen}");
    }
    let listen = "[http]\nlisten = '0.0.0.0:1'\n";
    problems(
        &format!("{listen}tls.cert_file = '/nowhere'"),
        &[],
        &["http.tls.key_file must be set if http.tls.cert_file is"],
    );
    let errors = load(&format!("{listen}tls = {{ cert_file = '/no', key_file = '/no' }}"), &[]);
    let errors = errors.map(|_| ()).unwrap_err();
    assert!(errors.problems[0].starts_with("http.tls is not usable: /no: "), "{errors}");
}

#[test]
fn a_change_at_run_time_can_be_in_no_section_that_is_not_read_for_it() {
    let declared = Declared::new(&crate::kinds::sections());
    let takes_patch = |it: &&setting::Setting| it.facts.takes == setting::Takes::Patch;
    for setting in declared.settings.iter().filter(takes_patch) {
        let section = setting.path.split('.').next().unwrap();
        assert!(CHANGED.contains(&section), "{}", setting.path);
    }
}

#[test]
fn what_calls_in_flight_may_take_follows_the_memory_where_nothing_says() {
    let usual = good("", &[]);
    assert!((16 << 20..=512 << 20).contains(&usual.calls_bytes), "{}", usual.calls_bytes);
    let again = good(&usual.show_toml(), &[]);
    assert_eq!(again.calls_bytes, usual.calls_bytes);
    assert_eq!(good("calls.bytes = '3MiB'", &[]).calls_bytes, 3 << 20);
    problems("calls.bytes = '10KiB'", &[], &["calls.bytes must be at least 1 MiB, got 10 KiB"]);
}
