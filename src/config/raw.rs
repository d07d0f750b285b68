//! The configuration as it is written, and all that is known of each setting: see [`super::setting`].
//!
//! The defaults are merged with what the sources say before this is read, so that a field without a value is one whose
//! value follows from others, or that may be without one. What no single value can be judged by is left to
//! [`super::Config::load`].

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    setting::{Size, Time, patch, reload, restart},
    words::{
        AUTHS, DEAD_LETTER_POLICIES, EFFECT_REPLY, MIN_ACKS, ON_UNKNOWN, PRIORITIES, SEVERITIES,
        UNAVAILABLE, WRITE_FALLBACKS,
    },
};

/// The whole file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawConfig {
    /// The folder of the queues, the caches and the history.
    #[schemars(extend("setting" = restart().rule(
        "$STATE_DIRECTORY, which systemd sets; else fusebox in $XDG_STATE_HOME or ~/.local/state"
    ).installed("/var/lib/fusebox")))]
    pub(crate) state_dir: Option<PathBuf>,
    /// The command socket.
    #[schemars(extend("setting" = restart().rule(
        "the socket that systemd hands over; else fusebox/fusebox.sock in $XDG_RUNTIME_DIR; else fusebox.sock in the \
         state directory"
    ).example("/run/fusebox/fusebox.sock")))]
    pub(crate) socket: Option<PathBuf>,
    /// The group whose members may make calls. Root and the daemon's own user always may.
    #[schemars(extend("setting" = restart().default("fusebox")))]
    pub(crate) client_group: String,
    /// The group whose members may use the routes below /admin as well.
    #[schemars(extend("setting" = restart().default("root")))]
    pub(crate) admin_group: String,
    pub(crate) http: RawHttp,
    pub(crate) calls: RawCalls,
    pub(crate) health: RawHealth,
    pub(crate) alerts: RawAlerts,
    pub(crate) chaos: RawChaos,
    pub(crate) tracing: RawTracing,
    pub(crate) doors: Option<Vec<RawDoor>>,
    pub(crate) backends: BTreeMap<String, RawBackend>,
}

/// Health, metrics, the status page and the API over TCP. Without `listen` there is only the Unix socket.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawHttp {
    /// The address to listen at. Beyond loopback TLS is required, or `plaintext`.
    #[schemars(extend("setting" = restart().example("127.0.0.1:9180")))]
    pub(crate) listen: Option<String>,
    /// A file with a token. Whoever sends it may do over TCP what an admin may.
    #[schemars(extend("setting" = reload().example("/etc/fusebox/token")))]
    pub(crate) token_file: Option<PathBuf>,
    /// Whether to listen beyond loopback without TLS, so that others may read the traffic. There are no admin
    /// routes there then.
    #[schemars(extend("setting" = reload().default(false)))]
    pub(crate) plaintext: bool,
    pub(crate) tls: RawHttpTls,
}

/// The server's side of TLS.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawHttpTls {
    /// The chain of certificates, in PEM, the server's own first. A reload reads it again.
    #[schemars(extend("setting" = reload().example("/etc/fusebox/http.crt")))]
    pub(crate) cert_file: Option<PathBuf>,
    /// The key of the first certificate, in PEM.
    #[schemars(extend("setting" = reload().example("/etc/fusebox/http.key")))]
    pub(crate) key_file: Option<PathBuf>,
}

/// What calls in flight may take.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawCalls {
    /// The memory for the bodies and replies of calls in flight. A body counts twice, as it came and as it is sent. No
    /// caller alone gets more than seven eighths of it.
    #[schemars(extend("setting" = reload().rule(
        "an eighth of the memory of the control group, else of the machine, from 16 MiB to 512 MiB"
    ).between("1MiB", "1TiB").example("256MiB")))]
    pub(crate) bytes: Option<Size>,
}

/// Faults on purpose (`fusebox chaos`).
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawChaos {
    /// Whether they may be set.
    #[schemars(extend("setting" = reload().rule("true over the admin socket, false over TCP").example(false)))]
    pub(crate) enabled: Option<bool>,
}

/// How backends are watched.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawHealth {
    /// The time between two pings of a backend that answers. One that does not is pinged again after a second.
    #[schemars(extend("setting" = patch().default("30s").between("100ms", "1day")))]
    pub(crate) interval: Time,
    /// How long a ping waits for its answer; no longer than the backend's `timeout`.
    #[schemars(extend("setting" = patch().default("1s").between("10ms", "60s")))]
    pub(crate) timeout: Time,
    /// Whether an open breaker tries again by itself. If not, it waits for `fusebox recover`.
    #[schemars(extend("setting" = patch().default(true)))]
    pub(crate) auto_recovery: bool,
}

