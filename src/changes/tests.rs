use std::time::Duration;

use serde_json::{Value as Json, json};

use super::{
    edit::{Edit, Refusal},
    *,
};
use crate::{
    config::{Environment, Flags},
    kinds,
};

const NOW: SystemTime = SystemTime::UNIX_EPOCH;
const THRESHOLD: &str = "backends.redis.breaker.failure_threshold";

/// A configuration of this file, these variables and changes.
fn load(file: &str, env: &[(&str, &str)], changes: &[Change]) -> Result<Config, ConfigErrors> {
    let mut all = vec![("FUSEBOX_STATE_DIR", "/s")];
    all.extend_from_slice(env);
    let named = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(named.path(), file).unwrap();
    let flags = Flags { config: Some(named.path().to_owned()), ..Flags::default() };
    let (env, sections) = (Environment::of(&all), kinds::sections());
    Config::load(&flags, &env, &sections)?.with(&flags, &env, changes, &sections)
}

fn with(file: &str, changes: &[Change]) -> Config {
    load(file, &[], changes).unwrap_or_else(|errors| panic!("{errors}"))
}

fn change(path: &str, value: impl Into<toml::Value>) -> Change {
    Change {
        path: path.to_owned(),
        value: value.into(),
        replaced: None,
        by: "user 0".to_owned(),
        at: NOW,
        until: None,
        persisted: false,
    }
}

fn edit(backend: Option<&str>, patch: Json) -> Edit {
    Edit {
        backend: backend.map(str::to_owned),
        patch,
        persist: false,
        until: None,
        force: false,
        by: "user 0".to_owned(),
        at: NOW,
    }
}

fn threshold(config: &Config) -> u32 {
    let redis = config.backends.iter().find(|backend| backend.settings.name == "redis").unwrap();
    redis.settings.breaker.failure_threshold
}

#[test]
fn a_change_lies_above_the_file_and_below_the_environment() {
    let file = "[backends.redis.breaker]\nfailure_threshold = 6";
    let persisted = Change { persisted: true, ..change(THRESHOLD, 7) };
    let both = [change(THRESHOLD, 8), persisted.clone()];
    assert_eq!(threshold(&with(file, &[])), 6);
    assert_eq!(threshold(&with(file, &[persisted])), 7);
    assert_eq!(threshold(&with(file, &both)), 8);
    let config = with(file, &both);
    assert_eq!(
        (source(&config, THRESHOLD), source(&config, "health.interval")),
        ("runtime", "default")
    );
    let name = "FUSEBOX_BACKENDS__REDIS__BREAKER__FAILURE_THRESHOLD";
    let config = load(file, &[(name, "9")], &both).unwrap();
    assert_eq!((threshold(&config), source(&config, THRESHOLD)), (9, name));
}

#[test]
fn what_the_file_names_is_not_looked_at_again_for_a_change() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let secrets = ["token", "password", "authority", "credentials"];
    for name in secrets {
        std::fs::write(path(name), "secret").unwrap();
    }
    let callers = "[[callers]]\nname = 'a'\npassword_file = 'DIR/password'";
    let file = "http = { listen = '127.0.0.1:1', token_file = 'DIR/token' }\n\
        [backends.redis]\nurl = 'rediss://h'\npassword_file = 'DIR/password'\ntls.ca_file = 'DIR/authority'\n\
        queue.dir = 'DIR/queue'\n\
        [backends.firestore]\nurl = 'https://h'\nproject = 'p'\ncredentials_file = 'DIR/credentials'\n\
        [[doors]]\nbackend = 'redis'\nlisten = '127.0.0.1:2'\ncallers_file = 'DIR/callers'";
    for (name, text) in [("callers", callers), ("file", file)] {
        let text = text.replace("DIR", dir.path().to_str().unwrap());
        std::fs::write(path(name), text).unwrap();
    }
    let flags = Flags { config: Some(path("file")), ..Flags::default() };
    let (env, sections) = (Environment::of(&[("FUSEBOX_STATE_DIR", "/s")]), kinds::sections());
    let base = Config::load(&flags, &env, &sections).unwrap_or_else(|errors| panic!("{errors}"));
    for name in ["callers", "file"].iter().chain(&secrets) {
        std::fs::remove_file(path(name)).unwrap();
    }
    std::fs::write(path("queue"), "in the place of a folder").unwrap();

    let changed = base.with(&flags, &env, &[change(THRESHOLD, 7)], &sections);
    let changed = changed.unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!((threshold(&changed), source(&changed, THRESHOLD)), (7, "runtime"));
    let token = |config: &Config| config.http.as_ref().and_then(|http| http.token.clone());
    assert_eq!((token(&changed), &changed.doors), (token(&base), &base.doors));
    for (after, before) in changed.backends.iter().zip(&base.backends) {
        assert_eq!(after.endpoint, before.endpoint);
    }
    let back = changed.with(&flags, &env, &[], &sections).map(|back| back.effective);
    assert_eq!(back.unwrap(), base.effective);
    let wrong = base.with(&flags, &env, &[change(THRESHOLD, 0)], &sections);
    let why = format!("{THRESHOLD} must be at least 1, got 0 (changed at run time)");
    assert_eq!(wrong.map(|_| ()).unwrap_err().problems, [why]);
}

