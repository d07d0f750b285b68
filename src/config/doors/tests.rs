//! Doors from the file to the message.

use schemars::Schema;
use toml::Table;

use super::*;
use crate::config::{
    Complaint, Config, ConfigErrors, Defaults, Endpoint, Environment, Flags, Variable,
};

/// A kind of this release; Redis has a door, the others have none.
struct WithDoor(&'static dyn Section);

impl Section for WithDoor {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn defaults(&self) -> &Defaults {
        self.0.defaults()
    }

    fn schema(&self) -> Schema {
        self.0.schema()
    }

    fn variables(&self) -> &'static [Variable] {
        self.0.variables()
    }

    fn has_door(&self) -> bool {
        ["redis", "firestore"].contains(&self.name())
    }

    fn has_door_by_default(&self) -> bool {
        self.name() == "redis"
    }

    fn check(&self, endpoint: &Endpoint, own: &Table) -> Result<(), Vec<Complaint>> {
        self.0.check(endpoint, own)
    }
}

fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let sections: Vec<WithDoor> = crate::kinds::sections().into_iter().map(WithDoor).collect();
    let sections: Vec<&dyn Section> = sections.iter().map(|it| it as &dyn Section).collect();
    load_with(text, env, &sections)
}

fn load_with(
    text: &str,
    env: &[(&str, &str)],
    sections: &[&dyn Section],
) -> Result<Config, ConfigErrors> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fusebox.toml");
    std::fs::write(&path, text).unwrap();
    let mut all = vec![("HOME", "/home/ada"), ("FUSEBOX_SOCKET", "/run/user/1/fusebox.sock")];
    all.extend_from_slice(env);
    let flags = Flags { config: Some(path), ..Flags::default() };
    Config::load(&flags, &Environment::of(&all), sections)
}

/// The doors of a file with these lines in its first `[[doors]]`.
#[track_caller]
fn door(lines: &str) -> (DoorSettings, Vec<String>) {
    let config = load(&format!("[[doors]]\n{lines}"), &[]);
    let config = config.unwrap_or_else(|errors| panic!("{errors}"));
    let [door] = config.doors.as_slice() else { panic!("{:?}", config.doors) };
    (DoorSettings::clone(door), config.warnings)
}

#[track_caller]
fn problems(text: &str, expected: &[&str]) {
    match load(text, &[]) {
        Ok(_) => panic!("no problem in {text:?}"),
        Err(errors) => assert_eq!(errors.problems, expected, "{text}"),
    }
}

#[test]
fn each_backend_whose_kind_has_a_door_gets_one_beside_the_command_socket() {
    let listens = |text: &str| -> Vec<String> {
        let config = load(text, &[]).unwrap();
        config.doors.iter().map(|door| door.listen.to_string()).collect()
    };
    assert_eq!(listens(""), ["unix:/run/user/1/redis.sock"]);
    assert_eq!(
        listens("[backends.sessions]\nkind = 'redis'"),
        ["unix:/run/user/1/redis.sock", "unix:/run/user/1/sessions.sock"]
    );
    assert_eq!(listens("[backends.redis]\nenabled = false"), [""; 0]);
    assert_eq!(listens("doors = []"), [""; 0]);
    assert_eq!(
        listens("[[doors]]\nbackend = 'redis'\nlisten = '127.0.0.1:6380'"),
        ["127.0.0.1:6380"]
    );
    let door = load("", &[]).unwrap().doors.remove(0);
    assert_eq!((door.key.as_deref(), door.auth, door.connections), (None, Auth::Peer, 10_000));
    let moved = door.beside(Path::new("/run/fusebox/fusebox.sock"));
    assert_eq!(moved.listen.to_string(), "unix:/run/fusebox/redis.sock");
}