/// A command that is run on an alert: mail or a message without a Prometheus.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawAlerts {
    /// The program, with its absolute path, and its arguments. No shell reads it, and nothing is run if it is empty.
    #[schemars(extend("setting" = reload().default(Vec::<String>::new())))]
    pub(crate) command: Vec<String>,
    /// It is not run for alerts that are less severe.
    #[schemars(extend("setting" = reload().default("warning").words(SEVERITIES)))]
    pub(crate) severity: String,
    /// How long a condition must hold before the command is run.
    #[schemars(extend("setting" = reload().rule("as long as the rules for Prometheus say").between("0s", "1day").example("30s")))]
    pub(crate) after: Option<Time>,
}

/// Traces. `OTEL_EXPORTER_OTLP_ENDPOINT` in the environment names the collector.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawTracing {
    /// The address of a Jaeger's pages: `fusebox explain` then shows a call's trace as a link to it.
    #[schemars(extend("setting" = reload().example("http://127.0.0.1:16686")))]
    pub(crate) jaeger_url: Option<String>,
    /// Whether calls that failed, were retried, queued or answered by a fallback are traced even if no sampler took
    /// them.
    #[schemars(extend("setting" = restart().default(true)))]
    pub(crate) keep_unsampled: bool,
}

/// A wire door, at which clients connect as they do to the backend itself. If the file has none, each backend of a kind
/// with a door on Unix sockets gets one beside the command socket, named as the backend: `redis.sock`. `doors = []`
/// leaves these out.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawDoor {
    /// The kind of the backend, if it is clearer with it.
    #[schemars(extend("setting" = restart().rule("the kind of the backend").example("redis")))]
    pub(crate) kind: Option<String>,
    /// The backend behind the door, by its name.
    #[schemars(extend("setting" = restart().rule("the backend that is named as the kind").example("redis")))]
    pub(crate) backend: Option<String>,
    /// The address: `unix:PATH`, `HOST:PORT`, or `fd:NAME` for a socket that systemd hands over under that name.
    #[schemars(extend("setting" = restart().example("127.0.0.1:6380")))]
    pub(crate) listen: Option<String>,
    /// How callers are known: by their process's user and groups, by a name and a secret, or not at all.
    #[schemars(extend("setting" = restart().rule("\"peer\" on a Unix socket, \"token\" on TCP").words(AUTHS)))]
    pub(crate) auth: Option<String>,
    /// The file of callers and their secrets, for `auth = "token"`.
    #[schemars(extend("setting" = restart().example("/etc/fusebox/callers.toml")))]
    pub(crate) callers_file: Option<PathBuf>,
    /// Whether it may listen beyond loopback, so that others may read the traffic.
    #[schemars(extend("setting" = restart().default(false)))]
    pub(crate) plaintext: bool,
    /// The most connections at once. One user of this host gets seven eighths of them at most.
    #[schemars(extend("setting" = restart().default(10_000).between(1, 1_000_000)))]
    pub(crate) connections: u32,
    /// The most bytes of requests that are held at once, of all connections.
    #[schemars(extend("setting" = restart().default("256MiB").between("1MiB", "1TiB")))]
    pub(crate) in_bytes: Size,
    /// The most bytes of replies that are held at once, of all connections.
    #[schemars(extend("setting" = restart().default("512MiB").between("1MiB", "1TiB")))]
    pub(crate) out_bytes: Size,
    /// The most bytes of replies that are held for one connection; at most `out_bytes`.
    #[schemars(extend("setting" = restart().rule("32MiB, and at most out_bytes").between("64KiB", "1TiB").example("32MiB")))]
    pub(crate) out_client: Option<Size>,
    /// The most connections to the backend that belong to one client each, at most `connections`.
    #[schemars(extend("setting" = restart().rule("as many as connections").between(0, 1_000_000).example(10_000)))]
    pub(crate) pinned: Option<u32>,
    /// How long a connection may be idle, at least a second; 0s is for ever.
    #[schemars(extend("setting" = restart().default("0s").between("0s", "365days")))]
    pub(crate) idle_timeout: Time,
    /// What the answer to a write must promise.
    #[schemars(extend("setting" = restart().default("applied-or-durable").words(MIN_ACKS)))]
    pub(crate) min_ack: String,
    /// How long a request may take.
    #[schemars(extend("setting" = restart().rule("the backend's timeout for each of its attempts").between("1ms", "1day").example("15s")))]
    pub(crate) deadline: Option<Time>,
    /// Which requests are shed first when the queue fills.
    #[schemars(extend("setting" = restart().default("normal").words(PRIORITIES)))]
    pub(crate) priority: String,
    /// The answer to a request that was not executed.
    #[schemars(extend("setting" = restart().default("LOADING").words(UNAVAILABLE)))]
    pub(crate) unavailable: String,
    /// The answer to a request that may have been executed.
    #[schemars(extend("setting" = restart().default("error").words(ON_UNKNOWN)))]
    pub(crate) on_unknown: String,
    /// Which replies are assumed of queued writes whose effect is known and whose reply is not.
    #[schemars(extend("setting" = restart().default("assume").words(EFFECT_REPLY)))]
    pub(crate) effect_reply: String,
    /// The projects that may be named by clients who call as the daemon, at doors to Firestore.
    #[schemars(extend("setting" = restart().rule("the backend's own project").example(vec!["my-project"])))]
    pub(crate) projects: Option<Vec<String>>,
}