#[test]
fn what_is_outdated_is_dropped_and_told_and_the_rest_is_kept() {
    let file = "[backends.redis.breaker]\nfailure_threshold = 6";
    let later = NOW + Duration::from_secs(10);
    let kept = Change { until: Some(later), ..change("health.interval", "9s") };
    let changes = vec![
        kept.clone(),
        // The file said 5 when it was made.
        Change { replaced: Some(5.into()), ..change(THRESHOLD, 7) },
        Change { until: Some(NOW), ..change("backends.redis.retry.attempts", 5) },
        change("backends.redis.breaker.treshold", 5),
        change("backends.redis.url", "redis://h"),
        // It fits its bounds, and not what it depends on.
        change("backends.redis.retry.cap", "1ms"),
    ];
    let base = with(file, &[]);
    let settle = |changes| settle(&base, |changes| load(file, &[], changes), changes, NOW);
    let Settled { config, told, left_out } = settle(changes.clone());
    assert_eq!(config.changes, [kept]);
    assert_eq!((threshold(&config), config.pings.interval), (6, Duration::from_secs(9)));
    let all = told.join("\n");
    for part in [
        "failure_threshold, changed at run time by user 0: the file was changed since then",
        "retry.attempts, changed at run time by user 0: its time is over",
        "treshold, changed at run time by user 0: there is no such setting",
        "url, changed at run time by user 0: it now takes effect only after a reload",
        "retry.cap, changed at run time by user 0, is left out: backends.redis.retry.cap must be at least base",
    ] {
        assert!(all.contains(part), "{part}\n{all}");
    }
    assert_eq!(told.len(), 5);
    // What was meant to last and is no longer possible is an alert; what is over is not.
    assert_eq!(left_out, [""; 0]);
    let lasting = changes.into_iter().map(|change| Change { persisted: true, ..change });
    let lasting = settle(lasting.collect());
    assert_eq!(lasting.told, told);
    assert_eq!(lasting.left_out, told[2..]);
}

#[test]
fn what_cannot_be_changed_is_refused_by_name_and_value() {
    let name = "FUSEBOX_BACKENDS__REDIS__BREAKER__WINDOW";
    let config = load("", &[(name, "30s")], &[]).unwrap();
    let refusal = |backend, patch| edit(backend, patch).changes(&config).unwrap_err();
    let redis = |patch| refusal(Some("redis"), patch);
    assert_eq!(
        redis(json!({"breaker": {"failure_treshold": 7}})),
        Refusal::Invalid("backends.redis.breaker.failure_treshold is not a setting; the nearest is backends.redis.breaker.failure_threshold".into())
    );
    for patch in [json!(null), json!([]), json!("x"), json!({}), json!({"breaker": {}})] {
        assert!(matches!(redis(patch.clone()), Refusal::Invalid(_)), "{patch}");
    }
    assert!(
        matches!(redis(json!({"breaker": 3})), Refusal::Invalid(why) if why.contains("breaker is not a setting"))
    );
    let Refusal::Locked(why) = redis(json!({"url": "redis://h"})) else { panic!("it is locked") };
    assert!(
        why.starts_with("backends.redis.url cannot be changed at run time")
            && why.ends_with("a reload"),
        "{why}"
    );
    assert!(
        matches!(refusal(None, json!({"state_dir": "/x"})), Refusal::Locked(why) if why.ends_with("a restart"))
    );
    assert!(
        matches!(redis(json!({"breaker": {"window": "9s"}})), Refusal::Overridden(why) if why.contains(name))
    );
    let hasty = json!({"breaker": {"recovery_timeout": "10ms"}});
    assert!(
        matches!(redis(hasty.clone()), Refusal::Unsafe(why) if why.contains("at least 1s, got \"10ms\""))
    );
    let forced = Edit { force: true, ..edit(Some("redis"), hasty) };
    assert_eq!(forced.changes(&config).unwrap().len(), 1);
}

