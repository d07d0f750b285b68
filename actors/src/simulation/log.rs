//! What happened, and its hash.

use std::collections::VecDeque;

use fusebox_state::digest;

/// Lines that are kept to be printed.
const KEPT: usize = 60;

/// See the [module](self).
#[derive(Default)]
pub(super) struct Log {
    hash: u64,
    /// The instant of `lines`, in milliseconds since the beginning.
    instant: u64,
    lines: Vec<String>,
    recent: VecDeque<String>,
    pub(super) count: u64,
    tells: Option<fn(&str)>,
}

impl Log {
    /// One that `tells` hears.
    pub(super) fn new(tells: Option<fn(&str)>) -> Self {
        Self { tells, ..Self::default() }
    }

    /// Something happened.
    pub(super) fn note(&mut self, at: u64, line: &str) {
        if at != self.instant {
            self.close();
            self.instant = at;
        }
        self.count += 1;
        let (seconds, millis) = (at / 1_000, at % 1_000);
        if self.recent.len() >= KEPT {
            self.recent.pop_front();
        }
        let told = format!("{seconds:>7}.{millis:03}  {line}");
        if let Some(tells) = self.tells {
            tells(&told);
        }
        self.recent.push_back(told);
        self.lines.push(line.to_owned());
    }

    /// What was reported last, oldest first.
    pub(super) fn last(&self) -> Vec<String> {
        self.recent.iter().cloned().collect()
    }

    /// The hash of everything so far.
    pub(super) fn hash(&mut self) -> String {
        self.close();
        format!("{:016x}", self.hash)
    }

    /// The instant is over: which of its events was first says nothing.
    fn close(&mut self) {
        self.lines.sort_unstable();
        for line in self.lines.drain(..) {
            let hashed = format!("{:016x} {} {line}", self.hash, self.instant);
            self.hash = digest(hashed.as_bytes());
        }
    }
}
