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
        AUTHS, DEAD_LETTER_POLICIES, EFFECT_REPLY, MIN_ACKS, ON_MISS, ON_UNKNOWN, PRIORITIES,
        SEVERITIES, UNAVAILABLE, WRITE_FALLBACKS,
    },
};

/// The whole file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawConfig {
    /// The state directory: the folder of the queues, the caches and the history.
    #[schemars(extend("setting" = restart().rule(
        "$STATE_DIRECTORY, which systemd sets; otherwise the folder fusebox in $XDG_STATE_HOME or ~/.local/state"
    ).installed("/var/lib/fusebox")))]
    pub(crate) state_dir: Option<PathBuf>,
    /// The path of the command socket.
    #[schemars(extend("setting" = restart().rule(
        "the socket that systemd passes to the daemon; otherwise fusebox/fusebox.sock in $XDG_RUNTIME_DIR; otherwise \
         fusebox.sock in the state directory"
    ).example("/run/fusebox/fusebox.sock")))]
    pub(crate) socket: Option<PathBuf>,
    /// The group whose members may make calls. Root and the daemon's own user may always make calls.
    #[schemars(extend("setting" = restart().default("fusebox")))]
    pub(crate) client_group: String,
    /// The group whose members may also use the routes below `/admin`.
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

/// The HTTP API, health, metrics and the status page over TCP. Without `listen`, they can be reached only over the
/// command socket, which is a Unix socket.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawHttp {
    /// The address and the port at which the daemon listens. An address other than loopback requires `[http.tls]` or
    /// `plaintext = true`.
    #[schemars(extend("setting" = restart().example("127.0.0.1:9180")))]
    pub(crate) listen: Option<String>,
    /// A file with a token. Over TCP, every request must have this token, apart from requests for health, metrics and
    /// the status page. A caller that sends the token has the rights of an admin.
    #[schemars(extend("setting" = reload().example("/etc/fusebox/token")))]
    pub(crate) token_file: Option<PathBuf>,
    /// Whether `listen` may be an address other than loopback without TLS. Others can then read the traffic, so the
    /// daemon refuses requests to the admin routes at this address.
    #[schemars(extend("setting" = reload().default(false)))]
    pub(crate) plaintext: bool,
    pub(crate) tls: RawHttpTls,
}

/// TLS for `http.listen`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawHttpTls {
    /// The certificates in PEM: first the server's own, then the rest of its chain. A reload reads the file again.
    #[schemars(extend("setting" = reload().example("/etc/fusebox/http.crt")))]
    pub(crate) cert_file: Option<PathBuf>,
    /// The private key of the server's own certificate, in PEM. A reload reads the file again.
    #[schemars(extend("setting" = reload().example("/etc/fusebox/http.key")))]
    pub(crate) key_file: Option<PathBuf>,
}

/// Limits for all calls in flight together.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawCalls {
    /// The memory for the bodies and replies of calls in flight. A body counts twice: in the form in which it arrived,
    /// and in the form in which it is sent. One caller gets at most seven eighths of this memory.
    #[schemars(extend("setting" = reload().rule(
        "an eighth of the memory of the machine, or of the control group if its limit is lower; at least 16 MiB and at \
         most 512 MiB"
    ).between("1MiB", "1TiB").example("256MiB")))]
    pub(crate) bytes: Option<Size>,
}

/// Faults on purpose (`fusebox chaos`).
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawChaos {
    /// Whether faults on purpose may be set.
    #[schemars(extend("setting" = reload().rule("true at the command socket, false over TCP").example(false)))]
    pub(crate) enabled: Option<bool>,
}

/// How the daemon watches backends.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawHealth {
    /// The time between two pings of a backend that answers. If a ping fails, the next one is sent a second later.
    #[schemars(extend("setting" = patch().default("30s").between("100ms", "1day")))]
    pub(crate) interval: Time,
    /// How long a ping waits for its answer. If the backend's `timeout` is shorter, the ping waits only for that time.
    #[schemars(extend("setting" = patch().default("1s").between("10ms", "60s")))]
    pub(crate) timeout: Time,
    /// Whether an open breaker tries the backend again by itself. If not, it stays open until `fusebox recover` is run.
    #[schemars(extend("setting" = patch().default(true)))]
    pub(crate) auto_recovery: bool,
}