#[test]
fn a_door_that_is_not_there_by_default_is_there_if_the_file_names_it_and_its_projects() {
    assert!(load("", &[]).unwrap().doors.iter().all(|door| door.kind != "firestore"));
    let file = "[[doors]]\nkind = 'firestore'\nlisten = '127.0.0.1:1'\nprojects = ['a', 'b']";
    let config = load(file, &[]).unwrap();
    assert_eq!(config.doors[0].projects, ["a", "b"]);
    assert_eq!(config.show()["doors"][0]["projects"], serde_json::json!(["a", "b"]));
    problems(
        "[[doors]]\nkind = 'redis'\nlisten = '127.0.0.1:1'\nprojects = ['a']",
        &["doors[0].projects is only for doors of the kind firestore, and this door's is redis"],
    );
}

#[test]
fn a_setting_of_another_kinds_doors_is_an_error_and_is_not_shown() {
    let firestore = "[[doors]]\nkind = 'firestore'\nlisten = '127.0.0.1:1'\nout_bytes = '2MiB'\n";
    for line in [
        "out_client = '1MiB'",
        "pinned = 1",
        "unavailable = 'LOADING'",
        "on_unknown = 'close'",
        "on_miss = 'nil'",
        "effect_reply = 'all'",
    ] {
        let key = line.split(' ').next().unwrap();
        let told = "is only for doors of the kind redis, and this door's is firestore";
        problems(&format!("{firestore}{line}"), &[&format!("doors[0].{key} {told}")]);
    }
    let sections = crate::kinds::sections();
    let clickhouse = "[[doors]]\nkind = 'clickhouse'\nlisten = 'unix:/c'\n";
    let errors = load_with(&format!("{clickhouse}out_bytes = '2MiB'"), &[], &sections);
    assert_eq!(
        errors.map(|_| ()).unwrap_err().problems,
        [
            "doors[0].out_bytes is only for doors of the kind redis or firestore, and this door's is clickhouse"
        ]
    );
    // What is shown can be set, whether the file names the doors or not.
    for text in ["", clickhouse] {
        let config = load_with(text, &[], &sections).unwrap_or_else(|errors| panic!("{errors}"));
        let shown = config.show();
        let doors = shown["doors"].as_array().unwrap();
        let door = doors.iter().find(|door| door["kind"] == "clickhouse").unwrap();
        for (key, of_kinds) in OF_KINDS {
            assert!(door.get(*key).is_none(), "{key} is only for {of_kinds:?}: {door}");
        }
        let again = load_with(&config.show_toml(), &[], &sections);
        let again = again.unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(again.show()["doors"], shown["doors"]);
    }
}

#[test]
fn a_command_socket_without_a_folder_has_doors_beside_it() {
    let config = load("", &[("FUSEBOX_SOCKET", "fusebox.sock")]).unwrap();
    let here = std::env::current_dir().unwrap().join("redis.sock");
    assert!(config.doors.iter().any(|door| door.listen == DoorAddress::Unix(here.clone())));
    assert_eq!(config.warnings, [""; 0]);
}

#[test]
fn a_default_door_that_cannot_be_is_a_warning() {
    let config = load("[backends.fusebox]\nkind = 'redis'", &[]).unwrap();
    assert_eq!(config.doors.len(), 1);
    assert_eq!(
        config.warnings,
        ["fusebox has no door by default: the command socket has this path"]
    );
    let socket = format!("/{}/s.sock", "x".repeat(96));
    let config = load("", &[("FUSEBOX_SOCKET", &socket)]).unwrap();
    assert_eq!(config.doors, []);
    let told = "redis has no door by default: the path must be shorter than 108 bytes, got 108";
    assert!(config.warnings[0].starts_with(told), "{:?}", config.warnings);
}

