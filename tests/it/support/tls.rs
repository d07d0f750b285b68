//! TLS in front of real servers, with authorities and certificates of the test's own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use super::poll::wait_for;
use super::port::Port;
use super::proc::{require, venv_python};

const START_DEADLINE: Duration = Duration::from_secs(30);

/// An authority that signs certificates.
pub(crate) struct Authority {
    folder: Arc<TempDir>,
}

/// A server's certificate and its key.
pub(crate) struct Certificate {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
    _folder: Arc<TempDir>,
}

impl Authority {
    /// An authority that nobody knows yet.
    pub(crate) fn new(name: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("fusebox-tls-").tempdir();
        let authority = Self { folder: Arc::new(folder.expect("a temporary folder")) };
        authority.openssl(&format!(
            "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} \
             -keyout ca.key -out ca.crt"
        ));
        authority
    }

    /// What who trusts it is given.
    pub(crate) fn file(&self) -> String {
        self.folder.path().join("ca.crt").to_str().expect("temporary paths are UTF-8").to_owned()
    }

    /// A certificate for loopback.
    pub(crate) fn sign(&self) -> Certificate {
        self.sign_for("IP:127.0.0.1", 2)
    }

    /// A certificate for `name`, such as `DNS:example.test`, good for so many days.
    pub(crate) fn sign_for(&self, name: &str, days: i32) -> Certificate {
        let file = format!("{}.{days}", name.replace(':', "-"));
        self.openssl(&format!(
            "openssl req -newkey rsa:2048 -nodes -subj /CN=server -keyout {file}.key -out {file}.csr \
             && printf 'subjectAltName={name}\\nbasicConstraints=CA:FALSE\\n' > {file}.ext \
             && openssl x509 -req -days {days} -in {file}.csr -CA ca.crt -CAkey ca.key \
             -set_serial 1 -extfile {file}.ext -out {file}.crt"
        ));
        let path = |end: &str| self.folder.path().join(format!("{file}.{end}"));
        Certificate { chain: path("crt"), key: path("key"), _folder: Arc::clone(&self.folder) }
    }

    /// The key of a service account whose tokens come from `tokens`.
    pub(crate) fn service_account(&self, tokens: &TokenServer) -> String {
        let key = std::fs::read_to_string(self.folder.path().join("ca.key")).expect("a key");
        let account = json!({
            "type": "service_account", "client_email": "fusebox@example.test", "private_key": key,
            "token_uri": format!("http://127.0.0.1:{}/token", tokens.port),
        });
        let file = self.folder.path().join("account.json");
        std::fs::write(&file, account.to_string()).expect("the account's file");
        file.to_str().expect("temporary paths are UTF-8").to_owned()
    }

    fn openssl(&self, script: &str) {
        require("openssl", "openssl");
        let output =
            Command::new("sh").args(["-c", script]).current_dir(self.folder.path()).output();
        let output = output.expect("a shell");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// OpenSSL in front of a server on loopback. Killed when dropped.
pub(crate) struct TlsFront {
    port: Port,
    server_port: u16,
    process: Option<Child>,
}

impl TlsFront {
    /// Speaks TLS as `certificate` says, and passes on to `server_port`.
    pub(crate) fn start(server_port: u16, certificate: &Certificate) -> Self {
        let mut front = Self { port: Port::lease(), server_port, process: None };
        front.restart(certificate);
        front
    }

    /// Breaks every connection, and is another server from now on as far as its certificate goes.
    pub(crate) fn restart(&mut self, certificate: &Certificate) {
        self.kill_9();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/tls_front.py");
        let mut process = Command::new(venv_python())
            .arg(script)
            .args([self.port.number().to_string(), self.server_port.to_string()])
            .args([&certificate.chain, &certificate.key])
            .stdin(Stdio::null())
            .spawn()
            .expect("Python starts");
        wait_for("the front listens", START_DEADLINE, || {
            let ended = process.try_wait().expect("the front can be asked");
            assert!(ended.is_none(), "the front ended at once: {ended:?}");
            TcpStream::connect(self.port.address()).ok()
        });
        self.process = Some(process);
    }

    /// Kills the front: its port refuses.
    pub(crate) fn kill_9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("the front is ours to kill");
            process.wait().expect("the front can be waited for");
        }
    }

    /// Its address, such as `127.0.0.1:20001`.
    pub(crate) fn address(&self) -> String {
        self.port.address().to_string()
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.kill_9();
    }
}

/// Gives whoever asks for a token the emulators' own.
pub(crate) struct TokenServer {
    port: u16,
    given: Arc<AtomicUsize>,
}

impl TokenServer {
    /// Answers on loopback until the test's process ends.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let given = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&given);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // Who breaks off asks again.
                if answer_token(&stream).is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { port, given }
    }

    /// How many tokens it has given.
    pub(crate) fn given(&self) -> usize {
        self.given.load(Ordering::Relaxed)
    }
}

fn answer_token(stream: &TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim_end().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut asked = vec![0; length];
    reader.read_exact(&mut asked)?;
    let token = json!({ "access_token": "owner", "token_type": "Bearer", "expires_in": 3_600 });
    let token = token.to_string();
    write!(
        &*stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{token}",
        token.len()
    )
}
