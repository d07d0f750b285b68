//! The real `fusebox`, in a folder of its own: started, killed, restarted, asked.

use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::{self, Failure};
use super::poll::{eventually, wait_for};
use super::proc::{failing_sync, injected, require, send, strace_arguments, synced_files};

/// The binary under test.
pub(crate) const FUSEBOX: &str = env!("CARGO_BIN_EXE_fusebox");

const READY_DEADLINE: Duration = Duration::from_secs(20);
/// A graceful stop takes 25 s at most, by contract.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// How much of the log a failed test shows.
const LOG_LINES: usize = 200;

/// What a daemon is started with.
#[derive(Default)]
pub(crate) struct Builder {
    settings: toml::Table,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    state_dir: Option<PathBuf>,
    strace: Option<Trace>,
    program: Option<PathBuf>,
}

/// What strace does to the daemon.
#[derive(Clone)]
enum Trace {
    /// Notes its syncs.
    Syncs,
    /// Makes one sync of the backend `redis`'s log fail: which.
    FailSync(usize),
    /// Does this to its system calls on a file of its state directory.
    Inject(&'static str, String),
}

impl Builder {
    /// Sets any key of `fusebox.toml` by its path: `backends.redis.breaker.recovery_timeout`.
    pub(crate) fn set(mut self, path: &str, value: impl Into<toml::Value>) -> Self {
        set(&mut self.settings, path, value.into());
        self
    }

    /// Sets a variable of the daemon's environment, which is otherwise empty but for `PATH` and `HOME`.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds to the daemon's command line.
    pub(crate) fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|it| (*it).to_owned()));
        self
    }

    /// Runs the daemon under strace, for [`Daemon::syncs_of`].
    pub(crate) fn strace(mut self) -> Self {
        self.strace = Some(Trace::Syncs);
        self
    }

    /// Makes the `nth` sync of the log of the backend `redis` fail with EIO, in each run.
    pub(crate) fn fail_sync(mut self, nth: usize) -> Self {
        self.strace = Some(Trace::FailSync(nth));
        self
    }

    /// Runs another daemon than the one under test.
    pub(crate) fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// Keeps the state in `dir` instead of the daemon's own folder.
    pub(crate) fn state_dir(mut self, dir: &Path) -> Self {
        self.state_dir = Some(dir.to_owned());
        self
    }

    /// Writes the configuration, starts the daemon and waits until it is ready.
    pub(crate) fn start(self) -> Daemon {
        let mut settings = self.settings;
        // A test runs the backends that it names, not those that are there by default; without any, those.
        let names_any = settings.contains_key("backends");
        for kind in ["clickhouse", "firestore", "redis"].iter().filter(|_| names_any) {
            let backends = settings.get("backends").and_then(toml::Value::as_table);
            if backends.is_none_or(|backends| !backends.contains_key(*kind)) {
                set(&mut settings, &format!("backends.{kind}.enabled"), false.into());
            }
        }
        // A busy machine answers late; a test about pings says how long they wait.
        let health = settings.get("health").and_then(toml::Value::as_table);
        if names_any && health.is_none_or(|health| !health.contains_key("timeout")) {
            set(&mut settings, "health.timeout", "30s".into());
        }
        let folder = tempfile::Builder::new().prefix("fusebox-").tempdir();
        let folder = folder.expect("a temporary folder");
        let client = Client { socket: folder.path().join("fusebox.sock") };
        let mut daemon = Daemon {
            client,
            folder,
            settings,
            environment: self.environment,
            arguments: self.arguments,
            state_dir: self.state_dir,
            strace: self.strace,
            program: self.program,
            process: None,
        };
        daemon.write_configuration();
        daemon.restart();
        daemon
    }
}