#[test]
fn who_may_call_follows_the_address() {
    for (lines, auth, warns) in [
        ("listen = 'unix:/r'", Auth::Peer, false),
        ("listen = 'unix:///r'\nauth = 'token'", Auth::Token, false),
        ("listen = '127.0.0.1:1'", Auth::Token, false),
        ("listen = '[::1]:1'\nauth = 'open'", Auth::Open, true),
        ("listen = '[::ffff:127.0.0.1]:1'\nauth = 'open'", Auth::Open, true),
        ("listen = '10.0.0.1:1'\nplaintext = true", Auth::Token, false),
    ] {
        let (door, warnings) = door(&format!("kind = 'redis'\n{lines}"));
        assert_eq!((door.auth, !warnings.is_empty()), (auth, warns), "{lines} {warnings:?}");
    }
    let at = |lines: &str, what: &str| {
        problems(&format!("[[doors]]\nkind = 'redis'\n{lines}"), &[&format!("doors[0].{what}")]);
    };
    for listen in ["10.0.0.1:1", "0.0.0.0:1", "[::]:1"] {
        at(
            &format!("listen = '{listen}'"),
            &format!(
                "listen must be a loopback address, got {listen}: on any other address, others can read the traffic; \
                 plaintext = true accepts that"
            ),
        );
    }
    at(
        "listen = '0.0.0.0:1'\nplaintext = true\nauth = 'open'",
        "auth \"open\" is only for loopback: on any other address, callers must send a secret",
    );
    at(
        "listen = '127.0.0.1:1'\nauth = 'peer'",
        "auth \"peer\" is only for Unix sockets: over TCP, the caller's user is not known",
    );
    at(
        "listen = 'unix:/r'\nauth = 'open'",
        "auth \"open\" is only for TCP: on a Unix socket, callers are identified by their user",
    );
    at(
        "listen = '127.0.0.1:1'\nauth = 'forward'",
        "auth must be \"peer\" or \"token\" or \"open\", got \"forward\"",
    );
    at(
        "listen = '127.0.0.1:1'\nauth = 'none'",
        "auth must be \"peer\" or \"token\" or \"open\", got \"none\"",
    );
}

#[test]
fn a_socket_that_is_handed_over_is_judged_when_its_family_is_known() {
    let tcp = |address: &str| Family::Tcp(address.parse().unwrap());
    let auth = |lines: &str, family| {
        let (door, _) = door(&format!("kind = 'redis'\nlisten = 'fd:redis'\n{lines}"));
        assert_eq!(door.listen, DoorAddress::Handed("redis".into()));
        door.handed(family).map(|(door, warning)| (door.auth, warning.is_some()))
    };
    assert_eq!(auth("", Family::Unix), Ok((Auth::Peer, false)));
    assert_eq!(auth("", tcp("127.0.0.1:1")), Ok((Auth::Token, false)));
    assert_eq!(auth("auth = 'token'", Family::Unix), Ok((Auth::Token, false)));
    assert_eq!(auth("auth = 'open'", tcp("[::1]:1")), Ok((Auth::Open, true)));
    let by_default = load("", &[]).unwrap().doors.remove(0);
    assert!(by_default.takes("redis") && !by_default.takes("fusebox"));
    let auth_of = |family| by_default.handed(family).map(|(door, _)| door.auth);
    assert_eq!(auth_of(Family::Unix), Ok(Auth::Peer));
    assert_eq!(auth_of(tcp("127.0.0.1:1")), Ok(Auth::Token));
    assert!(auth_of(tcp("10.0.0.1:1")).unwrap_err().starts_with("listen must be"));
    assert!(auth("", tcp("10.0.0.1:1")).unwrap_err().starts_with("doors[0].listen must be"));
    assert!(auth("auth = 'open'", Family::Unix).unwrap_err().starts_with("doors[0].auth \"open\""));
    assert!(
        auth("auth = 'peer'", tcp("[::1]:1")).unwrap_err().starts_with("doors[0].auth \"peer\"")
    );
}

