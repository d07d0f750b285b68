//! What the demo plays on: a temporary folder, the stand-ins, and a real daemon as a child process.

use std::{
    fs::Permissions,
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{
    backend::{Backend, Each},
    proof::Applied,
};
use crate::{
    kinds::{
        clickhouse::stand_in as clickhouse, firestore::stand_in as firestore,
        redis::stand_in as redis,
    },
    terminal::client::Client,
};

/// How many applied writes a stand-in remembers: 600 seconds of all writers.
const LOG_MAX: usize = 2_000_000;
/// The longest that a start may take.
const READY_DEADLINE: Duration = Duration::from_secs(20);
/// How much of the daemon's log is shown if the demo fails.
const LOG_LINES: usize = 40;
/// A loopback address from which nothing connects: a connect from 127.0.0.1 to a port of its own on
/// which nobody listens can meet itself.
const HOST: [u8; 4] = [127, 0, 0, 2];

/// Short times, so that the story fits into seconds.
const CONFIG: &str = r#"[health]
interval = "300ms"
"#;
const CONFIG_OF_EACH: &str = r#"[backends.@NAME@]
url = "@URL@"
timeout = "500ms"
@MORE@
[backends.@NAME@.breaker]
failure_threshold = 5
success_threshold = 3
recovery_timeout = "600ms"
recovery_timeout_max = "1200ms"
window = "5s"
"#;
const DOOR_OF_EACH: &str = r#"[[doors]]
backend = "@NAME@"
listen = "unix:@SOCKET@"
"#;
/// A result of a second ago counts as old, and inserts may be queued.
const CONFIG_OF_ROWS: &str = r#"[backends.clickhouse.cache]
ttl = "500ms"
[backends.clickhouse.queue]
write_fallback = "queue"
"#;
/// The project of the documents.
pub(super) const PROJECT: &str = "demo";

/// A stand-in for each backend.
pub(super) struct StandIns {
    redis: Arc<redis::StandIn>,
    clickhouse: Arc<clickhouse::StandIn>,
    firestore: Arc<firestore::StandIn>,
}

impl StandIns {
    fn new() -> Self {
        Self {
            redis: redis::StandIn::with_log(LOG_MAX),
            clickhouse: clickhouse::StandIn::new(),
            firestore: firestore::StandIn::with_log(LOG_MAX),
        }
    }

    async fn start(&self, backend: Backend, address: SocketAddr) -> io::Result<SocketAddr> {
        match backend {
            Backend::Keys => self.redis.start(address).await,
            Backend::Rows => self.clickhouse.start(address).await,
            Backend::Documents => self.firestore.start(address).await,
        }
    }

    fn lose_answers(&self, backend: Backend) {
        match backend {
            Backend::Keys => self.redis.lose_answers(),
            Backend::Rows => self.clickhouse.lose_answers(),
            Backend::Documents => self.firestore.lose_answers(),
        }
    }

    fn stop(&self, backend: Backend) {
        match backend {
            Backend::Keys => self.redis.stop(),
            Backend::Rows => self.clickhouse.stop(),
            Backend::Documents => self.firestore.stop(),
        }
    }

    /// What one of them applied; `None` if that was more than it remembers.
    pub(super) fn applied(&self, backend: Backend) -> Option<Applied> {
        let (log, values) = match backend {
            Backend::Keys => (self.redis.log()?, self.redis.snapshot()),
            Backend::Documents => (self.firestore.log()?, self.firestore.values()),
            Backend::Rows => {
                return Some(Applied { rows: self.clickhouse.ids(), ..Applied::default() });
            }
        };
        Some(Applied { log, values, rows: Vec::new() })
    }

    /// How many writes one of them was sent again and recognised by their token.
    pub(super) fn recognised(&self, backend: Backend) -> u64 {
        match backend {
            Backend::Keys => self.redis.recognised(),
            Backend::Rows => self.clickhouse.recognised(),
            Backend::Documents => self.firestore.recognised(),
        }
    }
}

/// The stage. The daemon dies with it, and the folder goes.
pub(super) struct Stage {
    /// The stand-ins.
    pub(super) stand_ins: StandIns,
    /// The address of each while it listens.
    pub(super) addresses: Each<SocketAddr>,
    daemon: Option<Child>,
    folder: TempDir,
}

impl Stage {
    /// Makes the folder and starts the stand-ins and the daemon.
    ///
    /// # Errors
    /// What could not be made or started; of a daemon that does not start, the end of its log.
    pub(super) async fn set() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("fusebox-demo-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .context("cannot make a temporary folder")?;
        let stand_ins = StandIns::new();
        let mut addresses = Each::of(|_| SocketAddr::from((HOST, 0)));
        for backend in Backend::ALL {
            let address = addresses.get_mut(backend);
            *address = stand_ins.start(backend, *address).await.context("cannot listen")?;
        }
        std::fs::write(folder.path().join("fusebox.toml"), config(&addresses, folder.path()))?;
        let mut stage = Self { stand_ins, addresses, daemon: None, folder };
        if let Err(error) = stage.start_daemon().await {
            let log = stage.log_end();
            stage.strike().await;
            return Err(error.context(log));
        }
        Ok(stage)
    }

    /// Lets a stand-in do what it is asked and break the connection in place of an answer.
    pub(super) fn lose_answers(&self, backend: Backend) {
        self.stand_ins.lose_answers(backend);
    }

    /// Stops a stand-in: its listener and its connections are gone, its data stays.
    pub(super) fn stop(&self, backend: Backend) {
        self.stand_ins.stop(backend);
    }

    /// Starts a stand-in again, at its earlier address.
    ///
    /// # Errors
    /// It cannot listen there.
    pub(super) async fn start(&self, backend: Backend) -> anyhow::Result<()> {
        let address = *self.addresses.get(backend);
        self.stand_ins.start(backend, address).await.context("cannot listen again")?;
        Ok(())
    }

    /// Starts the daemon on the state that it has, and waits until it is ready. Returns how long that
    /// took. To be called on the main thread: the kernel kills the daemon when its parent thread ends.
    ///
    /// # Errors
    /// It ended at once, or is not ready in time.
    pub(super) async fn start_daemon(&mut self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("daemon.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("run")
            .arg("--config")
            .arg(self.folder.path().join("fusebox.toml"))
            .arg("--state-dir")
            .arg(self.folder.path().join("state"))
            .arg("--socket")
            .arg(self.socket())
            .args(["--parent", &std::process::id().to_string()])
            // None of a real daemon's variables, such as FUSEBOX_SOCKET or REDIS_URL.
            .env_clear()
            .envs(
                ["PATH", "RUST_LOG", "RUST_BACKTRACE"]
                    .iter()
                    .filter_map(|name| std::env::var_os(name).map(|value| (*name, value))),
            )
            .env("HOME", self.folder.path())
            // Ctrl-C is for the demo, which then ends the daemon.
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log);
        let daemon = self.daemon.insert(command.spawn().context("cannot start the daemon")?);
        let client = Client::new(self.folder.path().join("fusebox.sock"));
        loop {
            if let Ok((200, _)) = client.exchange(hyper::Method::GET, "/health/ready", None).await {
                return Ok(begun.elapsed());
            }
            if let Some(status) = daemon.try_wait()? {
                bail!("the daemon ended at once: {status}");
            }
            if begun.elapsed() > READY_DEADLINE {
                bail!("the daemon is not ready after {READY_DEADLINE:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills the daemon with SIGKILL and waits until it is gone. Returns its process id.
    ///
    /// # Errors
    /// There is none to kill.
    pub(super) async fn kill_daemon(&mut self) -> anyhow::Result<u32> {
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        let id = daemon.id().context("the daemon has ended by itself")?;
        daemon.kill().await.context("cannot kill the daemon")?;
        Ok(id)
    }

    /// The daemon's process id, while it runs.
    pub(super) fn daemon_id(&self) -> Option<u32> {
        self.daemon.as_ref().and_then(Child::id)
    }

    /// The daemon's socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join("fusebox.sock")
    }

    /// The end of the daemon's log, under a heading.
    pub(super) fn log_end(&self) -> String {
        let log = std::fs::read(self.folder.path().join("daemon.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let shown = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
        format!("the daemon's log ends with\n{}", shown.join("\n"))
    }

    /// Ends the daemon, stops the stand-ins and removes the folder.
    pub(super) async fn strike(mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // One that has ended already needs no killing.
            drop(daemon.kill().await);
        }
        for backend in Backend::ALL {
            self.stand_ins.stop(backend);
        }
        if let Err(error) = self.folder.close() {
            crate::terminal::print::complain(&format!(
                "fusebox: the temporary folder remains: {error}"
            ));
        }
    }
}

/// The daemon's configuration.
fn config(addresses: &Each<SocketAddr>, folder: &Path) -> String {
    let mut text = CONFIG.to_owned();
    for (backend, address) in addresses.iter() {
        let scheme = if backend == Backend::Keys { "redis" } else { "http" };
        let url = format!("{scheme}://{address}");
        let more = match backend {
            Backend::Documents => format!("project = \"{PROJECT}\""),
            Backend::Keys | Backend::Rows => String::new(),
        };
        text += &CONFIG_OF_EACH
            .replace("@NAME@", backend.name())
            .replace("@URL@", &url)
            .replace("@MORE@", &more);
        let socket = folder.join(backend.door());
        let socket = socket.to_string_lossy();
        text += &DOOR_OF_EACH.replace("@NAME@", backend.name()).replace("@SOCKET@", &socket);
    }
    text + CONFIG_OF_ROWS
}