#[test]
fn keys_with_dots_say_the_same_as_sections_and_nothing_is_named_twice() {
    let config = with("", &[]);
    let paths = |backend, patch: Json| -> Result<Vec<String>, Refusal> {
        let changes = edit(backend, patch).changes(&config)?;
        Ok(changes.into_iter().map(|change| change.path).collect())
    };
    let dotted = [
        (None, json!({"backends.redis.breaker.failure_threshold": 7})),
        (None, json!({"backends": {"redis.breaker": {"failure_threshold": 7}}})),
        (Some("redis"), json!({"breaker.failure_threshold": "7"})),
    ];
    for (backend, patch) in dotted {
        assert_eq!(paths(backend, patch.clone()), Ok(vec![THRESHOLD.into()]), "{patch}");
    }
    for (patch, part) in [
        (json!({"breaker.window": "9s", "breaker": {"window": "8s"}}), "breaker.window twice"),
        (
            json!({"breaker.window": "9s", "breaker": null}),
            "names backends.redis.breaker.window, and backends.redis.breaker as a whole",
        ),
    ] {
        let refusal = paths(Some("redis"), patch.clone()).unwrap_err();
        assert!(matches!(&refusal, Refusal::Invalid(why) if why.contains(part)), "{refusal}");
    }
    // What only begins alike is another setting.
    let alike = json!({"breaker": {"recovery_timeout": "9s", "recovery_timeout_max": "90s"}});
    assert_eq!(paths(Some("redis"), alike).map(|paths| paths.len()), Ok(2));
}

#[test]
fn doors_are_not_changed_at_run_time_and_that_says_what_to_do() {
    let config = with("[[doors]]\nbackend = \"redis\"\nlisten = \"127.0.0.1:7000\"", &[]);
    for patch in [
        json!({"doors": [{"connections": 9}]}),
        json!({"doors": {"connections": 9}}),
        json!({"doors[0]": {"connections": 9}}),
        json!({"doors[0].connections": 9}),
        json!({"doors": 9}),
        json!({"doors": null}),
    ] {
        let refusal = edit(None, patch.clone()).changes(&config).unwrap_err();
        assert!(
            matches!(&refusal, Refusal::Locked(why) if why.contains("at run time") && why.ends_with("a restart")),
            "{patch}: {refusal}"
        );
    }
}

#[test]
fn null_takes_back_and_a_persisted_change_takes_the_place_of_both() {
    let changes = vec![
        change(THRESHOLD, 7),
        Change { persisted: true, ..change(THRESHOLD, 8) },
        change("backends.redis.breaker.window", "9s"),
        change("health.interval", "9s"),
    ];
    let config = with("", &changes);
    let left = |edit: Edit| -> Vec<String> {
        edit.changes(&config).unwrap().into_iter().map(|change| change.path).collect()
    };
    let window = "backends.redis.breaker.window".to_owned();
    let one = edit(Some("redis"), json!({"breaker": {"failure_threshold": null}}));
    assert_eq!(left(one), [window, "health.interval".to_owned()]);
    assert_eq!(left(edit(Some("redis"), json!({"breaker": null}))), ["health.interval"]);
    let none = edit(None, json!({"backends": {"redis": null}, "health": {"interval": null}}));
    assert_eq!(left(none), [""; 0]);
    // Text is read as a variable of the environment is.
    let kept = Edit {
        persist: true,
        ..edit(Some("redis"), json!({"breaker": {"failure_threshold": "9"}}))
    };
    let changes = kept.changes(&config).unwrap();
    let of_it: Vec<&Change> = changes.iter().filter(|change| change.path == THRESHOLD).collect();
    assert!(
        matches!(of_it.as_slice(), [one] if one.persisted && one.value == 9.into()),
        "{of_it:?}"
    );
}

