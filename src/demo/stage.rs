//! What the demo plays on: a temporary folder, the stand-in, and a real daemon as a child process.

use std::{
    fs::Permissions,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::stand_in::StandIn;
use crate::cli::client::Client;

/// How many applied writes the stand-in remembers: 600 seconds of all writers.
const LOG_MAX: usize = 2_000_000;
/// The longest that a start may take.
const READY_DEADLINE: Duration = Duration::from_secs(20);
/// How much of the daemon's log is shown where the demo fails.
const LOG_LINES: usize = 40;
/// A loopback address from which nothing connects: a connect from 127.0.0.1 to a port of its own on
/// which nobody listens can meet itself.
const HOST: [u8; 4] = [127, 0, 0, 2];

/// Short times, so that the story fits into seconds.
const CONFIG: &str = r#"[health]
interval = "300ms"
[backends.redis]
url = "redis://@ADDRESS@"
timeout = "500ms"
[backends.redis.breaker]
failure_threshold = 5
success_threshold = 3
recovery_timeout = "600ms"
recovery_timeout_max = "1200ms"
window = "5s"
[backends.clickhouse]
enabled = false
[backends.firestore]
enabled = false
"#;

/// The stage. The daemon dies with it, and the folder goes.
pub(super) struct Stage {
    /// The stand-in for Redis.
    pub(super) stand_in: Arc<StandIn>,
    /// Where the stand-in listens when it does.
    pub(super) address: SocketAddr,
    daemon: Option<Child>,
    folder: TempDir,
}

impl Stage {
    /// Makes the folder and starts the stand-in and the daemon.
    ///
    /// # Errors
    /// What could not be made or started; of a daemon that does not start, the end of its log.
    pub(super) async fn set() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("fusebox-demo-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .context("cannot make a temporary folder")?;
        let stand_in = StandIn::with_log(LOG_MAX);
        let address = stand_in.start((HOST, 0).into()).await.context("cannot listen")?;
        let config = CONFIG.replace("@ADDRESS@", &address.to_string());
        std::fs::write(folder.path().join("fusebox.toml"), config)?;
        let mut stage = Self { stand_in, address, daemon: None, folder };
        if let Err(error) = stage.start_daemon().await {
            let log = stage.log_end();
            stage.strike().await;
            return Err(error.context(log));
        }
        Ok(stage)
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
            // Nothing of what a real daemon is told here, such as FUSEBOX_SOCKET or REDIS_URL.
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

    /// Ends the daemon, stops the stand-in and removes the folder.
    pub(super) async fn strike(mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // One that has ended already needs no killing.
            drop(daemon.kill().await);
        }
        self.stand_in.stop();
        if let Err(error) = self.folder.close() {
            crate::cli::complain(&format!("fusebox: the temporary folder remains: {error}"));
        }
    }
}