fn set(settings: &mut toml::Table, path: &str, value: toml::Value) {
    let (tables, key) = path.rsplit_once('.').unwrap_or(("", path));
    let mut table = settings;
    for name in tables.split('.').filter(|name| !name.is_empty()) {
        let entry = table.entry(name).or_insert_with(|| toml::Table::new().into());
        table = entry.as_table_mut().unwrap_or_else(|| panic!("{path}: {name} is no table"));
    }
    table.insert(key.to_owned(), value);
}

/// A daemon and its folder. It answers what [`Client`] answers. Killed when dropped; if the test has
/// failed, the end of its log is shown.
pub(crate) struct Daemon {
    client: Client,
    folder: TempDir,
    settings: toml::Table,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    state_dir: Option<PathBuf>,
    strace: Option<Trace>,
    program: Option<PathBuf>,
    process: Option<Child>,
}

impl Daemon {
    /// A daemon with the default settings and a Redis at `url`.
    pub(crate) fn with_redis(url: &str) -> Builder {
        Builder::default().set("backends.redis.url", url)
    }

    /// A daemon without any configuration.
    pub(crate) fn with_defaults() -> Self {
        Builder::default().start()
    }

    /// Kills the daemon as a crash would.
    pub(crate) fn kill_9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("the daemon is ours to kill");
            process.wait().expect("the daemon can be waited for");
        }
    }

    /// Starts the daemon on the state that it left, killing it first if it runs, and waits until it is
    /// ready.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.kill_9();
        let process = self.command().spawn().expect("the daemon starts");
        self.process = Some(process);
        let until = Instant::now() + READY_DEADLINE;
        wait_for("the daemon is ready", READY_DEADLINE + STOP_DEADLINE, || {
            let process = self.process.as_mut().expect("it was started");
            if let Some(status) = process.try_wait().expect("the daemon can be asked") {
                panic!("the daemon ended at once: {status}");
            }
            let ready = self.client.try_request("GET", "/health/ready", None);
            let said = match ready {
                Ok(response) if response.status == 200 => return Some(()),
                Ok(response) => response.status.to_string(),
                Err(failure) => failure.to_string(),
            };
            assert!(Instant::now() < until, "not ready within {READY_DEADLINE:?}: {said}");
            None
        });
    }

    /// Restarts the daemon under strace, which does `what` (such as `write:signal=KILL`) to its system calls on `file` of
    /// its state directory; in this run alone.
    #[track_caller]
    pub(crate) fn restart_injected(&mut self, file: &'static str, what: &str) {
        self.strace = Some(Trace::Inject(file, what.to_owned()));
        self.restart();
        self.strace = None;
    }

    /// Asks the daemon to stop, as systemd does, and returns how it ended.
    #[track_caller]
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the daemon runs");
        send(&process, Signal::SIGTERM);
        wait_for("the daemon stops", STOP_DEADLINE, || {
            process.try_wait().expect("the daemon can be asked")
        })
    }

    /// A way to the daemon for another thread; it goes on working over restarts.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// The daemon's process id.
    #[track_caller]
    pub(crate) fn id(&self) -> u32 {
        self.process.as_ref().expect("the daemon runs").id()
    }

    /// The state directory.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| self.folder.path().join("state"))
    }

    /// The folder of the daemon's configuration, socket and log.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Changes a key of `fusebox.toml`, for the next start or reload.
    pub(crate) fn set(&mut self, path: &str, value: impl Into<toml::Value>) {
        set(&mut self.settings, path, value.into());
        self.write_configuration();
    }

    /// Sets a variable of the daemon's environment, for the next start.
    pub(crate) fn set_env(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    fn write_configuration(&self) {
        let text = toml::to_string(&self.settings).expect("settings are TOML");
        fs::write(self.configuration(), text).expect("the configuration");
    }

    /// The file `fusebox.toml`.
    pub(crate) fn configuration(&self) -> PathBuf {
        self.folder.path().join("fusebox.toml")
    }

    /// Sends the daemon a signal.
    #[track_caller]
    pub(crate) fn signal(&self, signal: Signal) {
        send(self.process.as_ref().expect("the daemon runs"), signal);
    }

    /// The daemon's log, of all its runs.
    pub(crate) fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log()).unwrap_or_default()).into_owned()
    }

    /// Runs the command line against this daemon.
    #[track_caller]
    pub(crate) fn fusebox(&self, arguments: &[&str]) -> Output {
        self.fusebox_with_stdin(arguments, "")
    }

    /// Runs the command line against this daemon with `input` on its standard input.
    #[track_caller]
    pub(crate) fn fusebox_with_stdin(&self, arguments: &[&str], input: &str) -> Output {
        let mut process = self
            .cli(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("fusebox starts");
        let mut stdin = process.stdin.take().expect("its input is a pipe");
        let input = input.to_owned();
        // In a thread: a command that answers before it has read everything must not block the test. One
        // that does not read at all closes the pipe, which is its right.
        let writer = thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let output = process.wait_with_output().expect("fusebox can be waited for");
        writer.join().expect("the writer does not panic");
        output
    }

    /// The command line, about to be run against this daemon.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Command {
        let mut command = self.plain_command(FUSEBOX);
        command.args(arguments).env("FUSEBOX_SOCKET", &self.client.socket);
        command
    }

    /// How many syncs of files named `name` have returned since the first start; needs
    /// [`Builder::strace`]. What an answer rests on is counted once the answer is here.
    #[track_caller]
    pub(crate) fn syncs_of(&self, name: &str) -> usize {
        assert!(matches!(self.strace, Some(Trace::Syncs)), "this daemon's syncs are not noted");
        let files = synced_files(&self.strace_log());
        files.iter().filter(|file| file.file_name().is_some_and(|is| is == name)).count()
    }

    fn strace_log(&self) -> PathBuf {
        self.folder.path().join("strace.log")
    }

    /// The file of the daemon's log.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.path().join("daemon.log")
    }

    /// `program` in an environment that nothing of the test's own environment reaches.
    fn plain_command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder.path())
            .env("RUST_BACKTRACE", "1");
        command
    }

    fn command(&self) -> Command {
        let mut command = match &self.strace {
            None => self.plain_command(self.program.as_deref().unwrap_or(Path::new(FUSEBOX))),
            Some(trace) => {
                let mut strace = self.plain_command(require("strace", "strace"));
                let log = self.strace_log();
                strace.args(match trace {
                    Trace::Syncs => strace_arguments(&log),
                    Trace::FailSync(nth) => {
                        failing_sync(&self.state_dir().join("backends/redis/db/db"), *nth, &log)
                    }
                    Trace::Inject(file, what) => injected(&self.state_dir().join(file), what, &log),
                });
                strace.arg(FUSEBOX);
                strace
            }
        };
        let log = File::options().create(true).append(true).open(self.log());
        let log = log.expect("the daemon's log");
        command
            .arg("run")
            .arg("--config")
            .arg(self.configuration())
            .arg("--state-dir")
            .arg(self.state_dir())
            .arg("--socket")
            .arg(&self.client.socket)
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("a second handle to the log"))
            .stdout(log);
        command
    }
}

