//! Real servers for tests, one of 2018 and a current one, each with a port and a folder of its own, gone with
//! the value.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, body::Incoming, server::conn::http1 as server, service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::{settings::ClickHouseSettings, transport::http::Http};
use crate::net::test_port::Port;

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// 18.16: no tokens, no summary, no header with the error's code.
    Old,
    /// 26.7: `tests/support/clickhouse_server.py`.
    Current,
}

/// A server that runs until it is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    _lease: Port,
    _disk: Option<SmallDisk>,
    pub(crate) folder: tempfile::TempDir,
}

/// A small file system; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf, mib: u32) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        let size = format!("size={mib}M");
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", &size, "fusebox-test"]).arg(&at).output();
        let said = mounted.as_ref().map(|output| String::from_utf8_lossy(&output.stderr));
        let is_mounted = mounted.as_ref().is_ok_and(|output| output.status.success());
        assert!(is_mounted, "this test needs root, to mount a small tmpfs: {said:?}");
        Self(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(&self.0).status().ok();
    }
}

impl Server {
    /// An empty server of 2018.
    pub(crate) async fn start() -> Self {
        Self::of(Engine::Old).await
    }

    /// An empty server.
    pub(crate) async fn of(engine: Engine) -> Self {
        Self::begun(engine, tempfile::tempdir().unwrap(), None).await
    }

    /// An empty server whose data is on a file system of so many MiB of its own.
    pub(crate) async fn on_small_disk(engine: Engine, mib: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disk = SmallDisk::mount(folder.path().join("data"), mib);
        Self::begun(engine, folder, Some(disk)).await
    }

    async fn begun(engine: Engine, folder: tempfile::TempDir, disk: Option<SmallDisk>) -> Self {
        let lease = Port::lease();
        let port = lease.number();
        let child = spawn(engine, port, folder.path());
        let mut server = Self { child, port, _lease: lease, _disk: disk, folder };
        server.ready().await;
        server
    }

    /// Kills the server.
    pub(crate) fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// Starts the server again with the data that it has, once it was killed.
    pub(crate) async fn restart(&mut self, engine: Engine) {
        self.child = spawn(engine, self.port, self.folder.path());
        self.ready().await;
    }

    async fn ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.child.try_wait().unwrap();
            let log =
                || std::fs::read_to_string(self.folder.path().join("out")).unwrap_or_default();
            assert!(ended.is_none(), "the server ended at once: {}", log());
            if self.http().ping(Duration::from_secs(1)).await.is_ok() {
                return;
            }
            assert!(Instant::now() < deadline, "the server is not ready: {}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn http(&self) -> Http {
        Http::new(self.settings("test", "test").into())
    }

    /// Settings for it as `instance` in its run `run`, with a short timeout.
    pub(crate) fn settings(&self, instance: &str, run: &str) -> ClickHouseSettings {
        settings(self.port, instance, run)
    }