/// A backend. `redis`, `clickhouse` and `firestore` are there without being named.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawBackend {
    /// What it is.
    #[schemars(extend("setting" = restart().rule("the name of the section")))]
    pub(crate) kind: Option<String>,
    /// Whether it is there.
    #[schemars(extend("setting" = restart().default(true)))]
    pub(crate) enabled: bool,
    /// The address of the service. It may contain a user and a password; the password is never printed.
    #[schemars(extend("setting" = reload().secret()))]
    pub(crate) url: String,
    /// The user to sign in as.
    #[schemars(extend("setting" = reload().example("fusebox")))]
    pub(crate) username: Option<String>,
    /// A file with the password on its first line. A credential of systemd, `NAME_password`, does the same.
    #[schemars(extend("setting" = reload().example("/etc/fusebox/password")))]
    pub(crate) password_file: Option<PathBuf>,
    /// Whether the host is in a critical state while this backend is down.
    #[schemars(extend("setting" = reload()))]
    pub(crate) critical: bool,
    /// The backends that it cannot do without, by name. While one of them is down, that one is shown as the cause of
    /// this one's outage.
    #[schemars(extend("setting" = reload().default(Vec::<String>::new())))]
    pub(crate) depends_on: Vec<String>,
    /// The backends that it uses and can do without, by name: reports of an outage name them, and nothing else
    /// follows from it.
    #[schemars(extend("setting" = reload().default(Vec::<String>::new())))]
    pub(crate) depends_on_optional: Vec<String>,
    /// The longest that one attempt on the wire may take.
    #[schemars(extend("setting" = reload().between("1ms", "1day")))]
    pub(crate) timeout: Time,
    pub(crate) tls: RawTls,
    pub(crate) breaker: RawBreaker,
    pub(crate) retry: RawRetry,
    pub(crate) bulkhead: RawBulkhead,
    pub(crate) cache: RawCache,
    pub(crate) queue: RawQueue,
}

/// TLS, if the url says so: `rediss://`, or `https://` for the others.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawTls {
    /// Authorities to trust in place of the system's, in PEM. Read again at every connect.
    #[schemars(extend("setting" = reload().example("/etc/fusebox/authority.pem")))]
    pub(crate) ca_file: Option<PathBuf>,
}

/// The circuit breaker.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawBreaker {
    /// The breaker opens at this many failures in the window, if they are also at least `failure_rate` of all calls.
    #[schemars(extend("setting" = patch().between(1, 1_000_000)))]
    pub(crate) failure_threshold: u32,
    /// The share of calls that must have failed, too. 0 turns this condition off.
    #[schemars(extend("setting" = patch().default(0.5).between(0.0, 1.0)))]
    pub(crate) failure_rate: f64,
    /// How far back the breaker looks.
    #[schemars(extend("setting" = patch().default("1m").between("60ms", "1day")))]
    pub(crate) window: Time,
    /// How long it stays open the first time. Each recovery that fails doubles it.
    #[schemars(extend("setting" = patch().between("1ms", "1day")))]
    pub(crate) recovery_timeout: Time,
    /// The longest that it stays open; at least `recovery_timeout`.
    #[schemars(extend("setting" = patch().rule("ten times recovery_timeout").between("1ms", "10days")))]
    pub(crate) recovery_timeout_max: Option<Time>,
    /// The share of that time which is random from the second time on.
    #[schemars(extend("setting" = patch().default(0.5).between(0.0, 1.0)))]
    pub(crate) jitter: f64,
    /// The successes in a row that close it again.
    #[schemars(extend("setting" = patch().between(1, 1_000)))]
    pub(crate) success_threshold: u32,
    /// A call that takes longer than this is slow.
    #[schemars(extend("setting" = patch().rule("half of timeout").between("1ms", "1day")))]
    pub(crate) slow_call_duration: Option<Time>,
    /// The breaker also opens once as many calls as `failure_threshold` were slow in the window, and they are at least
    /// this share of all calls. 0 turns that off.
    #[schemars(extend("setting" = patch().default(0.0).between(0.0, 1.0)))]
    pub(crate) slow_call_rate: f64,
}

