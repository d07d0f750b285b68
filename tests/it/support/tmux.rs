//! A real terminal: tmux, with a server of its own for each test.

use std::io;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::daemon::{Daemon, FUSEBOX};
use super::poll::look_for;
use super::proc::require;

const DEADLINE: Duration = Duration::from_secs(20);

/// A terminal in which a shell runs; its server is killed when this is dropped.
pub(crate) struct Terminal {
    program: PathBuf,
    /// The folder of the server's socket.
    folder: TempDir,
}

impl Terminal {
    /// A terminal of that size with a shell, whose `fusebox` speaks to `daemon`.
    pub(crate) fn open(daemon: &Daemon, columns: u16, lines: u16) -> Self {
        let program = require("tmux", "tmux");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let terminal = Self { program, folder };
        // The prompt is one that no command prints.
        let shell = format!(
            "exec env -i PATH='{}' HOME='{}' TERM=\"$TERM\" LC_ALL=C.UTF-8 FUSEBOX_TEST_HOOKS=1 \
             FUSEBOX_SOCKET='{}' PS1='ready> ' sh",
            std::env::var("PATH").unwrap_or_default(),
            daemon.folder().display(),
            daemon.socket().display()
        );
        let (columns, lines) = (columns.to_string(), lines.to_string());
        terminal.tmux(&["new-session", "-d", "-x", &columns, "-y", &lines, &shell]);
        terminal.shows("the shell is there", &["ready>"]);
        terminal
    }

    /// Types a command and Enter.
    pub(crate) fn run(&self, command: &str) {
        self.tmux(&["send-keys", "-l", command]);
        self.press("Enter");
    }

    /// Types `fusebox` with these arguments, and then what its exit code was.
    pub(crate) fn fusebox(&self, arguments: &str) {
        self.run(&format!("{FUSEBOX} {arguments}; echo \"exit=$?\""));
    }

    /// Presses keys by tmux's names for them.
    pub(crate) fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    /// Makes it larger or smaller.
    pub(crate) fn resize(&self, columns: u16, lines: u16) {
        let (columns, lines) = (columns.to_string(), lines.to_string());
        self.tmux(&["resize-window", "-x", &columns, "-y", &lines]);
    }

    /// The text on the screen.
    pub(crate) fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until the screen shows all of `parts`, and returns it.
    #[track_caller]
    pub(crate) fn shows(&self, what: &str, parts: &[&str]) -> String {
        let mut screen = String::new();
        let found = look_for(DEADLINE, || {
            screen = self.screen();
            parts.iter().all(|part| screen.contains(part)).then_some(())
        });
        assert!(found.is_some(), "{what}: {parts:?} are not all on the screen\n{screen}");
        screen
    }

    /// One of tmux's variables of the pane, such as `alternate_on`.
    pub(crate) fn variable(&self, name: &str) -> String {
        self.tmux(&["display-message", "-p", &format!("#{{{name}}}")]).trim().to_owned()
    }

    /// The id of the one process that the shell runs.
    pub(crate) fn process(&self) -> i32 {
        let shell = self.variable("pane_pid");
        let children = Command::new(require("pgrep", "procps")).args(["-P", &shell]).output();
        let children = String::from_utf8(children.expect("pgrep runs").stdout).expect("numbers");
        children.trim().parse().unwrap_or_else(|_| panic!("one process in {children:?}"))
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("tmux runs");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["-u", "-f", "/dev/null", "-S"])
            .arg(self.socket())
            .args(arguments)
            .env_remove("TMUX")
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null());
        command
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("tmux")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended with its last pane.
        drop::<io::Result<Output>>(self.command(&["kill-server"]).output());
    }
}
