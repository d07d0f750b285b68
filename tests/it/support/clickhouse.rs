//! A real ClickHouse that can be killed, restarted and frozen: the 2018 server that Debian has, or the
//! current engine (chdb) behind the HTTP front in `tests/support/chdb_front.py`, whose page says what of it
//! is the engine's and what the front's.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::poll::wait_for;
use super::port::Port;
use super::proc::{require, send, venv_python};

const START_DEADLINE: Duration = Duration::from_secs(30);
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Which ClickHouse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// The server 18.16: no tokens, no header with the error's code.
    Old,
    /// The engine 26.9: deduplication by token.
    Current,
}

/// A user besides `default`.
#[derive(Clone, Copy, Default)]
pub(crate) struct User<'a> {
    /// Its name, and its profile's.
    pub(crate) name: &'a str,
    /// Its settings.
    pub(crate) profile: &'a [(&'a str, &'a str)],
    /// Empty for none.
    pub(crate) password: &'a str,
}

/// A server on a loopback port and a folder of its own. Killed when dropped.
pub(crate) struct ClickHouse {
    engine: Engine,
    folder: TempDir,
    port: Port,
    password: String,
    process: Option<Child>,
}

impl ClickHouse {
    /// Starts an empty server and waits until it answers.
    pub(crate) fn start(engine: Engine) -> Self {
        Self::with_password(engine, "")
    }

    /// As [`ClickHouse::start`]; the user `default` has this password. The current engine only.
    pub(crate) fn with_password(engine: Engine, password: &str) -> Self {
        Self::made(engine, password, &[])
    }

    /// The old server with more users: each has a name, settings of its profile, and a password or none.
    pub(crate) fn with_users(users: &[User<'_>]) -> Self {
        Self::made(Engine::Old, "", users)
    }

    fn made(engine: Engine, password: &str, users: &[User<'_>]) -> Self {
        let folder = tempfile::Builder::new().prefix("fusebox-clickhouse-").tempdir();
        let folder = folder.expect("a temporary folder");
        let port = Port::lease();
        write_configuration(folder.path(), port.number(), users);
        let password = password.to_owned();
        let mut server = Self { engine, folder, port, password, process: None };
        server.restart();
        server
    }

    /// The server's address as a backend's `url`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.port.address())
    }

    /// The server's TCP port, for what stands in front of it.
    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    /// Kills the server.
    pub(crate) fn kill_9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("the server is ours to kill");
            process.wait().expect("the server can be waited for");
        }
    }

    /// Starts the server on the same port with the data that it had, killing it first where it runs.
    pub(crate) fn restart(&mut self) {
        self.kill_9();
        let mut process = self.spawn();
        wait_for("ClickHouse answers", START_DEADLINE, || {
            let ended = process.try_wait().expect("the server can be asked");
            assert!(ended.is_none(), "ClickHouse ended at once:\n{}", self.log());
            self.try_query("SELECT 1").ok().filter(|(status, _)| *status == 200)
        });
        self.process = Some(process);
    }

    /// Freezes the server: it accepts connections and never answers.
    pub(crate) fn freeze(&self) {
        send(self.process.as_ref().expect("the server runs"), Signal::SIGSTOP);
    }

    /// Lets a frozen server go on with what it was doing.
    pub(crate) fn thaw(&self) {
        send(self.process.as_ref().expect("the server runs"), Signal::SIGCONT);
    }

    /// Makes the next `count` queries end with `code`, which the front does and not the engine.
    pub(crate) fn fail_next(&self, code: u32, count: u32) {
        assert_eq!(self.engine, Engine::Current, "the old server cannot be told to fail");
        let path = format!("/front/fail?code={code}&count={count}");
        assert_eq!(self.post(&path, "").expect("the front answers").0, 200);
    }

    /// Asks the server itself, past the daemon; the answer without its last line break.
    #[track_caller]
    pub(crate) fn query(&self, query: &str) -> String {
        let (status, body) = self
            .try_query(query)
            .unwrap_or_else(|error| panic!("{query:?} at ClickHouse: {error}"));
        assert_eq!(status, 200, "{query:?} at ClickHouse: {body}");
        body.trim_end_matches('\n').to_owned()
    }

    fn try_query(&self, query: &str) -> std::io::Result<(u16, String)> {
        self.post("/", query)
    }

    /// HTTP/1.0, so that the answer ends with the connection.
    fn post(&self, path: &str, body: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.port.address())?;
        stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
        write!(
            stream,
            "POST {path} HTTP/1.0\r\nX-ClickHouse-User: default\r\nX-ClickHouse-Key: {}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.password,
            body.len()
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) =
            answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.ok_or(std::io::ErrorKind::InvalidData)?, body.to_owned()))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn spawn(&self) -> Child {
        let log = File::create(self.folder.path().join("log")).expect("the server's log");
        let mut command = match self.engine {
            Engine::Old => {
                let mut command = Command::new(require("clickhouse-server", "clickhouse-server"));
                let file = self.folder.path().join("config.xml");
                command.arg(format!("--config-file={}", file.display()));
                command
            }
            Engine::Current => {
                let mut command = Command::new(venv_python());
                command
                    .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/chdb_front.py"))
                    .arg(self.port.number().to_string())
                    .arg(self.folder.path().join("chdb"))
                    .arg(&self.password);
                command
            }
        };
        command
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("a second handle to the log"))
            .stdout(log)
            .spawn()
            .expect("the server starts")
    }
}

