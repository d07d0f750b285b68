//! A real Redis server for tests: its own port and folder, gone with the value.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

use super::{protocol::resp, settings::RedisSettings};
use crate::net::test_port::Port;

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A server that runs until it is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    _lease: Port,
    pub(crate) folder: tempfile::TempDir,
    args: Vec<String>,
}

impl Server {
    /// A server without a password, with nothing on the disk.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// A server with further arguments; `{dir}` in them is its folder.
    pub(crate) async fn start_with(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().to_str().unwrap().to_owned();
        let args: Vec<String> = args.iter().map(|arg| arg.replace("{dir}", &dir)).collect();
        let lease = Port::lease();
        let port = lease.number();
        let child = spawn(port, folder.path(), &args);
        let mut server = Self { child, port, _lease: lease, folder, args };
        server.ready().await;
        server
    }

    /// Waits until it says that it is ready.
    async fn ready(&mut self) {
        let log = self.folder.path().join("log");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            if text.contains("eady to accept connections") {
                return;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "redis-server does not start: {text}");
            assert!(Instant::now() < deadline, "redis-server is not ready: {text}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Settings for it as `instance` in its run `run`, with a short timeout.
    pub(crate) fn settings(&self, instance: &str, run: &str) -> RedisSettings {
        settings(self.port, instance, run)
    }

    /// A command on a connection of its own, past every connector.
    pub(crate) async fn ask(&self, args: &[&str]) -> Bytes {
        ask(self.port, args).await
    }

    /// Commands on one connection, in one write. The reply to the last one.
    pub(crate) async fn ask_all(&self, commands: &[&[&str]]) -> Bytes {
        ask_all(self.port, commands).await
    }

    /// The value of a string key as text; empty for none.
    pub(crate) async fn value(&self, key: &str) -> String {
        let reply = self.ask(&["GET", key]).await;
        let text = resp::Reply::of(&reply).and_then(|reply| reply.text()).unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }

    /// Its version, such as `7.0.15`.
    pub(crate) async fn version(&self) -> String {
        let info = self.ask(&["INFO", "server"]).await;
        let info = String::from_utf8_lossy(&info).into_owned();
        let line = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
        line.unwrap().to_owned()
    }

    /// Sends it a signal, such as `STOP`.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().unwrap();
        assert!(status.success());
    }

    /// Kills it without warning.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the same port.
    pub(crate) async fn restart(&mut self) {
        self.restart_with(&[]).await;
    }

    /// Starts it again, this time with more arguments.
    pub(crate) async fn restart_with(&mut self, more: &[&str]) {
        let more = more.iter().map(|arg| (*arg).to_owned());
        let args: Vec<String> = self.args.iter().cloned().chain(more).collect();
        self.child = spawn(self.port, self.folder.path(), &args);
        self.ready().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn spawn(port: u16, folder: &Path, args: &[String]) -> Child {
    let port = port.to_string();
    let log = folder.join("log");
    std::fs::write(&log, "").unwrap();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--dir"]).arg(folder);
    command.arg("--logfile").arg(log);
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap_or_else(|error| {
        panic!(
            "redis-server cannot be started ({error}): apt-get install -y redis-server redis-tools"
        )
    })
}

/// Settings for a server on `port`.
pub(crate) fn settings(port: u16, instance: &str, run: &str) -> RedisSettings {
    let url = format!("redis://127.0.0.1:{port}").parse().unwrap();
    RedisSettings { timeout: Duration::from_secs(2), ..RedisSettings::new(url, instance, run) }
}

/// A command on a connection of its own.
pub(crate) async fn ask(port: u16, args: &[&str]) -> Bytes {
    ask_all(port, &[args]).await
}

async fn ask_all(port: u16, commands: &[&[&str]]) -> Bytes {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let bytes: Vec<u8> = commands.iter().flat_map(|args| resp::command(args)).collect();
    stream.write_all(&bytes).await.unwrap();
    let (mut finder, mut inbox) = (resp::FrameFinder::default(), BytesMut::new());
    let mut left = commands.len();
    loop {
        if let Some(frame) = finder.next(&mut inbox).unwrap() {
            left -= 1;
            if left == 0 {
                return frame;
            }
            continue;
        }
        assert_ne!(stream.read_buf(&mut inbox).await.unwrap(), 0, "the server hung up");
    }
}

/// The same for a task of its own; the words are parted by `|`.
pub(crate) async fn ask_owned(port: u16, command: &'static str) -> Bytes {
    ask(port, &command.split('|').collect::<Vec<_>>()).await
}

/// Polls until `done`, or fails.
pub(crate) async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done().await {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