#[test]
fn every_setting_is_read_and_shown_as_it_was_written() {
    let lines = "kind = 'redis'\nlisten = '127.0.0.1:6380'\nauth = 'open'\nplaintext = true\nconnections = 20\n\
                 in_bytes = '2 MiB'\nout_bytes = '3 MiB'\nout_client = '64 KiB'\npinned = 10\n\
                 idle_timeout = '1m'\nmin_ack = 'durable'\ndeadline = '2s'\npriority = 'low'\n\
                 unavailable = 'FUSEBOX'\non_unknown = 'close'\neffect_reply = 'all'";
    let (all, _) = door(lines);
    assert_eq!((all.connections, all.pinned, all.in_bytes), (20, 10, 2 << 20));
    assert_eq!((all.out_bytes, all.out_client), (3 << 20, 64 << 10));
    assert_eq!(all.idle_timeout, Some(Duration::from_secs(60)));
    assert_eq!(all.deadline, Some(Duration::from_secs(2)));
    assert_eq!((all.min_ack, all.priority), (Some(AckLevel::Durable), Priority::Low));
    assert_eq!((all.unavailable, all.on_unknown), (Unavailable::Fusebox, OnUnknown::Close));
    assert_eq!(all.effect_reply, EffectReply::All);
    for (lines, doors) in [
        (lines, 1),
        ("kind = 'redis'\nlisten = 'unix:/r'", 1),
        ("backend = 'redis'\nlisten = 'fd:x'", 1),
    ] {
        let config = load(&format!("[[doors]]\n{lines}"), &[]).unwrap();
        let again = load(&config.show_toml(), &[]).unwrap();
        assert_eq!((config.doors.len(), &config.doors), (doors, &again.doors));
    }
    let none = load("doors = []", &[]).unwrap();
    assert_eq!(load(&none.show_toml(), &[]).unwrap().doors, []);
    let (usual, _) =
        door("kind = 'redis'\nlisten = 'unix:/r'\nconnections = 30\nidle_timeout = '0s'");
    assert_eq!((usual.pinned, usual.idle_timeout, usual.deadline), (30, None, None));
    assert_eq!((usual.min_ack, usual.unavailable), (None, Unavailable::Loading));
}

