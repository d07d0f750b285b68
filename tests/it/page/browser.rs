//! A headless Chromium that the test controls, through `tests/support/page.mjs`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::proc::require;

/// The longest that a page may take to show what it should.
const PATIENCE_MS: u64 = 30_000;

/// A browser with one page. Closed when dropped.
pub(crate) struct Browser {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// The folder of Chromium's profile.
    _folder: TempDir,
}

impl Browser {
    /// Starts a browser, or fails the test with what installs it.
    #[track_caller]
    pub(crate) fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for package in ["playwright-core", "axe-core"] {
            let there = root.join("node_modules").join(package).try_exists().unwrap_or(false);
            assert!(there, "{package} is not installed: run tests/setup");
        }
        let folder = tempfile::Builder::new().prefix("fusebox-browser-").tempdir();
        let folder = folder.expect("a temporary folder");
        let mut process = Command::new(require("node", "nodejs"))
            .arg(root.join("tests/support/page.mjs"))
            .arg(require("chromium", "chromium"))
            .env("TMPDIR", folder.path())
            .env("HOME", folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node starts");
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().expect("its output is a pipe"));
        let mut browser = Self { process, input, output, _folder: folder };
        let ready = browser.line();
        assert_eq!(ready, json!({ "ready": true }), "Chromium did not start");
        browser
    }

    /// A browser that has opened `url` in a window of that width.
    #[track_caller]
    pub(crate) fn at(url: &str, width: u32, scheme: &str) -> Self {
        let mut browser = Self::start();
        browser.look(width, scheme);
        browser.tell("open", json!({ "url": url }));
        browser
    }

    /// Changes the window's width and the colour scheme.
    #[track_caller]
    pub(crate) fn look(&mut self, width: u32, scheme: &str) {
        self.tell("look", json!({ "width": width, "height": 900, "scheme": scheme }));
    }

    /// Waits until an element of `selector` with a text that matches `text` is to be seen.
    #[track_caller]
    pub(crate) fn sees(&mut self, selector: &str, text: &str) {
        let how = json!({ "selector": selector, "text": text, "within": PATIENCE_MS });
        self.tell("sees", how);
    }

    /// How many elements of `selector` are to be seen.
    #[track_caller]
    pub(crate) fn count(&mut self, selector: &str) -> u64 {
        self.tell("count", json!({ "selector": selector })).as_u64().expect("a number")
    }

    /// The text of the first element of `selector`.
    #[track_caller]
    pub(crate) fn text(&mut self, selector: &str) -> String {
        let text = self.tell("text", json!({ "selector": selector }));
        text.as_str().expect("a text").to_owned()
    }

    /// Clicks an element of `selector` with that text.
    #[track_caller]
    pub(crate) fn click(&mut self, selector: &str, text: &str) {
        self.tell("click", json!({ "selector": selector, "text": text }));
    }

    /// Types into the field `selector`.
    #[track_caller]
    pub(crate) fn fill(&mut self, selector: &str, text: &str) {
        self.tell("fill", json!({ "selector": selector, "text": text }));
    }

    /// Presses a key.
    #[track_caller]
    pub(crate) fn press(&mut self, key: &str) {
        self.tell("press", json!({ "key": key }));
    }

    /// Sends the browser any command, and fails the test if it cannot.
    #[track_caller]
    pub(crate) fn tell(&mut self, what: &str, how: Value) -> Value {
        let mut command = how;
        command["what"] = what.into();
        let input = self.input.as_mut().expect("the browser runs");
        writeln!(input, "{command}").expect("the browser listens");
        let mut answer = self.line();
        assert!(answer.get("error").is_none(), "{what} {command}: {}", text_of(&answer["error"]));
        answer["answer"].take()
    }

    #[track_caller]
    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the browser answers");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("the browser ended: {e}: {line:?}"))
    }

    /// Fails the test unless the accessibility rules are kept and nothing sticks out of the window.
    #[track_caller]
    pub(crate) fn assert_accessible(&mut self, what: &str) {
        let broken = self.tell("axe", json!({}));
        assert_eq!(broken, json!([]), "{what}: {broken:#}");
        assert_eq!(self.tell("overflow", json!({})), 0, "{what}: wider than its window");
    }

    /// Fails the test if the browser had anything to complain about but `expected`, or the page asked
    /// for anything outside `origin`.
    #[track_caller]
    pub(crate) fn assert_well_behaved(&mut self, origin: &str, expected: impl Fn(&str) -> bool) {
        let complaints = self.tell("complaints", json!({}));
        for complaint in complaints.as_array().expect("a list") {
            let complaint = text_of(complaint);
            assert!(expected(&complaint), "the browser complains: {complaint}");
        }
        let requests = self.tell("requests", json!({}));
        let requests = requests.as_array().expect("a list");
        assert!(!requests.is_empty());
        for request in requests {
            assert!(text_of(request).starts_with(origin), "a request beyond the origin: {request}");
        }
    }

    /// Takes a picture if the environment names a folder for them.
    pub(crate) fn picture(&mut self, name: &str) {
        if let Some(folder) = std::env::var_os("FUSEBOX_TEST_PICTURES") {
            let path = Path::new(&folder).join(format!("{name}.png"));
            self.tell("shot", json!({ "path": path.to_str().expect("a path of UTF-8") }));
        }
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The end of its input ends it.
        drop(self.input.take());
        self.process.wait().ok();
    }
}