impl Deref for Daemon {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill_9();
        if thread::panicking() {
            let log = self.log_text();
            let lines: Vec<&str> = log.lines().collect();
            let shown = &lines[lines.len().saturating_sub(LOG_LINES)..];
            println!("--- the daemon's log ends with ---\n{}", shown.join("\n"));
        }
    }
}

/// A caller of the daemon. Its methods fail the test if there is no answer; those that begin with
/// `try` say why there is none.
#[derive(Clone)]
pub(crate) struct Client {
    socket: PathBuf,
}

/// The answer to a call.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

impl Reply {
    /// The source of the answer: `live`, `cache`, `stale`, `queued`, `empty` or `bypass`.
    pub(crate) fn source(&self) -> &str {
        self.body["source"].as_str().unwrap_or("no source")
    }

    /// What the answer promises of a write: `applied` or `durable`.
    pub(crate) fn ack(&self) -> Option<&str> {
        self.body["ack"].as_str()
    }

    /// The value.
    pub(crate) fn value(&self) -> &Value {
        &self.body["value"]
    }

    /// Fails the test unless the backend itself has answered.
    #[track_caller]
    pub(crate) fn assert_live(&self) {
        assert_eq!((self.status, self.source()), (200, "live"), "{}", self.body);
    }

    /// Fails the test unless a write was made durable in the queue.
    #[track_caller]
    pub(crate) fn assert_queued(&self) {
        let is = (self.status, self.source(), self.ack());
        assert_eq!(is, (202, "queued", Some("durable")), "{}", self.body);
    }