impl Drop for ClickHouse {
    fn drop(&mut self) {
        self.kill_9();
    }
}

/// The old server's files.
fn write_configuration(folder: &Path, port: u16, more: &[User<'_>]) {
    let at = folder.display();
    let config = format!(
        "<yandex><logger><level>warning</level><log>{at}/server.log</log></logger>\
         <http_port>{port}</http_port><listen_host>127.0.0.1</listen_host>\
         <path>{at}/data/</path><tmp_path>{at}/tmp/</tmp_path>\
         <users_config>{at}/users.xml</users_config><mark_cache_size>67108864</mark_cache_size>\
         <default_profile>default</default_profile><default_database>default</default_database>\
         </yandex>"
    );
    let (mut profiles, mut users) = ("<default/>".to_owned(), user("default", ""));
    for User { name, profile, password } in more {
        let settings: Vec<String> =
            profile.iter().map(|(name, value)| format!("<{name}>{value}</{name}>")).collect();
        profiles.extend([format!("<{name}>"), settings.concat(), format!("</{name}>")]);
        users.push_str(&user(name, password));
    }
    let users = format!(
        "<yandex><profiles>{profiles}</profiles><quotas><default/></quotas><users>{users}</users></yandex>"
    );
    fs::write(folder.join("config.xml"), config).expect("the server's configuration");
    fs::write(folder.join("users.xml"), users).expect("the server's users");
}

/// A user of the old server, with the profile and the quota of its name.
fn user(name: &str, password: &str) -> String {
    format!(
        "<{name}><password>{password}</password><networks><ip>::/0</ip></networks>\
         <profile>{name}</profile><quota>default</quota></{name}>"
    )
}

#[cfg(test)]
mod tests {
    use super::{ClickHouse, Engine};

    /// A table in which inserts are recognised by their token, where the engine can.
    const TABLE: &str = "CREATE TABLE t (a Int64) ENGINE = MergeTree ORDER BY a";

    #[test]
    fn what_clickhouse_acknowledged_survives_kill_9() {
        for engine in [Engine::Old, Engine::Current] {
            let mut server = ClickHouse::start(engine);
            server.query(TABLE);
            server.query("INSERT INTO t VALUES (1), (2)");
            server.restart();
            assert_eq!(server.query("SELECT count(), sum(a) FROM t"), "2\t3", "{engine:?}");
        }
    }

    #[test]
    fn the_current_engine_knows_a_token_again_and_fails_when_told_to() {
        let server = ClickHouse::start(Engine::Current);
        server.query(&format!("{TABLE} SETTINGS non_replicated_deduplication_window = 100"));
        for _ in 0..2 {
            let insert = "/?query=INSERT%20INTO%20t%20VALUES&insert_deduplication_token=x";
            assert_eq!(server.post(insert, "(7)").unwrap().0, 200);
        }
        assert_eq!(server.query("SELECT count() FROM t"), "1");
        server.fail_next(202, 1);
        assert_eq!(server.try_query("SELECT 1").unwrap().0, 503);
        assert_eq!(server.query("SELECT 1"), "1");
    }
}
