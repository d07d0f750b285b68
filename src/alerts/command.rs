//! One run of the operator's command: what it gets, for how long, and how it ended.

use std::{process::Stdio, time::Duration};

use fusebox_state::{UnixMillis, Words};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::timeout,
};

use super::ledger::Notice;

/// How long it may take; then it is killed, with what it has started.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// How long its last words are waited for once it has ended: something that it has started may hold the pipe.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Bytes of its standard error that are kept.
const KEPT: usize = 1_000;

/// The variables of the daemon's environment that it gets. Others may be secrets.
const PASSED_ON: [&str; 6] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"];

/// What a command gets on its standard input, as one line.
#[derive(serde::Serialize)]
struct Line<'a> {
    alert: &'a str,
    state: &'a str,
    severity: &'a str,
    backend: Option<&'a str>,
    subject: Option<&'a str>,
    message: &'a str,
    since: UnixMillis,
    at: UnixMillis,
    chaos: bool,
}

/// What else a command is to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Around {
    /// The wall clock.
    pub(crate) at: UnixMillis,
    /// Whether faults on purpose are set.
    pub(crate) chaos: bool,
}

/// Runs `argv` for `notice`, and waits for its end for at most [`PATIENCE`].
///
/// # Errors
/// How it failed: what it wrote to its standard error is for admins alone.
pub(crate) async fn run(argv: &[String], notice: &Notice, around: Around) -> Result<(), Words> {
    let Some((program, arguments)) = argv.split_first() else { return Ok(()) };
    let state = if notice.is_firing { "firing" } else { "resolved" };
    let (kind, backend) = (notice.key.kind, notice.key.backend.as_deref());
    let line = Line {
        alert: kind.name,
        state,
        severity: kind.severity.as_str(),
        backend,
        subject: notice.key.subject.as_deref(),
        message: &notice.message,
        since: notice.since,
        at: around.at,
        chaos: around.chaos,
    };
    let mut input = serde_json::to_vec(&line).unwrap_or_default();
    input.push(b'\n');
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .env("FUSEBOX_ALERT", kind.name)
        .env("FUSEBOX_STATE", state)
        .env("FUSEBOX_SEVERITY", kind.severity.as_str())
        .env("FUSEBOX_BACKEND", backend.unwrap_or_default())
        .env("FUSEBOX_MESSAGE", notice.message.replace('\0', " "))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0);
    // Reading the program may have to wait for a disk. Whoever has left by then has what was started killed.
    let spawned = tokio::task::spawn_blocking(move || command.spawn().map(Running)).await;
    let spawned = spawned.map_err(|error| Words::ours(error.to_string()))?;
    let running = spawned.map_err(|error| {
        let said = "it cannot be started";
        Words::quoting(said, format!("{said}: {program}: {error}"))
    })?;
    running.finish(&input).await
}

/// A command that runs. If this is dropped first, it is killed with what it has started.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has no id any more once it has ended and been waited for.
        let id = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(id) = id {
            // A group that has ended is what is wanted.
            killpg(Pid::from_raw(id), Signal::SIGKILL).ok();
        }
    }
}

impl Running {
    /// Hands `input` over, and waits for the end.
    async fn finish(mut self, input: &[u8]) -> Result<(), Words> {
        let (stdin, stderr) = (self.0.stdin.take(), self.0.stderr.take());
        let write = async {
            if let Some(mut stdin) = stdin {
                // One that does not read its input is not at fault.
                stdin.write_all(input).await.ok();
            }
        };
        let mut said = Vec::new();
        let status = {
            let mut read = std::pin::pin!(read(stderr, &mut said));
            let ended = async {
                let wait = async { tokio::join!(write, self.0.wait()).1 };
                let mut wait = std::pin::pin!(wait);
                tokio::select! {
                    status = &mut wait => {
                        // If it takes longer, what there is will do.
                        timeout(LAST_WORDS, read).await.ok();
                        status
                    }
                    () = &mut read => wait.await,
                }
            };
            timeout(PATIENCE, ended).await
        };
        let said = String::from_utf8_lossy(&said);
        let said = said.trim();
        let status = match status {
            Ok(Ok(status)) if status.success() => return Ok(()),
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it was killed after {} s", PATIENCE.as_secs()),
        };
        if said.is_empty() {
            return Err(Words::ours(status));
        }
        Err(Words::quoting(status.clone(), format!("{status}: {said}")))
    }
}

/// Reads to the end, and keeps the beginning.
async fn read(from: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let room = KEPT.saturating_sub(kept.len());
        kept.extend(buffer.iter().take(count.min(room)));
    }
}