    /// Fails the test unless a write was acknowledged, applied or durable.
    #[track_caller]
    pub(crate) fn assert_acknowledged(&self) {
        assert!(matches!(self.status, 200 | 202), "{}: {}", self.status, self.body);
        assert!(matches!(self.ack(), Some("applied" | "durable")), "{}", self.body);
    }

    /// Fails the test unless a read was answered, from wherever, with `value`.
    #[track_caller]
    pub(crate) fn assert_value(&self, value: impl Into<Value>) {
        assert_eq!((self.status, self.value()), (200, &value.into()), "{}", self.body);
    }
}

impl Client {
    /// Sends one request.
    pub(crate) fn try_request(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<http::Response, Failure> {
        http::request(&self.socket, method, path, body)
    }

    /// GETs JSON.
    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        self.json("GET", path, None)
    }

    /// POSTs JSON, `null` for no body, and reads JSON.
    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.json("POST", path, Some(&body))
    }

    /// Changes by JSON what is at a path, and reads JSON.
    #[track_caller]
    pub(crate) fn patch(&self, path: &str, body: Value) -> (u16, Value) {
        self.json("PATCH", path, Some(&body))
    }

    /// The same, at this revision alone.
    #[track_caller]
    pub(crate) fn patch_at(&self, path: &str, revision: &str, body: Value) -> (u16, Value) {
        let revision = if revision == "*" { "*".to_owned() } else { format!("\"{revision}\"") };
        let header = format!("If-Match: {revision}\r\n");
        let response = http::request_with(&self.socket, "PATCH", path, &header, Some(&body));
        let response = response.unwrap_or_else(|failure| panic!("PATCH {path}: {failure}"));
        (response.status, json_of(&response))
    }

    /// PUTs JSON and reads JSON.
    #[track_caller]
    pub(crate) fn put(&self, path: &str, body: Value) -> (u16, Value) {
        self.json("PUT", path, Some(&body))
    }

    /// DELETEs and reads JSON.
    #[track_caller]
    pub(crate) fn delete(&self, path: &str) -> (u16, Value) {
        self.json("DELETE", path, None)
    }

    #[track_caller]
    fn json(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let body = body.filter(|body| !body.is_null());
        let response = self.try_request(method, path, body);
        let response = response.unwrap_or_else(|failure| panic!("{method} {path}: {failure}"));
        (response.status, json_of(&response))
    }

    /// Makes a call of `backend`.
    #[track_caller]
    pub(crate) fn call(&self, backend: &str, call: Value) -> Reply {
        let (status, body) = self.post(&call_path(backend), call);
        Reply { status, body }
    }

    /// Makes a Redis call.
    #[track_caller]
    pub(crate) fn redis(&self, command: &[&str]) -> Reply {
        self.call("redis", json!({ "command": command }))
    }

    /// Makes a Redis call with options.
    #[track_caller]
    pub(crate) fn redis_with(&self, command: &[&str], options: Value) -> Reply {
        self.call("redis", json!({ "command": command, "options": options }))
    }

    /// Makes a Redis call whose answer may be lost, with options or `null`.
    pub(crate) fn try_redis(&self, command: &[&str], options: Value) -> Result<Reply, Failure> {
        let mut call = json!({ "command": command });
        if !options.is_null() {
            call["options"] = options;
        }
        let response = self.try_request("POST", &call_path("redis"), Some(&call))?;
        Ok(Reply { status: response.status, body: json_of(&response) })
    }

    /// The socket's path.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// POSTs an order without a body and fails the test unless it was carried out.
    #[track_caller]
    pub(crate) fn order(&self, path: &str) -> Value {
        let (status, body) = self.post(path, Value::Null);
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// Whether somebody listens at the socket.
    pub(crate) fn is_up(&self) -> bool {
        UnixStream::connect(&self.socket).is_ok()
    }

    /// What `/health` says of one backend.
    #[track_caller]
    pub(crate) fn status(&self, backend: &str) -> Value {
        self.get("/health").1["backends"][backend].take()
    }

    /// The breaker's effective state: `CLOSED`, `OPEN` or `HALF_OPEN`.
    #[track_caller]
    pub(crate) fn breaker(&self, backend: &str) -> String {
        let status = self.status(backend);
        status["breaker"].as_str().unwrap_or_else(|| panic!("no breaker in {status}")).to_owned()
    }

    /// Waits until the breaker is in `state`.
    #[track_caller]
    pub(crate) fn wait_for_breaker(&self, backend: &str, state: &str, deadline: Duration) {
        self.wait_until(&format!("the breaker is {state}"), deadline, |client| {
            client.breaker(backend) == state
        });
    }

    /// How many calls of `backend` are `pending` or `dead`.
    #[track_caller]
    pub(crate) fn queued(&self, backend: &str, state: &str) -> u64 {
        let path = format!("/v1/backends/{backend}/queue?state={state}&limit=1");
        let (status, body) = self.get(&path);
        let total = body["total"].as_u64();
        total.unwrap_or_else(|| panic!("GET {path}: {status} {body}"))
    }

    /// Waits until nothing waits for replay and nothing has been given up.
    #[track_caller]
    pub(crate) fn wait_until_drained(&self, backend: &str, deadline: Duration) {
        self.wait_until("the queue is drained", deadline, |c| c.queued(backend, "pending") == 0);
        assert_eq!(self.queued(backend, "dead"), 0, "dead letters of {backend}");
    }

    /// The sum of a metric's samples with all `labels`; names without `fusebox_`. Label values are
    /// compared without regard to case.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let response = self.try_request("GET", "/metrics", None).expect("the metrics");
        let text = String::from_utf8(response.body).expect("metrics are text");
        sum_of_samples(&text, &format!("fusebox_{name}"), labels)
    }

    /// How often the breaker has gone from one state to another since the daemon's start.
    #[track_caller]
    pub(crate) fn transitions(&self, backend: &str, from: &str, to: &str) -> u64 {
        let labels = [("backend", backend), ("from", from), ("to", to)];
        let count = format!("{:.0}", self.metric("breaker_transitions_total", &labels));
        count.parse().expect("a whole number of transitions")
    }

    /// Waits until `condition` holds.
    #[track_caller]
    pub(crate) fn wait_until(
        &self,
        what: &str,
        deadline: Duration,
        mut condition: impl FnMut(&Self) -> bool,
    ) {
        eventually(what, deadline, || condition(self));
    }

    /// Follows the events from now on.
    #[track_caller]
    pub(crate) fn events(&self) -> Events {
        Events::follow(&self.socket, "/v1/events").expect("the daemon's events")
    }

    /// The server-sent events of any path.
    pub(crate) fn events_of(&self, path: &str) -> Events {
        Events::follow(&self.socket, path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}

fn call_path(backend: &str) -> String {
    format!("/v1/backends/{backend}/call")
}

/// The body as JSON; text that is none, and no body at all, as they are.
fn json_of(response: &http::Response) -> Value {
    if response.body.is_empty() {
        return Value::Null;
    }
    serde_json::from_slice(&response.body)
        .unwrap_or_else(|_| String::from_utf8_lossy(&response.body).into())
}

fn sum_of_samples(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let samples = text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (found, bears) = series.split_once('{').unwrap_or((series, ""));
        let bears = bears.to_ascii_lowercase();
        let has = |(label, value): &(&str, &str)| {
            bears.contains(&format!("{label}=\"{value}\"").to_ascii_lowercase())
        };
        (found == name && labels.iter().all(has)).then_some(value)
    });
    // Not `sum`: over nothing that is -0.
    samples.fold(0.0, |sum, value| sum + value.parse::<f64>().expect("a sample is a number"))
}