/// A command that the daemon runs on an alert, for example to send a mail. It is for hosts that have no Prometheus.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawAlerts {
    /// The absolute path of the program, followed by its arguments. The daemon starts the program itself, without a
    /// shell. If the list is empty, nothing is run.
    #[schemars(extend("setting" = reload().default(Vec::<String>::new())))]
    pub(crate) command: Vec<String>,
    /// The command is run for alerts of this severity, and for alerts of a higher severity.
    #[schemars(extend("setting" = reload().default("warning").words(SEVERITIES)))]
    pub(crate) severity: String,
    /// How long the condition of an alert must hold before the command is run.
    #[schemars(extend("setting" = reload().rule(
        "the time in the Prometheus rule of the alert"
    ).between("0s", "1day").example("30s")))]
    pub(crate) after: Option<Time>,
}

/// Traces of calls. The environment variable `OTEL_EXPORTER_OTLP_ENDPOINT` names the collector.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawTracing {
    /// The address of Jaeger's web pages. If it is set, `fusebox explain` shows traces as links to these pages.
    #[schemars(extend("setting" = reload().example("http://127.0.0.1:16686")))]
    pub(crate) jaeger_url: Option<String>,
    /// Whether fusebox also traces some calls that the sampler does not select: calls that failed or were refused,
    /// calls that fusebox retried or queued, and calls that a fallback answered.
    #[schemars(extend("setting" = restart().default(true)))]
    pub(crate) keep_unsampled: bool,
}

/// A door: a socket that speaks the protocol of a backend. Clients connect to the door instead of the backend. If the
/// file has no `[[doors]]`, each enabled Redis or ClickHouse backend gets a door. This door is a Unix socket beside the
/// command socket, and has the name of the backend, such as `redis.sock`. With `doors = []`, there are no doors.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawDoor {
    /// The kind of the backend. It may be left out if `backend` is set.
    #[schemars(extend("setting" = restart().rule("the kind of the backend that `backend` names").example("redis")))]
    pub(crate) kind: Option<String>,
    /// The name of the backend behind the door.
    #[schemars(extend("setting" = restart().rule("the backend that has the same name as `kind`").example("redis")))]
    pub(crate) backend: Option<String>,
    /// The address of the door (required): `unix:PATH`, `IP:PORT` or `fd:NAME`. `fd:NAME` is a socket that systemd
    /// passes to the daemon under this name.
    #[schemars(extend("setting" = restart().example("127.0.0.1:6380")))]
    pub(crate) listen: Option<String>,
    /// How the door identifies callers. `peer` (only on Unix sockets): by the user and the groups of the caller's
    /// process. `token`: by a name and a secret. `open` (only on TCP at loopback): not at all.
    #[schemars(extend("setting" = restart().rule("\"peer\" on a Unix socket, \"token\" on TCP").words(AUTHS)))]
    pub(crate) auth: Option<String>,
    /// The file that lists callers and their secrets, for `auth = "token"`.
    #[schemars(extend("setting" = restart().example("/etc/fusebox/callers.toml")))]
    pub(crate) callers_file: Option<PathBuf>,
    /// Whether the door may listen at an address other than loopback. Others can then read the traffic.
    #[schemars(extend("setting" = restart().default(false)))]
    pub(crate) plaintext: bool,
    /// The most clients that may be connected at once. On a Unix socket, one user gets at most seven eighths of these
    /// connections.
    #[schemars(extend("setting" = restart().default(10_000).between(1, 1_000_000)))]
    pub(crate) connections: u32,
    /// The most bytes of requests that the door holds at once, over all connections.
    #[schemars(extend("setting" = restart().default("256MiB").between("1MiB", "1TiB")))]
    pub(crate) in_bytes: Size,
    /// Doors to Redis and Firestore: the most bytes of replies that the door holds at once, over all connections.
    #[schemars(extend("setting" = restart().default("512MiB").between("1MiB", "1TiB")))]
    pub(crate) out_bytes: Size,
    /// Doors to Redis: the most bytes of replies that the door holds for one connection. At most `out_bytes`.
    #[schemars(extend("setting" = restart().rule(
        "32MiB, or `out_bytes` if that is less"
    ).between("64KiB", "1TiB").example("32MiB")))]
    pub(crate) out_client: Option<Size>,
    /// Doors to Redis: the most connections to the backend that are each reserved for one client. The limit applies to
    /// all clients of the door together. At most `connections`.
    #[schemars(extend("setting" = restart().rule("the value of `connections`").between(0, 1_000_000).example(10_000)))]
    pub(crate) pinned: Option<u32>,
    /// The door closes a connection that is idle for this long. 0s means never; any other value must be at least 1s.
    #[schemars(extend("setting" = restart().default("0s").between("0s", "365days")))]
    pub(crate) idle_timeout: Time,
    /// What a successful answer to a write promises. `applied`: the backend has applied the write; no write is queued.
    /// `applied-or-durable`: the write was applied, or it was queued as `queue.write_fallback` allows. `durable`: as
    /// `applied-or-durable`, but in an outage, each write that can be queued is queued, even if `queue.write_fallback`
    /// is `refuse`.
    #[schemars(extend("setting" = restart().default("applied-or-durable").words(MIN_ACKS)))]
    pub(crate) min_ack: String,
    /// How long a request may take.
    #[schemars(extend("setting" = restart().rule(
        "the backend's `timeout` times its `retry.attempts`"
    ).between("1ms", "1day").example("15s")))]
    pub(crate) deadline: Option<Time>,
    /// The priority of the requests. If the system is CRITICAL or EMERGENCY, fusebox does not send requests of priority
    /// `low` to the backend.
    #[schemars(extend("setting" = restart().default("normal").words(PRIORITIES)))]
    pub(crate) priority: String,
    /// Doors to Redis: the answer to a request that was not executed. `LOADING`: an error after which clients try
    /// again. `FUSEBOX`: an error after which no client tries again. `close`: the connection is closed.
    #[schemars(extend("setting" = restart().default("LOADING").words(UNAVAILABLE)))]
    pub(crate) unavailable: String,
    /// Doors to Redis: the answer to a request that may have been executed. `error`: an error. `close`: the connection
    /// is closed.
    #[schemars(extend("setting" = restart().default("error").words(ON_UNKNOWN)))]
    pub(crate) on_unknown: String,
    /// Doors to Redis: the reads that get nil in an outage, if neither the queue nor the cache has the value. `get`:
    /// `GET` and `MGET`. `nil`: also `HGET`, `HMGET` and `HGETALL`. `error`: none. If `on_miss` of the backend is
    /// `error`, no read gets nil.
    #[schemars(extend("setting" = restart().default("get").words(ON_MISS)))]
    pub(crate) on_miss: String,
    /// Doors to Redis: the reply to some writes is a count that only the server knows, such as the number of keys that
    /// `DEL` removes. To queue such a write, the door must assume the count. `assume`: the door queues the writes whose
    /// count programs seldom use. `all`: it queues all of these writes. `error`: it queues none of them.
    #[schemars(extend("setting" = restart().default("assume").words(EFFECT_REPLY)))]
    pub(crate) effect_reply: String,
    /// Doors to Firestore: the projects that a call may name if it uses the backend's own credentials. `["*"]` allows
    /// every project.
    #[schemars(extend("setting" = restart().rule(
        "every project if the backend is an emulator; otherwise only the backend's own project and database"
    ).example(vec!["my-project"])))]
    pub(crate) projects: Option<Vec<String>>,
}

