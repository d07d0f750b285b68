//! A real ClickHouse that can be killed, restarted and frozen: the 2018 server that Debian has, or a current
//! one out of an npm package, which `tests/support/clickhouse_server.py` starts.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::poll::wait_for;
use super::port::Port;
use super::proc::{freeze, require, send};

const START_DEADLINE: Duration = Duration::from_secs(30);
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Which ClickHouse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// The server 18.16: no tokens, no header with the error's code.
    Old,
    /// The server 26.7: deduplication by token, grants, a query log.
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
    /// What it may do, as GRANT statements; everything if there are none. The current server only.
    pub(crate) grants: &'a [&'a str],
}

/// A server on a loopback port and a folder of its own. Killed when dropped.
pub(crate) struct ClickHouse {
    engine: Engine,
    folder: TempDir,
    port: Port,
    process: Option<Child>,
}

impl ClickHouse {
    /// Starts an empty server and waits until it answers.
    pub(crate) fn start(engine: Engine) -> Self {
        Self::with_users(engine, &[])
    }

    /// As [`ClickHouse::start`], with more users than `default`.
    pub(crate) fn with_users(engine: Engine, users: &[User<'_>]) -> Self {
        let folder = tempfile::Builder::new().prefix("fusebox-clickhouse-").tempdir();
        let folder = folder.expect("a temporary folder");
        let port = Port::lease();
        write_configuration(engine, folder.path(), port.number(), users);
        let mut server = Self { engine, folder, port, process: None };
        server.restart();
        server
    }

    /// The server's address as a backend's `url`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.port.address())
    }

    /// The server's TCP port, for what is in front of it.
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

    /// Starts the server on the same port with the data that it had, killing it first if it runs.
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

    /// The folder of the rows of `table`.
    pub(crate) fn data_of(&self, table: &str) -> PathBuf {
        let question = format!("SELECT data_paths[1] FROM system.tables WHERE name = '{table}'");
        PathBuf::from(self.query(&question))
    }

    /// Freezes the server: it accepts connections and never answers.
    pub(crate) fn freeze(&self) {
        freeze(self.process());
    }

    /// Lets a frozen server go on with what it was doing.
    pub(crate) fn thaw(&self) {
        send(self.process(), Signal::SIGCONT);
    }

