//! A Firestore emulator that can be killed: Google's if its SDK is installed, and the npm
//! package's. Both keep everything in memory. What only Google's can show (atomic commits, resume tokens)
//! asks for it by name; [`emulators`] says which there are.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::poll::wait_for;
use super::port::Port;
use super::proc::{freeze, require, send};

const START_DEADLINE: Duration = Duration::from_secs(60);
const JAR: &str = "platform/cloud-firestore-emulator/cloud-firestore-emulator.jar";

/// Which emulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Emulator {
    /// Google's own.
    Google,
    /// `@firestore-emulator/server`: its commits are not atomic, its streams carry no resume tokens.
    Npm,
}

/// The emulators that this machine has; the npm package's is always among them. Tells which.
pub(crate) fn emulators() -> Vec<Emulator> {
    let found = jar().map(|jar| {
        println!("Google's emulator: {}", jar.display());
        Emulator::Google
    });
    if found.is_none() {
        println!("Google's emulator was not found: what only it can show was not run");
    }
    found.into_iter().chain([Emulator::Npm]).collect()
}

/// An emulator on a loopback port. Killed when dropped.
pub(crate) struct Firestore {
    emulator: Emulator,
    folder: TempDir,
    port: Port,
    process: Option<Child>,
}

impl Firestore {
    /// Starts an empty emulator and waits until it listens.
    pub(crate) fn start(emulator: Emulator) -> Self {
        let folder = tempfile::Builder::new().prefix("fusebox-firestore-").tempdir();
        let folder = folder.expect("a temporary folder");
        let mut server = Self { emulator, folder, port: Port::lease(), process: None };
        server.restart();
        server
    }

    /// The emulator's address as a backend's `url`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.port.address())
    }

    /// The emulator's TCP port, for a relay in front of it.
    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    /// The emulator's process id.
    #[track_caller]
    pub(crate) fn id(&self) -> u32 {
        self.process.as_ref().expect("the emulator runs").id()
    }

    /// Freezes the emulator: it accepts connections and never answers.
    #[track_caller]
    pub(crate) fn freeze(&self) {
        freeze(self.process.as_ref().expect("the emulator runs"));
    }

    /// Lets a frozen emulator go on with what it was doing.
    #[track_caller]
    pub(crate) fn thaw(&self) {
        send(self.process.as_ref().expect("the emulator runs"), Signal::SIGCONT);
    }

    /// Kills the emulator, and with it all documents.
    pub(crate) fn kill_9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("the emulator is ours to kill");
            process.wait().expect("the emulator can be waited for");
        }
    }

    /// Starts the emulator, empty, on the same port, killing it first if it runs.
    pub(crate) fn restart(&mut self) {
        self.kill_9();
        let mut process = self.spawn();
        wait_for("the emulator listens", START_DEADLINE, || {
            let ended = process.try_wait().expect("the emulator can be asked");
            assert!(ended.is_none(), "the emulator ended at once:\n{}", self.log());
            TcpStream::connect(self.port.address()).ok()
        });
        self.process = Some(process);
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn spawn(&self) -> Child {
        let log = File::create(self.folder.path().join("log")).expect("the emulator's log");
        let port = self.port.number();
        let mut command = match self.emulator {
            Emulator::Google => {
                let mut command = Command::new(require("java", "default-jre-headless"));
                command
                    .args(["-Xmx512m", "-XX:TieredStopAtLevel=1", "-cp"])
                    .arg(jar().expect("Google's emulator is installed"))
                    .arg("com.google.cloud.datastore.emulator.firestore.CloudFirestore")
                    .args(["start", "--host=127.0.0.1", &format!("--port={port}")]);
                command
            }
            Emulator::Npm => {
                let root = Path::new(env!("CARGO_MANIFEST_DIR"));
                let modules = root.join("node_modules/@firestore-emulator/server");
                let there = modules.try_exists().unwrap_or(false);
                assert!(there, "the npm emulator is not installed: run tests/setup");
                let mut command = Command::new(require("node", "nodejs"));
                command
                    .arg(root.join("tests/support/firestore_emulator.mjs"))
                    .arg(port.to_string());
                command
            }
        };
        command
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("a second handle to the log"))
            .stdout(log)
            .spawn()
            .expect("the emulator starts")
    }
}

impl Drop for Firestore {
    fn drop(&mut self) {
        self.kill_9();
    }
}

/// Google's emulator: the one that `FUSEBOX_TEST_FIRESTORE_JAR` names, or one in an SDK in its usual place.
fn jar() -> Option<PathBuf> {
    let named = std::env::var_os("FUSEBOX_TEST_FIRESTORE_JAR").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join("google-cloud-sdk"));
    let sdks =
        ["/usr/lib/google-cloud-sdk", "/usr/share/google-cloud-sdk", "/opt/google-cloud-sdk"];
    let sdks = sdks.iter().map(PathBuf::from).chain(home).map(|sdk| sdk.join(JAR));
    named.into_iter().chain(sdks).find(|jar| jar.try_exists().unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::{Firestore, emulators};

    #[test]
    fn emulators_start_and_start_again_on_their_port() {
        for emulator in emulators() {
            let mut firestore = Firestore::start(emulator);
            let (port, process) = (firestore.port(), firestore.id());
            firestore.restart();
            assert_eq!(firestore.port(), port);
            assert_ne!(firestore.id(), process);
        }
    }
}