/// A backend. The backends `redis`, `clickhouse` and `firestore` exist even if the file does not name them.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawBackend {
    /// The kind of the backend, such as `redis`.
    #[schemars(extend("setting" = restart().rule("the name of the section")))]
    pub(crate) kind: Option<String>,
    /// Whether fusebox uses the backend. If not, fusebox behaves as if the backend did not exist.
    #[schemars(extend("setting" = restart().default(true)))]
    pub(crate) enabled: bool,
    /// The address of the service. It may contain a user and a password; the password is never printed.
    #[schemars(extend("setting" = reload().secret()))]
    pub(crate) url: String,
    /// The name of the user that fusebox signs in as.
    #[schemars(extend("setting" = reload().example("fusebox")))]
    pub(crate) username: Option<String>,
    /// A file with the password on its first line. If this is not set, fusebox reads the systemd credential
    /// `NAME_password`, if it exists. NAME is the name of the backend.
    #[schemars(extend("setting" = reload().example("/etc/fusebox/password")))]
    pub(crate) password_file: Option<PathBuf>,
    /// Whether the system is at least CRITICAL while this backend is down.
    #[schemars(extend("setting" = reload()))]
    pub(crate) critical: bool,
    /// The names of the backends that this backend cannot do without. If one of them is already down when this backend
    /// goes down, fusebox reports that backend as the cause.
    #[schemars(extend("setting" = reload().default(Vec::<String>::new())))]
    pub(crate) depends_on: Vec<String>,
    /// The names of the backends that this backend uses but can do without. Reports of an outage of this backend
    /// mention them. The setting has no other effect.
    #[schemars(extend("setting" = reload().default(Vec::<String>::new())))]
    pub(crate) depends_on_optional: Vec<String>,
    /// The longest time that one attempt may take.
    #[schemars(extend("setting" = reload().between("1ms", "1day")))]
    pub(crate) timeout: Time,
    pub(crate) tls: RawTls,
    pub(crate) breaker: RawBreaker,
    pub(crate) retry: RawRetry,
    pub(crate) bulkhead: RawBulkhead,
    pub(crate) cache: RawCache,
    pub(crate) queue: RawQueue,
}