    /// The server's process, which runs.
    #[track_caller]
    pub(crate) fn process(&self) -> &Child {
        self.process.as_ref().expect("the server runs")
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
            "POST {path} HTTP/1.0\r\nX-ClickHouse-User: default\r\nX-ClickHouse-Database: default\r\n\
             Content-Length: {}\r\n\r\n{body}",
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

    /// Begins a query as `user` that ends with the connection.
    pub(crate) fn begin(&self, user: &str, query: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.port.address()).expect("ClickHouse accepts");
        write!(
            stream,
            "POST /?cancel_http_readonly_queries_on_client_close=1 HTTP/1.0\r\nX-ClickHouse-User: {user}\r\n\
             Content-Length: {}\r\n\r\n{query}",
            query.len()
        )
        .expect("ClickHouse reads");
        stream
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn spawn(&self) -> Child {
        let log = File::create(self.folder.path().join("log")).expect("the server's log");
        let config = self.folder.path().join("config.xml");
        let mut command = match self.engine {
            Engine::Old => {
                let mut command = Command::new(require("clickhouse-server", "clickhouse-server"));
                command.arg(format!("--config-file={}", config.display()));
                command
            }
            Engine::Current => {
                let mut command = Command::new(require("python3", "python3"));
                let script = "tests/support/clickhouse_server.py";
                command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(script)).arg(config);
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

/// The server's files.
/// What a server that was just killed remembers of the table at `data` without having its rows: a block's token is
/// noted before its part is put in place, so it is a number above those of all parts. At most one a kill.
pub(crate) fn remembered_without_rows(data: &Path) -> BTreeSet<String> {
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let number = |part: &str| part.split('_').nth(2)?.parse::<u64>().ok();
    let highest = names(data).iter().filter_map(|part| number(part)).max().unwrap_or(0);
    let log = data.join("deduplication_logs");
    let notes = names(&log).into_iter().filter_map(|file| fs::read_to_string(log.join(file)).ok());
    let notes: String = notes.collect();
    let fields = notes.lines().filter_map(|note| {
        let mut fields = note.split('\t').skip(1);
        Some((number(fields.next()?)?, fields.next()?.to_owned()))
    });
    fields.filter(|(number, _)| *number > highest).map(|(_, block)| block).collect()
}

fn write_configuration(engine: Engine, folder: &Path, port: u16, more: &[User<'_>]) {
    let at = folder.display();
    let of_engine = match engine {
        Engine::Old => "<default_database>default</default_database>",
        Engine::Current => {
            "<default_database>local</default_database>\
             <query_log><database>system</database><table>query_log</table>\
             <flush_interval_milliseconds>500</flush_interval_milliseconds></query_log>"
        }
    };
    let config = format!(
        "<yandex><logger><level>warning</level><log>{at}/server.log</log></logger>\
         <http_port>{port}</http_port><listen_host>127.0.0.1</listen_host>\
         <path>{at}/data/</path><tmp_path>{at}/tmp/</tmp_path>\
         <users_config>{at}/users.xml</users_config><mark_cache_size>67108864</mark_cache_size>\
         <default_profile>default</default_profile>{of_engine}</yandex>"
    );
    let (mut profiles, mut users) = ("<default/>".to_owned(), user(&User::named("default")));
    for each in more {
        let User { name, profile, .. } = each;
        let settings: Vec<String> =
            profile.iter().map(|(name, value)| format!("<{name}>{value}</{name}>")).collect();
        profiles.extend([format!("<{name}>"), settings.concat(), format!("</{name}>")]);
        users.push_str(&user(each));
    }
    let users = format!(
        "<yandex><profiles>{profiles}</profiles><quotas><default/></quotas><users>{users}</users></yandex>"
    );
    for name in ["data", "tmp"] {
        fs::create_dir_all(folder.join(name)).expect("the server's folders");
    }
    fs::write(folder.join("config.xml"), config).expect("the server's configuration");
    fs::write(folder.join("users.xml"), users).expect("the server's users");
}

impl<'a> User<'a> {
    /// A user who may do everything.
    pub(crate) const fn named(name: &'a str) -> Self {
        Self { name, profile: &[], password: "", grants: &[] }
    }
}

/// A user, with the profile and the quota of its name.
fn user(User { name, password, grants, .. }: &User<'_>) -> String {
    let queries: Vec<String> =
        grants.iter().map(|grant| format!("<query>{grant}</query>")).collect();
    let grants = if queries.is_empty() {
        String::new()
    } else {
        format!("<grants>{}</grants>", queries.concat())
    };
    format!(
        "<{name}><password>{password}</password><networks><ip>::/0</ip></networks>\
         <profile>{name}</profile><quota>default</quota>{grants}</{name}>"
    )
}

#[cfg(test)]
mod tests {
    use super::{ClickHouse, Engine};

    /// A table in which inserts are recognised by their token, if the engine can.
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
    fn the_current_server_knows_a_token_again_also_in_a_view() {
        let server = ClickHouse::start(Engine::Current);
        let settings =
            "ENGINE = MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 100";
        server.query(&format!("CREATE TABLE t (a Int64) {settings}"));
        server.query(&format!("CREATE MATERIALIZED VIEW v {settings} AS SELECT a FROM t"));
        for _ in 0..2 {
            let insert =
                "/?query=INSERT%20INTO%20t%20VALUES&async_insert=0&insert_deduplication_token=x";
            assert_eq!(server.post(insert, "(7)").unwrap().0, 200);
        }
        assert_eq!(server.query("SELECT (SELECT count() FROM t), (SELECT count() FROM v)"), "1\t1");
    }
}
