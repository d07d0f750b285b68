//! A real OTLP collector (rotel) that can be killed, frozen and restarted, and what it received.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::poll::wait_for;
use super::port::Port;
use super::proc::{freeze, send, venv_python};

const START_DEADLINE: Duration = Duration::from_secs(20);
/// Longer than a batch is gathered and an export retried.
const ARRIVAL_DEADLINE: Duration = Duration::from_secs(20);

/// A span as the collector received it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Span {
    pub(crate) trace_id: String,
    pub(crate) id: String,
    /// Empty for none.
    pub(crate) parent: String,
    pub(crate) name: String,
    /// `SERVER`, `CLIENT`, `PRODUCER`, `CONSUMER` or `INTERNAL`.
    pub(crate) kind: String,
    /// `UNSET`, `OK` or `ERROR`.
    pub(crate) status: String,
    /// Values without their type.
    pub(crate) attributes: BTreeMap<String, String>,
    /// Trace and span of each link.
    pub(crate) links: Vec<(String, String)>,
    /// Names of its events.
    pub(crate) events: Vec<String>,
}

impl Span {
    /// The attribute; empty if there is none.
    pub(crate) fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

/// A collector on two loopback ports. Killed when dropped.
pub(crate) struct Collector {
    folder: TempDir,
    grpc: Port,
    http: Port,
    process: Option<Child>,
}

impl Collector {
    /// Starts a collector and waits until it listens.
    pub(crate) fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("fusebox-collector-").tempdir();
        let folder = folder.expect("a temporary folder");
        let mut collector =
            Self { folder, grpc: Port::lease(), http: Port::lease(), process: None };
        collector.restart();
        collector
    }

    /// The address at which it takes OTLP over gRPC.
    pub(crate) fn grpc_url(&self) -> String {
        format!("http://{}", self.grpc.address())
    }

    /// The port at which it takes OTLP over gRPC.
    pub(crate) fn grpc_port(&self) -> u16 {
        self.grpc.number()
    }

    /// The port at which it takes OTLP over HTTP.
    pub(crate) fn http_port(&self) -> u16 {
        self.http.number()
    }

    /// The address at which it takes OTLP over HTTP.
    pub(crate) fn http_url(&self) -> String {
        format!("http://{}", self.http.address())
    }

    /// Kills it.
    pub(crate) fn kill_9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("the collector is ours to kill");
            process.wait().expect("the collector can be waited for");
        }
    }

    /// Starts it again on its ports, killing it first if it runs.
    pub(crate) fn restart(&mut self) {
        self.kill_9();
        let script = "import os, rotel, sys; \
                      os.execv(os.path.join(os.path.dirname(rotel.__file__), 'rotel-agent'), sys.argv)";
        let log = File::options().create(true).append(true).open(self.log());
        let log = log.expect("the collector's log");
        let process = Command::new(venv_python())
            .args(["-c", script, "start", "--exporter", "blackhole"])
            .args(["--debug-log", "traces", "--debug-log-verbosity", "detailed"])
            .args(["--otlp-grpc-endpoint", &self.grpc.address().to_string()])
            .args(["--otlp-http-endpoint", &self.http.address().to_string()])
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("a second handle to the log"))
            .stdout(log)
            .spawn();
        self.process = Some(process.expect("the collector starts"));
        wait_for("the collector listens", START_DEADLINE, || {
            let up = |port: &Port| TcpStream::connect(port.address()).is_ok();
            (up(&self.grpc) && up(&self.http)).then_some(())
        });
    }

    /// Freezes it: it accepts connections and never answers.
    pub(crate) fn freeze(&self) {
        freeze(self.process.as_ref().expect("the collector runs"));
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        send(self.process.as_ref().expect("the collector runs"), Signal::SIGCONT);
    }

    /// Everything that it wrote down.
    pub(crate) fn text(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// The spans that it has received, in the order of their arrival.
    pub(crate) fn spans(&self) -> Vec<Span> {
        read(&self.text())
    }

    /// Waits for a span.
    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, is: impl Fn(&Span) -> bool) -> Span {
        wait_for(what, ARRIVAL_DEADLINE, || self.spans().into_iter().find(&is))
    }

    fn log(&self) -> std::path::PathBuf {
        self.folder.path().join("log")
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.kill_9();
        if std::thread::panicking() {
            let spans = self.spans();
            println!("--- the collector has {} spans ---\n{spans:#?}", spans.len());
        }
    }
}

/// The spans of rotel's detailed log.
fn read(log: &str) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let mut within = "";
    for line in log.lines().map(str::trim) {
        if line.starts_with("Span #") {
            spans.push(Span::default());
            within = "span";
        } else if line.starts_with("ResourceSpans #") {
            within = "resource";
        }
        let Some(span) = spans.last_mut().filter(|_| within != "resource") else { continue };
        if line.starts_with("SpanLink #") {
            within = "link";
            span.links.push(Default::default());
        } else if line.starts_with("SpanEvent #") {
            within = "event";
        }
        let Some((name, value)) = line.trim_start_matches("-> ").split_once(':') else { continue };
        let (name, value) = (name.trim(), value.trim());
        match (within, name) {
            ("span", "Trace ID") => value.clone_into(&mut span.trace_id),
            ("span", "Parent ID") => value.clone_into(&mut span.parent),
            ("span", "ID") => value.clone_into(&mut span.id),
            ("span", "Name") => value.clone_into(&mut span.name),
            ("span", "Kind") => span.kind = value.replace("SPAN_KIND_", ""),
            ("span", "Status code") => span.status = value.replace("STATUS_CODE_", ""),
            ("link", "Trace ID") => {
                span.links.last_mut().expect("a link began").0 = value.to_owned();
            }
            ("link", "ID") => span.links.last_mut().expect("a link began").1 = value.to_owned(),
            ("event", "Name") => span.events.push(value.to_owned()),
            ("span", _) if line.starts_with("-> ") => {
                let plain = value.split_once('(').map_or(value, |(_, text)| text);
                let plain = plain.strip_suffix(')').unwrap_or(plain);
                span.attributes.insert(name.to_owned(), plain.to_owned());
            }
            _ => {}
        }
    }
    spans
}