/// TLS to the backend. It is used if the url begins with `rediss://` (Redis) or `https://` (ClickHouse, Firestore).
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawTls {
    /// A file with certificate authorities, in PEM. fusebox trusts them instead of the system's authorities. It reads
    /// the file again for every new connection.
    #[schemars(extend("setting" = reload().example("/etc/fusebox/authority.pem")))]
    pub(crate) ca_file: Option<PathBuf>,
}

/// The circuit breaker.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawBreaker {
    /// The breaker opens if at least this many calls in the window failed, and the share of failed calls in the window
    /// is at least `failure_rate`.
    #[schemars(extend("setting" = patch().between(1, 1_000_000)))]
    pub(crate) failure_threshold: u32,
    /// The breaker opens at this share of failed calls in the window, if at least `failure_threshold` calls failed.
    /// With 0, only `failure_threshold` decides.
    #[schemars(extend("setting" = patch().default(0.5).between(0.0, 1.0)))]
    pub(crate) failure_rate: f64,
    /// The length of the window: the most recent period of time, in which the breaker counts calls and failures.
    #[schemars(extend("setting" = patch().default("1m").between("60ms", "1day")))]
    pub(crate) window: Time,
    /// How long the breaker stays open before it tries the backend for the first time. After each failed try, the
    /// breaker doubles this time.
    #[schemars(extend("setting" = patch().between("1ms", "1day")))]
    pub(crate) recovery_timeout: Time,
    /// The longest time that the breaker stays open before it tries again. At least `recovery_timeout`.
    #[schemars(extend("setting" = patch().rule("ten times `recovery_timeout`").between("1ms", "10days")))]
    pub(crate) recovery_timeout_max: Option<Time>,
    /// The breaker shortens the time for which it stays open by a random share, which is at most this value. It does
    /// not shorten the first such time in an outage.
    #[schemars(extend("setting" = patch().default(0.5).between(0.0, 1.0)))]
    pub(crate) jitter: f64,
    /// How many successes in a row close the breaker again.
    #[schemars(extend("setting" = patch().between(1, 1_000)))]
    pub(crate) success_threshold: u32,
    /// A call that takes longer than this counts as slow.
    #[schemars(extend("setting" = patch().rule("half of `timeout`").between("1ms", "1day")))]
    pub(crate) slow_call_duration: Option<Time>,
    /// The breaker also opens if at least `failure_threshold` calls in the window were slow, and the share of slow
    /// calls in the window is at least this value. With 0, slow calls do not open the breaker.
    #[schemars(extend("setting" = patch().default(0.0).between(0.0, 1.0)))]
    pub(crate) slow_call_rate: f64,
}

/// How often and when a failed attempt of a call is repeated.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawRetry {
    /// The most attempts of one call, including the first.
    #[schemars(extend("setting" = patch().default(3).between(1, 100)))]
    pub(crate) attempts: u32,
    /// The upper bound of the random wait before the first retry. The bound doubles with each further retry, up to
    /// `cap`.
    #[schemars(extend("setting" = patch().default("50ms").between("1ms", "1day")))]
    pub(crate) base: Time,
    /// The longest wait before a retry. At least `base`.
    #[schemars(extend("setting" = patch().rule("2s, or `base` if that is longer").between("1ms", "1day")))]
    pub(crate) cap: Option<Time>,
}

/// The bulkhead: how many attempts may run at once.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawBulkhead {
    /// The most attempts that may be in flight to the backend at once. Further calls are answered by the cache, queued,
    /// or refused. If the limit is at least 16, one user gets at most seven eighths of it.
    #[schemars(extend("setting" = patch().default(256).between(1, 65_536)))]
    pub(crate) in_flight_max: u32,
}

