//! A real server of 2018 for tests, with a port and a folder of its own, gone with the value.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{ClickHouseSettings, http::Http};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A server that runs until it is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    pub(crate) folder: tempfile::TempDir,
}

impl Server {
    /// An empty server.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let child = spawn(port, folder.path());
        let mut server = Self { child, port, folder };
        server.ready().await;
        server
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
        self.child.kill().ok();
        self.child.wait().ok();
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

/// A port on which nobody listens.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn spawn(port: u16, folder: &Path) -> Child {
    let config = configuration(port, folder);
    let log = std::fs::File::create(folder.join("out")).unwrap();
    Command::new("clickhouse-server")
        .arg(format!("--config-file={}", config.display()))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| {
            panic!("clickhouse-server cannot be started ({error}): tests/setup")
        })
}

/// The server's configuration, with the user `ada`, whose password is `hush`, and `reader`, who may
/// change nothing.
fn configuration(port: u16, folder: &Path) -> PathBuf {
    for name in ["data", "tmp"] {
        std::fs::create_dir_all(folder.join(name)).unwrap();
    }
    let dir = folder.display();
    let user = |name: &str, password: &str, profile: &str| {
        format!(
            "<{name}><password>{password}</password><networks><ip>127.0.0.1</ip></networks>\
             <profile>{profile}</profile><quota>default</quota></{name}>"
        )
    };
    let users = format!(
        "<yandex><profiles><default></default><reader><readonly>1</readonly></reader></profiles><users>{}{}{}</users>\
         <quotas><default/></quotas></yandex>",
        user("default", "", "default"),
        user("ada", "hush", "default"),
        user("reader", "", "reader"),
    );
    std::fs::write(folder.join("users.xml"), users).unwrap();
    let config = format!(
        "<yandex><logger><level>warning</level><log>{dir}/log</log><errorlog>{dir}/err</errorlog></logger>\
         <http_port>{port}</http_port><listen_host>127.0.0.1</listen_host><path>{dir}/data/</path>\
         <tmp_path>{dir}/tmp/</tmp_path><users_config>{dir}/users.xml</users_config>\
         <mark_cache_size>67108864</mark_cache_size><default_profile>default</default_profile>\
         <default_database>default</default_database></yandex>"
    );
    let path = folder.join("config.xml");
    std::fs::write(&path, config).unwrap();
    path
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
    String::from_utf8_lossy(&super::wire::parts_of(reply).1).into_owned()
}