/// How one call is tried again.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawRetry {
    /// The attempts of one call, the first included.
    #[schemars(extend("setting" = patch().default(3).between(1, 100)))]
    pub(crate) attempts: u32,
    /// The wait before a retry is random, up to this; twice as much each time.
    #[schemars(extend("setting" = patch().default("50ms").between("1ms", "1day")))]
    pub(crate) base: Time,
    /// The longest wait; at least `base`.
    #[schemars(extend("setting" = patch().rule("2s, and at least base").between("1ms", "1day")))]
    pub(crate) cap: Option<Time>,
}

/// How much goes on at once.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawBulkhead {
    /// Attempts on the wire at once; more are turned away.
    #[schemars(extend("setting" = patch().default(256).between(1, 65_536)))]
    pub(crate) in_flight_max: u32,
}

/// What answers reads while the backend does not: as `cache` up to `ttl`, as `stale` up to `max_stale`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawCache {
    /// The most values.
    #[schemars(extend("setting" = patch().default(1_000).between(1, 10_000_000)))]
    pub(crate) items: u32,
    /// The most memory.
    #[schemars(extend("setting" = patch().default("64MiB").between("64KiB", "1TiB")))]
    pub(crate) bytes: Size,
    /// The largest value. What is larger than 1 MiB is kept in files.
    #[schemars(extend("setting" = patch().default("16MiB").between("1MiB", "1GiB")))]
    pub(crate) entry_max: Size,
    /// The most bytes of all files.
    #[schemars(extend("setting" = restart().default("256MiB").between("0B", "1TiB")))]
    pub(crate) disk_bytes: Size,
    /// How long a value answers as `cache`.
    #[schemars(extend("setting" = patch().between("0s", "1year")))]
    pub(crate) ttl: Time,
    /// How long it answers at all, then as `stale`; at least `ttl`.
    #[schemars(extend("setting" = patch().rule("the kind's usual time, and at least ttl").between("0s", "10years")))]
    pub(crate) max_stale: Option<Time>,
    /// After how long it answers a read by key while the backend is suspect: an attempt is overdue and a ping is
    /// unanswered. At most `timeout`.
    #[schemars(extend("setting" = patch().rule("a fifth of timeout, and at most 1s").between("0s", "1day")))]
    pub(crate) answer_after: Option<Time>,
    /// A folder that keeps the cache over restarts.
    #[schemars(extend("setting" = restart().example("/var/cache/fusebox")))]
    pub(crate) dir: Option<PathBuf>,
}

/// The durable queue, which refuses writes beyond any of its limits.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawQueue {
    /// The most calls that wait.
    #[schemars(extend("setting" = patch().default(50_000).between(1, 10_000_000)))]
    pub(crate) items: u32,
    /// The most bytes of calls that wait.
    #[schemars(extend("setting" = patch().default("1GiB").between("1MiB", "1TiB")))]
    pub(crate) bytes: Size,
    /// The most dead letters. When they are as many, their lanes block.
    #[schemars(extend("setting" = patch().default(5_000).between(1, 1_000_000)))]
    pub(crate) dead_items: u32,
    /// The most bytes of dead letters.
    #[schemars(extend("setting" = patch().default("256MiB").between("1MiB", "1TiB")))]
    pub(crate) dead_bytes: Size,
    /// The folder of the store.
    #[schemars(extend("setting" = restart().rule("backends/NAME in the state directory")))]
    pub(crate) dir: Option<PathBuf>,
    /// The space that is left free on the disk of the state directory.
    #[schemars(extend("setting" = restart().default("64MiB").between("0B", "1EiB")))]
    pub(crate) disk_floor: Size,
    /// How calls are stored. 1: each has a value of its own. 2: small calls that are stored together share one, which
    /// writes less and removes faster, and which earlier releases cannot read. Either reads what the other wrote.
    #[schemars(extend("setting" = restart().default(1).between(1, 2)))]
    pub(crate) format: u32,
    /// What a write does while the backend is down. With `refuse` only calls with `min_ack = durable` are queued.
    #[schemars(extend("setting" = patch().words(WRITE_FALLBACKS)))]
    pub(crate) write_fallback: String,
    /// Whether a call that replay gave up on lets later ones of its key pass, or holds them until an operator has
    /// decided.
    #[schemars(extend("setting" = patch().default("continue").words(DEAD_LETTER_POLICIES)))]
    pub(crate) dead_letter_policy: String,
}
