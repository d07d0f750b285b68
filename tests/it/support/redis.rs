//! A real Redis that can be killed, restarted, frozen and locked.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ::redis::{Client, Connection, FromRedisValue, RedisResult};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::poll::wait_for;
use super::port::Port;
use super::proc::{freeze, require, send};

const START_DEADLINE: Duration = Duration::from_secs(10);
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// A `redis-server` on a loopback port and a Unix socket of its own. It syncs every write before it
/// answers, so that what it has acknowledged survives its own death. Killed when dropped.
pub(crate) struct RedisServer {
    program: PathBuf,
    folder: TempDir,
    port: Port,
    process: Option<Child>,
    password: Option<String>,
}

impl RedisServer {
    /// Starts an empty server and waits until it answers.
    pub(crate) fn start() -> Self {
        Self::start_as(&require("redis-server", "redis-server redis-tools"))
    }

    /// As [`RedisServer::start`], another program that speaks the same.
    pub(crate) fn start_as(program: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("fusebox-redis-").tempdir();
        let mut server = Self {
            program: program.to_owned(),
            folder: folder.expect("a temporary folder"),
            port: Port::lease(),
            process: None,
            password: None,
        };
        server.restart();
        server
    }

    /// The server's TCP address as a backend's `url`.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.port.address())
    }

    /// The server's Unix socket as a backend's `url`.
    pub(crate) fn unix_url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The server's TCP port, for a relay in front of it.
    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    /// Kills the server: its clients see a reset, and later ones a refused connection.
    pub(crate) fn kill_9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("redis-server is ours to kill");
            process.wait().expect("redis-server can be waited for");
        }
    }

    /// Starts the server on the same port with the data that it had, killing it first if it runs.
    /// Settings made at run time, a password among them, are forgotten.
    pub(crate) fn restart(&mut self) {
        self.kill_9();
        let mut process = self.spawn();
        self.password = None;
        wait_for("redis-server answers", START_DEADLINE, || {
            let ended = process.try_wait().expect("redis-server can be asked");
            assert!(ended.is_none(), "redis-server ended at once:\n{}", self.log());
            let answer: RedisResult<String> =
                self.connect().and_then(|mut redis| ::redis::cmd("PING").query(&mut redis));
            answer.ok()
        });
        self.process = Some(process);
    }

    /// Freezes the server: it accepts connections and never answers.
    pub(crate) fn freeze(&self) {
        freeze(self.process());
    }

    /// Lets a frozen server go on with what it was doing.
    pub(crate) fn thaw(&self) {
        send(self.process(), Signal::SIGCONT);
    }

    /// Demands a password of every connection that is not authenticated yet, until a restart.
    pub(crate) fn require_password(&mut self, password: &str) {
        let done: String = self.query(&["CONFIG", "SET", "requirepass", password]);
        assert_eq!(done, "OK");
        self.password = Some(password.to_owned());
    }

    /// Asks the server itself, past the daemon, on a connection of its own.
    #[track_caller]
    pub(crate) fn query<T: FromRedisValue>(&self, command: &[&str]) -> T {
        let answer = self.connect().and_then(|mut redis| {
            let (name, arguments) = command.split_first().expect("a command has a name");
            ::redis::cmd(name).arg(arguments).query(&mut redis)
        });
        answer.unwrap_or_else(|error| panic!("{command:?} at redis-server: {error}"))
    }

    /// The string that the server itself has under `key`.
    #[track_caller]
    pub(crate) fn get(&self, key: &str) -> Option<String> {
        self.query(&["GET", key])
    }

    /// How often the server has been asked to do `command` (in small letters) since its start.
    #[track_caller]
    pub(crate) fn times_called(&self, command: &str) -> u64 {
        let stats: String = self.query(&["INFO", "commandstats"]);
        let start = format!("cmdstat_{command}:calls=");
        let line = stats.lines().find_map(|line| line.strip_prefix(&start));
        let calls = line.and_then(|line| line.split(',').next());
        calls.map_or(0, |calls| calls.parse().expect("a count of calls"))
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// The server's process, which runs.
    #[track_caller]
    pub(crate) fn process(&self) -> &Child {
        self.process.as_ref().expect("redis-server runs")
    }

    fn spawn(&self) -> Child {
        let log = File::create(self.folder.path().join("log")).expect("redis-server's log");
        Command::new(&self.program)
            .args(["--bind", "127.0.0.1", "--port", &self.port.number().to_string()])
            .args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"])
            .arg("--dir")
            .arg(self.folder.path())
            .arg("--unixsocket")
            .arg(self.socket())
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("a second handle to the log"))
            .stdout(log)
            .spawn()
            .expect("redis-server starts")
    }

    fn connect(&self) -> RedisResult<Connection> {
        let client = Client::open(self.unix_url())?;
        let mut redis = client.get_connection_with_timeout(CLIENT_TIMEOUT)?;
        redis.set_read_timeout(Some(CLIENT_TIMEOUT))?;
        redis.set_write_timeout(Some(CLIENT_TIMEOUT))?;
        if let Some(password) = &self.password {
            ::redis::cmd("AUTH").arg(password).exec(&mut redis)?;
        }
        Ok(redis)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill_9();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Duration;

    use super::RedisServer;

    #[test]
    fn what_redis_acknowledged_survives_kill_9() {
        let mut redis = RedisServer::start();
        assert_eq!(redis.query::<String>(&["SET", "k", "v"]), "OK");
        redis.require_password("secret");
        assert_eq!(redis.get("k").as_deref(), Some("v"), "with the password");
        let port = redis.port();
        redis.kill_9();
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
        redis.restart();
        assert_eq!((redis.get("k").as_deref(), redis.port()), (Some("v"), port));
        assert_eq!(redis.times_called("get"), 1);
        assert!(redis.url().ends_with(&port.to_string()));
    }

    #[test]
    fn a_frozen_redis_accepts_and_does_not_answer() {
        let redis = RedisServer::start();
        redis.freeze();
        let mut connection = TcpStream::connect(("127.0.0.1", redis.port())).unwrap();
        connection.write_all(b"PING\r\n").unwrap();
        connection.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut answer = [0; 7];
        assert!(connection.read_exact(&mut answer).is_err());
        redis.thaw();
        connection.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        connection.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"+PONG\r\n");
    }
}
