//! A real Prometheus that scrapes a daemon and evaluates rules, asked over its own API; promtool; and plain
//! GETs over TCP.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::poll::wait_for;
use super::port::Port;
use super::proc::require;

const START_DEADLINE: Duration = Duration::from_secs(20);
/// Between two scrapes, and two evaluations of the rules.
const INTERVAL: &str = "400ms";

/// A response to a plain GET.
pub(crate) struct Got {
    pub(crate) status: u16,
    /// The head, in small letters.
    pub(crate) head: String,
    pub(crate) body: String,
}

/// GETs `path` over TCP. HTTP/1.0, so that the body ends with the connection.
pub(crate) fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Option<Got> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(START_DEADLINE)).expect("a timeout");
    let mut request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n");
    for (name, value) in headers {
        request.extend([name, ": ", value, "\r\n"]);
    }
    stream.write_all(request.as_bytes()).and_then(|()| stream.write_all(b"\r\n")).ok()?;
    let mut response = String::new();
    stream.read_to_string(&mut response).ok()?;
    let (head, body) = response.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Got { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
}

/// Runs promtool with `input` on its standard input.
pub(crate) fn promtool(arguments: &[&str], input: &str) -> Output {
    let mut process = Command::new(require("promtool", "prometheus"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool starts");
    let mut stdin = process.stdin.take().expect("its input is a pipe");
    // What it says to a page is less than a pipe holds, so that nobody waits for the other.
    stdin.write_all(input.as_bytes()).ok();
    drop(stdin);
    process.wait_with_output().expect("promtool can be waited for")
}

/// A Prometheus on a loopback port and a folder of its own, with one job. Killed when dropped.
pub(crate) struct Prometheus {
    folder: TempDir,
    port: Port,
    process: Child,
}

/// One series of a query's result: its labels, and its samples as (Unix seconds, value).
pub(crate) struct Series {
    pub(crate) labels: Value,
    pub(crate) samples: Vec<(f64, f64)>,
}

impl Prometheus {
    /// Starts one that scrapes `target` as the job `fusebox` and evaluates `rules`, and waits until it is
    /// ready.
    pub(crate) fn scraping(target: SocketAddr, rules: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("fusebox-prometheus-").tempdir();
        let folder = folder.expect("a temporary folder");
        let port = Port::lease();
        let settings = format!(
            "global: {{ scrape_interval: {INTERVAL}, scrape_timeout: {INTERVAL}, evaluation_interval: {INTERVAL} }}\n\
             rule_files: [rules.yml]\n\
             scrape_configs:\n  - {{ job_name: fusebox, static_configs: [{{ targets: [\"{target}\"] }}] }}\n"
        );
        fs::write(folder.path().join("rules.yml"), rules).expect("its rules");
        fs::write(folder.path().join("prometheus.yml"), settings).expect("its configuration");
        let log = File::create(folder.path().join("log")).expect("its log");
        let process = Command::new(require("prometheus", "prometheus"))
            .arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={}", port.address()))
            .arg("--enable-feature=exemplar-storage")
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("a second handle to its log"))
            .stdout(log)
            .spawn()
            .expect("prometheus starts");
        let mut prometheus = Self { folder, port, process };
        wait_for("prometheus is ready", START_DEADLINE, || {
            let ended = prometheus.process.try_wait().expect("prometheus can be asked");
            assert!(ended.is_none(), "prometheus ended at once:\n{}", prometheus.log());
            get(prometheus.port.address(), "/-/ready", &[]).filter(|got| got.status == 200)
        });
        prometheus
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> impl AsRef<Path> {
        self.folder.path().join("log")
    }

    /// The `data` of an answer of its API.
    #[track_caller]
    pub(crate) fn api(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let pairs: Vec<String> =
            parameters.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        let path = format!("/api/v1/{path}?{}", pairs.join("&"));
        let got = get(self.port.address(), &path, &[]);
        let got = got.unwrap_or_else(|| panic!("no answer to {path}:\n{}", self.log()));
        let mut answer: Value = serde_json::from_str(&got.body).expect("its API speaks JSON");
        assert_eq!(answer["status"], "success", "{parameters:?}: {answer}");
        answer["data"].take()
    }

    /// What `expression` is now: the series of a vector with one sample each, of a range with all of them.
    #[track_caller]
    pub(crate) fn query(&self, expression: &str) -> Vec<Series> {
        let sample = |pair: &Value| {
            let value = pair[1].as_str().and_then(|text| text.parse().ok());
            (pair[0].as_f64().expect("a time"), value.expect("a value"))
        };
        let answer = self.api("query", &[("query", expression)]);
        let result = answer["result"].as_array();
        let result = result.unwrap_or_else(|| panic!("{expression}: {answer}"));
        let series = result.iter().map(|found| Series {
            labels: found["metric"].clone(),
            samples: match found["values"].as_array() {
                Some(values) => values.iter().map(sample).collect(),
                None => vec![sample(&found["value"])],
            },
        });
        series.collect()
    }

    /// Waits until `expression` selects something.
    #[track_caller]
    pub(crate) fn wait_until(&self, expression: &str, deadline: Duration) -> Vec<Series> {
        wait_for(expression, deadline, || {
            Some(self.query(expression)).filter(|found| !found.is_empty())
        })
    }

    /// The alerts called `name`, pending and firing ones.
    #[track_caller]
    pub(crate) fn alerts(&self, name: &str) -> Vec<Value> {
        let mut data = self.api("alerts", &[]);
        let Value::Array(alerts) = data["alerts"].take() else { panic!("no alerts in {data}") };
        alerts.into_iter().filter(|alert| alert["labels"]["alertname"] == name).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        if std::thread::panicking() {
            println!("--- prometheus' log ---\n{}", self.log());
        }
    }
}

fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}