    /// The answer to a question past every connector, without the last line's end.
    #[track_caller]
    pub(crate) fn ask(&self, question: &str) -> impl Future<Output = String> + use<> {
        let (http, question) = (self.http(), question.to_owned());
        async move {
            let answer = http.ask(question.clone(), PATIENCE).await;
            let answer = answer.unwrap_or_else(|failed| panic!("{question}: {}", failed.error));
            answer.trim_end_matches('\n').to_owned()
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Settings for a server on `port`.
pub(crate) fn settings(port: u16, instance: &str, run: &str) -> ClickHouseSettings {
    let url = format!("http://127.0.0.1:{port}").parse().unwrap();
    ClickHouseSettings {
        timeout: Duration::from_secs(3),
        ..ClickHouseSettings::new(url, instance, run)
    }
}

fn spawn(engine: Engine, port: u16, folder: &Path) -> Child {
    let config = configuration(engine, port, folder);
    let log = std::fs::File::create(folder.join("out")).unwrap();
    let mut command = match engine {
        Engine::Old => {
            let mut command = Command::new("clickhouse-server");
            command.arg(format!("--config-file={}", config.display()));
            command
        }
        Engine::Current => {
            let mut command = Command::new("python3");
            let script = "tests/support/clickhouse_server.py";
            command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(script)).arg(config);
            command
        }
    };
    command
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("ClickHouse cannot be started ({error}): tests/setup"))
}

/// The server's configuration, with the users `ada`, whose password is `hush`, and who at the current server may have
/// two threads for an insert at most; `reader`, who may change
/// nothing; and at the current server `writer`, who may only insert, and `teller`, who may also ask what the tables
/// remember, but not read the query log.
fn configuration(engine: Engine, port: u16, folder: &Path) -> PathBuf {
    for name in ["data", "tmp"] {
        std::fs::create_dir_all(folder.join(name)).unwrap();
    }
    let dir = folder.display();
    let user = |name: &str, password: &str, profile: &str, grants: &str| {
        format!(
            "<{name}><password>{password}</password><networks><ip>127.0.0.1</ip></networks>\
             <profile>{profile}</profile><quota>default</quota>{grants}</{name}>"
        )
    };
    let grants = |more: &[&str]| {
        let all =
            ["INSERT, SELECT ON default.*", "KILL QUERY ON *.*", "SELECT ON system.processes"];
        let all = all.iter().chain(more).map(|grant| format!("<query>GRANT {grant}</query>"));
        format!("<grants>{}</grants>", all.collect::<String>())
    };
    let asking =
        ["parts", "tables", "replicas", "merge_tree_settings", "replicated_merge_tree_settings"]
            .map(|table| format!("SELECT ON system.{table}"));
    let asking: Vec<&str> = asking.iter().map(String::as_str).collect();
    let bounds = match engine {
        Engine::Old => "",
        Engine::Current => {
            "<constraints><max_insert_threads><max>2</max></max_insert_threads></constraints>"
        }
    };
    let users = format!(
        "<yandex><profiles><default></default><ada>{bounds}</ada><reader><readonly>1</readonly></reader></profiles><users>{}{}{}{}{}</users>\
         <quotas><default/></quotas></yandex>",
        user("default", "", "default", ""),
        user("ada", "hush", "ada", ""),
        user("reader", "", "reader", ""),
        user("writer", "", "default", &grants(&[])),
        user("teller", "", "default", &grants(&asking)),
    );
    std::fs::write(folder.join("users.xml"), users).unwrap();
    let of_engine = match engine {
        Engine::Old => "<default_database>default</default_database>",
        Engine::Current => {
            "<default_database>local</default_database><query_log><database>system</database>\
             <table>query_log</table><flush_interval_milliseconds>500</flush_interval_milliseconds></query_log>\
             <remote_servers><one><shard><replica><host>127.0.0.1</host><port>1</port></replica></shard></one>\
             </remote_servers>"
        }
    };
    let config = format!(
        "<yandex><logger><level>warning</level><log>{dir}/log</log><errorlog>{dir}/err</errorlog></logger>\
         <http_port>{port}</http_port><listen_host>127.0.0.1</listen_host><path>{dir}/data/</path>\
         <tmp_path>{dir}/tmp/</tmp_path><users_config>{dir}/users.xml</users_config>\
         <mark_cache_size>67108864</mark_cache_size><default_profile>default</default_profile>\
         {of_engine}</yandex>"
    );
    let path = folder.join("config.xml");
    std::fs::write(&path, config).unwrap();
    path
}

/// A network before a server that can lose answers, and be slow.
pub(crate) struct Relay {
    pub(crate) port: u16,
    /// How many answers to inserts are still to be lost.
    lose: std::sync::Arc<std::sync::atomic::AtomicUsize>,
    /// How many milliseconds it takes an answer.
    delay: std::sync::Arc<std::sync::atomic::AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Relay {
    pub(crate) async fn start(server: u16) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let lose = std::sync::Arc::default();
        let losing = std::sync::Arc::clone(&lose);
        let delay = std::sync::Arc::<std::sync::atomic::AtomicU64>::default();
        let slow = std::sync::Arc::clone(&delay);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (losing, slow) = (std::sync::Arc::clone(&losing), std::sync::Arc::clone(&slow));
                drop(tokio::spawn(relayed(client, server, losing, slow)));
            }
        });
        Self { port, lose, delay, task }
    }

    /// Answers take that long from now on.
    pub(crate) fn slow_down(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap();
        self.delay.store(by, std::sync::atomic::Ordering::SeqCst);
    }

    /// Loses the answers to the next `count` inserts, which reach the server.
    pub(crate) fn lose(&self, count: usize) {
        self.lose.store(count, std::sync::atomic::Ordering::SeqCst);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One connection: what was asked last decides whether its answer is lost.
async fn relayed(
    mut client: tokio::net::TcpStream,
    server: u16,
    lose: std::sync::Arc<std::sync::atomic::AtomicUsize>,
    delay: std::sync::Arc<std::sync::atomic::AtomicU64>,
) {
    use std::sync::atomic::Ordering::SeqCst;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let Ok(mut upstream) = tokio::net::TcpStream::connect(("127.0.0.1", server)).await else {
        return;
    };
    let (mut asked, mut said) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut inserts = false;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => match read {
                Ok(len @ 1..) => {
                    let text = String::from_utf8_lossy(&asked[..len]);
                    if text.starts_with("POST") {
                        inserts = text.contains("insert_deduplication_token=");
                    }
                    upstream.write_all(&asked[..len]).await.ok();
                }
                _ => return,
            },
            read = upstream.read(&mut said) => match read {
                Ok(len @ 1..) => {
                    let gone = inserts && lose.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
                    if gone {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(delay.load(SeqCst))).await;
                    client.write_all(&said[..len]).await.ok();
                }
                _ => return,
            },
        }
    }
}

/// A server that answers each statement as `answer` says. Returns its port.
pub(crate) async fn played<F: Future<Output = String> + Send + 'static>(
    answer: impl Fn(String) -> F + Send + Sync + 'static,
) -> u16 {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = Arc::clone(&answer);
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = Arc::clone(&answer);
                async move {
                    let body = request.into_body().collect().await?.to_bytes();
                    let text = answer(String::from_utf8_lossy(&body).into_owned()).await;
                    Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(text))))
                }
            });
            tokio::spawn(server::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    port
}

/// Polls until `done`, or fails.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !done().await {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The bytes of a reply, without its envelope.
pub(crate) fn rows(reply: &Bytes) -> String {
    String::from_utf8_lossy(&super::protocol::wire::parts_of(reply).1).into_owned()
}