/// The fallback cache, which answers reads while the backend does not. An answer is marked `cache` until it is as old
/// as `ttl`, and then `stale` until it is as old as `max_stale`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawCache {
    /// The most values in the cache.
    #[schemars(extend("setting" = patch().default(1_000).between(1, 10_000_000)))]
    pub(crate) items: u32,
    /// The most memory for values.
    #[schemars(extend("setting" = patch().default("64MiB").between("64KiB", "1TiB")))]
    pub(crate) bytes: Size,
    /// The size of the largest value that is cached. Values above 1 MiB are kept in files.
    #[schemars(extend("setting" = patch().default("16MiB").between("1MiB", "1GiB")))]
    pub(crate) entry_max: Size,
    /// The most bytes that all files with cached values may take together.
    #[schemars(extend("setting" = restart().default("256MiB").between("0B", "1TiB")))]
    pub(crate) disk_bytes: Size,
    /// The highest age of a cached value that counts as fresh: the answer has the mark `cache`.
    #[schemars(extend("setting" = patch().between("0s", "1year")))]
    pub(crate) ttl: Time,
    /// The highest age of a cached value that is used as an answer. If it is older than `ttl`, the answer has the mark
    /// `stale`. At least `ttl`.
    #[schemars(extend("setting" = patch().rule(
        "5m for Redis, 30m for Firestore, 1h for ClickHouse, or `ttl` if that is longer"
    ).between("0s", "10years")))]
    pub(crate) max_stale: Option<Time>,
    /// How long a read by key waits for a suspect backend before the cache answers. A backend is suspect if it has not
    /// answered a ping, and has answered no attempt since fusebox sent this ping. At most `timeout`.
    #[schemars(extend("setting" = patch().rule("a fifth of `timeout`, but at most 1s").between("0s", "1day")))]
    pub(crate) answer_after: Option<Time>,
    /// A folder in which the whole cache is saved, so that it survives restarts of the daemon.
    #[schemars(extend("setting" = restart().example("/var/cache/fusebox")))]
    pub(crate) dir: Option<PathBuf>,
}

/// The durable queue: calls on this host's disk. Replay sends them to the backend later. A write that would exceed one
/// of the queue's limits is refused.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawQueue {
    /// The most calls that may wait in the queue.
    #[schemars(extend("setting" = patch().default(50_000).between(1, 10_000_000)))]
    pub(crate) items: u32,
    /// The most bytes that the calls in the queue may have together.
    #[schemars(extend("setting" = patch().default("1GiB").between("1MiB", "1TiB")))]
    pub(crate) bytes: Size,
    /// The most dead letters that are kept. A dead letter is a queued call that replay has given up. At the limit, the
    /// next call that replay gives up stays in the queue. It blocks the later writes of its lane (a key, a document, or
    /// a table).
    #[schemars(extend("setting" = patch().default(5_000).between(1, 1_000_000)))]
    pub(crate) dead_items: u32,
    /// The most bytes that all dead letters may have together. If a call that replay gives up does not fit, it stays in
    /// the queue. It blocks the later writes of its lane (a key, a document, or a table).
    #[schemars(extend("setting" = patch().default("256MiB").between("1MiB", "1TiB")))]
    pub(crate) dead_bytes: Size,
    /// The folder of the store, which holds the queue.
    #[schemars(extend("setting" = restart().rule("backends/NAME in the state directory")))]
    pub(crate) dir: Option<PathBuf>,
    /// The space that the queue leaves free on its disk. If less is free, writes that would have to be queued are
    /// refused.
    #[schemars(extend("setting" = restart().default("64MiB").between("0B", "1EiB")))]
    pub(crate) disk_floor: Size,
    /// How calls are stored. 1: each call has a record of its own. 2: small calls that are stored together share one
    /// record. With format 2, the store writes less to the disk and removes calls faster, but earlier releases cannot
    /// read it. This setting is only for writing: the daemon reads both formats.
    #[schemars(extend("setting" = restart().default(1).between(1, 2)))]
    pub(crate) format: u32,
    /// What happens to a write while the backend is down. `queue`: it is queued, if possible. `refuse`: it is queued
    /// only if the call has `min_ack = durable`, and refused otherwise.
    #[schemars(extend("setting" = patch().words(WRITE_FALLBACKS)))]
    pub(crate) write_fallback: String,
    /// What happens to the later writes of a lane (a key, a document, or a table with `ordered = true`) if replay gives
    /// up one of its writes. `continue`: they are applied. `block`: they wait until an operator has decided about the
    /// dead letter.
    #[schemars(extend("setting" = patch().default("continue").words(DEAD_LETTER_POLICIES)))]
    pub(crate) dead_letter_policy: String,
}