/// One server-sent event.
#[derive(Debug)]
pub(crate) struct Event {
    /// What follows `event:`.
    pub(crate) kind: String,
    /// What follows `data:`.
    pub(crate) data: Value,
}

/// The daemon's events as they come, read in a thread of their own.
pub(crate) struct Events {
    stream: UnixStream,
    received: Receiver<Event>,
    reader: Option<JoinHandle<()>>,
}

impl Events {
    fn follow(socket: &Path, path: &str) -> io::Result<Self> {
        let (stream, body) = http::open_stream(socket, path)?;
        let (sender, received) = channel();
        let reader = thread::spawn(move || {
            let mut event = Event { kind: String::new(), data: Value::Null };
            for line in BufReader::new(body).lines().map_while(Result::ok) {
                if let Some(kind) = line.strip_prefix("event:") {
                    kind.trim().clone_into(&mut event.kind);
                } else if let Some(data) = line.strip_prefix("data:") {
                    event.data = serde_json::from_str(data).expect("an event's data is JSON");
                } else if line.is_empty() && !event.data.is_null() {
                    let whole = std::mem::replace(
                        &mut event,
                        Event { kind: String::new(), data: Value::Null },
                    );
                    if sender.send(whole).is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Self { stream, received, reader: Some(reader) })
    }

    /// The next event that `is_wanted`; the others are passed over.
    #[track_caller]
    pub(crate) fn next(
        &self,
        what: &str,
        deadline: Duration,
        is_wanted: impl Fn(&Event) -> bool,
    ) -> Event {
        let until = Instant::now() + deadline;
        let mut passed = Vec::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.received.recv_timeout(left) {
                Ok(event) if is_wanted(&event) => return event,
                Ok(event) => passed.push(event),
                Err(error) => panic!("{what}: {error}; passed over: {passed:?}"),
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // The reader may wait for ever: this ends it.
        self.stream.shutdown(Shutdown::Both).ok();
        if let Some(reader) = self.reader.take() {
            reader.join().expect("every event could be read");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Builder, sum_of_samples};

    #[test]
    fn settings_land_in_their_tables() {
        let builder = Builder::default()
            .set("state_dir", "/s")
            .set("backends.redis.url", "u")
            .set("backends.redis.breaker.failure_threshold", 7);
        let text = toml::to_string(&builder.settings).unwrap();
        assert_eq!(
            text,
            "state_dir = \"/s\"\n\n[backends.redis]\nurl = \"u\"\n\n\
             [backends.redis.breaker]\nfailure_threshold = 7\n"
        );
    }

    #[test]
    fn samples_are_summed_over_the_labels_left_out() {
        let text = "\
# TYPE fusebox_t counter
fusebox_t{backend=\"redis\",from=\"closed\",to=\"open\",reason=\"window\"} 2
fusebox_t{backend=\"redis\",from=\"closed\",to=\"open\",reason=\"pings\"} 1
fusebox_t{backend=\"redis\",from=\"open\",to=\"half_open\",reason=\"due\"} 9
fusebox_total 5
";
        let labels = [("backend", "redis"), ("from", "CLOSED")];
        assert_eq!(format!("{}", sum_of_samples(text, "fusebox_t", &labels)), "3");
        assert_eq!(format!("{}", sum_of_samples(text, "fusebox_total", &[])), "5");
    }
}