#[test]
fn a_change_for_a_time_leaves_the_lasting_one_beneath() {
    let soon = NOW + Duration::from_secs(9);
    let set = |config: &Config, value: u32, persist, until| {
        let patch = json!({"breaker": {"failure_threshold": value}});
        let edit = Edit { persist, until, ..edit(Some("redis"), patch) };
        with("", &edit.changes(config).unwrap())
    };
    let without_over = |config: &Config| {
        let left = config.changes.iter().filter(|change| change.until.is_none()).cloned();
        threshold(&with("", &left.collect::<Vec<_>>()))
    };
    for persist in [false, true] {
        let lasting = set(&with("", &[]), 7, persist, None);
        for of_time in [false, persist] {
            let config = set(&lasting, 9, of_time, Some(soon));
            assert_eq!((threshold(&config), without_over(&config)), (9, 7), "{persist} {of_time}");
            // Another for a time takes the place of the first, and a lasting one that of all.
            let config = set(&config, 8, of_time, Some(soon));
            assert_eq!((threshold(&config), config.changes.len()), (8, 2));
            let config = set(&config, 6, true, None);
            assert_eq!((threshold(&config), config.changes.len()), (6, 1));
        }
    }
}

#[test]
fn what_is_no_setting_cannot_be_taken_back_either() {
    let config = with("", &[]);
    for (backend, patch) in [
        (Some("redis"), json!({"brekaer": null})),
        (None, json!({"nonsense": null})),
        (None, json!({"backends": {"other": null}})),
        (None, json!({"": {"": null}})),
    ] {
        let refusal = edit(backend, patch.clone()).changes(&config).unwrap_err();
        assert!(
            matches!(&refusal, Refusal::Invalid(why) if why.contains("is not a setting")),
            "{patch}: {refusal}"
        );
    }
    assert_eq!(edit(Some("redis"), json!({"breaker": null})).changes(&config), Ok(Vec::new()));
}

#[test]
fn the_file_of_changes_is_replaced_whole_and_what_is_no_such_file_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let found = |changes| Ok(file::Found { changes, odd: Vec::new() });
    assert_eq!(file::read(dir.path()), found(Vec::new()));
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_758_000_000_123);
    let kept = Change {
        persisted: true,
        replaced: Some(6.into()),
        at,
        until: Some(at + Duration::from_secs(60)),
        ..change(THRESHOLD, 7)
    };
    file::write(dir.path(), &[kept.clone(), change("health.interval", "9s")]).unwrap();
    assert_eq!(file::read(dir.path()), found(vec![kept.clone()]));
    // A crash before the new file took the place of the old one.
    std::fs::write(dir.path().join("settings.json.next"), "{\"version\"").unwrap();
    assert_eq!(file::read(dir.path()), found(vec![kept.clone()]));
    // One change that is none.
    let text = std::fs::read_to_string(dir.path().join(file::NAME)).unwrap();
    let more = text.replacen("\"changes\": [", "\"changes\": [7, {\"path\": \"a.b\"},", 1);
    std::fs::write(dir.path().join(file::NAME), more).unwrap();
    let read = file::read(dir.path()).unwrap();
    assert_eq!((read.changes, read.odd.len()), (vec![kept], 2));
    let [first, second] = read.odd.as_slice() else { panic!("there are two") };
    assert!(first.starts_with("change 1 in ") && second.starts_with("a.b in "), "{second}");
    for (text, part) in
        [("{", "is damaged"), ("{\"version\":2,\"changes\":[]}", "has the format 2")]
    {
        std::fs::write(dir.path().join(file::NAME), text).unwrap();
        let why = file::read(dir.path()).unwrap_err();
        assert!(why.contains(part) && why.contains("settings.json"), "{why}");
    }
    // It is not overwritten.
    file::write(dir.path(), &[]).unwrap();
    let names = std::fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().file_name());
    let aside: Vec<_> = names.filter(|it| it.to_string_lossy().contains(".damaged-")).collect();
    let [aside] = aside.as_slice() else { panic!("{aside:?}") };
    assert_eq!(
        std::fs::read_to_string(dir.path().join(aside)).unwrap(),
        "{\"version\":2,\"changes\":[]}"
    );
}