#[test]
fn every_mistake_is_told_by_its_key() {
    let redis = "[[doors]]\nkind = 'redis'\nlisten = 'unix:/r'\n";
    for (text, message) in [
        ("[[doors]]\nlisten = 'unix:/r'", "doors[0] must name its backend: doors[0].backend"),
        (
            "[[doors]]\nkind = 'redis'",
            "doors[0].listen must be set to an address, such as unix:/run/fusebox/redis.sock, 127.0.0.1:6380 or fd:redis",
        ),
        (
            "[[doors]]\nkind = 'redis'\nlisten = 'redis.sock'",
            "doors[0].listen must be an address, such as unix:/run/fusebox/redis.sock, 127.0.0.1:6380 or fd:redis, got \"redis.sock\"",
        ),
        (
            "[[doors]]\nkind = 'redis'\nlisten = 'unix:r'",
            "doors[0].listen must be an absolute path after unix:, got \"unix:r\"",
        ),
        (
            "[[doors]]\nkind = 'mysql'\nlisten = 'unix:/r'",
            "doors[0].kind \"mysql\" has no door in this release, which has doors of: firestore, redis",
        ),
        (
            "[[doors]]\nkind = 'clickhouse'\nlisten = 'unix:/r'",
            "doors[0].kind \"clickhouse\" has no door in this release: its calls go over the command socket",
        ),
        (
            "[[doors]]\nkind = 'redis'\nbackend = 'clickhouse'\nlisten = 'unix:/r'",
            "doors[0].kind is \"redis\", but the kind of the backend clickhouse is \"clickhouse\"",
        ),
        (
            "[[doors]]\nkind = 'redis'\nbackend = 'db'\nlisten = 'unix:/r'",
            "doors[0].backend names \"db\", which is not an enabled backend; there are: clickhouse, firestore, redis",
        ),
        (
            "[[doors]]\nkind = 'redis'\nlisten = 'unix:/r'\n[backends.redis]\nenabled = false",
            "doors[0].backend names \"redis\", which is not an enabled backend; there are: clickhouse, firestore",
        ),
        (&format!("{redis}{redis}"), "doors[1].listen is also that of doors[0]: unix:/r"),
        (
            "[[doors]]\nkind = 'redis'\nlisten = 'unix:/run/user/1/fusebox.sock'",
            "doors[0].listen is also that of the command socket: name another one",
        ),
        (
            "[[doors]]\nkind = 'redis'\nlisten = '127.0.0.1:1'\n[http]\nlisten = '127.0.0.1:1'",
            "doors[0].listen is also that of http.listen: name another one",
        ),
        (&format!("{redis}connections = 0"), "doors[0].connections must be at least 1, got 0"),
        (
            &format!("{redis}connections = 5\npinned = 6"),
            "doors[0].pinned must be at most connections (5), got 6",
        ),
        (
            &format!("{redis}in_bytes = '1kB'"),
            "doors[0].in_bytes must be at least 1 MiB, got 1000 B",
        ),
        (
            &format!("{redis}out_bytes = '1MiB'\nout_client = '2MiB'"),
            "doors[0].out_client must be at most 1 MiB, got 2 MiB",
        ),
        (
            &format!("{redis}idle_timeout = '1ms'"),
            "doors[0].idle_timeout must be at least 1s, got 1ms",
        ),
        (&format!("{redis}deadline = '0s'"), "doors[0].deadline must be at least 1ms, got 0s"),
        (
            &format!("{redis}min_ack = 'queued'"),
            "doors[0].min_ack must be \"applied\" or \"applied-or-durable\" or \"durable\", got \"queued\"",
        ),
        (
            &format!("{redis}unavailable = 'loading'"),
            "doors[0].unavailable must be \"LOADING\" or \"FUSEBOX\" or \"close\", got \"loading\"",
        ),
        (
            &format!("{redis}effect_reply = 'yes'"),
            "doors[0].effect_reply must be \"assume\" or \"all\" or \"error\", got \"yes\"",
        ),
        (
            &format!("{redis}[[doors]]\nkind = 'redis'\nlisten = 'unix:/s'\nlistn = 'x'"),
            "doors[1].listn is not a setting; the nearest is doors[1].listen",
        ),
        (
            &format!("{redis}callers_file = '/nowhere'\nauth = 'token'"),
            "doors[0].callers_file is not usable: /nowhere cannot be read: No such file or directory (os error 2)",
        ),
        ("doors = 'redis'", "doors must be a list of sections, [[doors]], got string"),
        ("[[door]]\nkind = 'redis'", "door is not a setting; the nearest is doors"),
    ] {
        problems(text, &[message]);
    }
    let typed = format!(
        "{redis}connections = 'many'\ndeadline = 3\n[[doors]]\nkind = 4\nlisten = 'unix:/s'"
    );
    problems(
        &typed,
        &[
            "doors[0].connections must be a whole number between 1 and 1000000, got \"many\"",
            "doors[0].deadline must be a duration such as \"30s\" between 1ms and 1day, got 3",
            "doors[1].kind must be a text, got 4",
            "doors[1] must name its backend: doors[1].backend",
        ],
    );
}

#[test]
fn doors_are_not_set_by_variables() {
    let errors = load("", &[("FUSEBOX_DOORS__0__LISTEN", "x")]).map(|_| ()).unwrap_err();
    assert_eq!(
        errors.problems,
        ["FUSEBOX_DOORS__0__LISTEN: doors can be set only in the file, not by variables"]
    );
}

#[test]
fn callers_of_a_file_are_known_at_their_door() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("callers.toml");
    let hex = "1ec1c26b50d5d3c58d9583181af8076655fe00756bf7285940ba3670f99fcba0";
    std::fs::write(&path, format!("[[callers]]\nname = 'web'\nsha256 = '{hex}'")).unwrap();
    let lines =
        format!("kind = 'redis'\nlisten = '127.0.0.1:1'\ncallers_file = '{}'", path.display());
    let (known, warnings) = door(&lines);
    assert_eq!(known.callers.find(Some(b"web"), b"s3cret").map(|it| it.name.as_str()), Some("web"));
    assert_eq!(warnings, [""; 0]);
    let (_, warnings) = door(&format!("{lines}\nauth = 'open'"));
    assert!(warnings.contains(&"doors[0].callers_file has no effect: auth is \"open\"".to_owned()));
}
