//! How much one commit may carry: learnt from what went through and what did not.
//!
//! Replay puts many calls into one commit. On a slow network, behind a proxy with a limit of its own, or with
//! one call among them that breaks the connection, such a commit fails as a whole, and sent again as it was it
//! would fail for ever. So:
//!
//! | what happened to a commit of several calls | what follows |
//! | --- | --- |
//! | its outcome is not known | the next ones are a quarter as large, in calls and in bytes; its calls go apart from others, at most a quarter of them together, until each is answered |
//! | it was not sent, because others before it used up the time | its calls go apart from others, no more of them together than now |
//! | its message was too large | the next ones stay below the limit that the server named, or half of what was sent |
//! | it went through, and was as large as allowed | twice the size after two of them, up to half of what failed last; above that a quarter more after eight |
//!
//! A quarter and not a half, because each unknown outcome keeps its lanes in doubt for the backend's `timeout`
//! and 5 s. A call that is alone says nothing about sizes. Everything is forgotten with the connector.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::plan::{BYTES_MAX, WRITES_MAX};

/// What a commit has beside its writes, in bytes, at most.
const OVERHEAD: usize = 1 << 10;
/// So many calls are remembered as suspects.
const SUSPECTS_MAX: usize = 50_000;

/// See the [module](self).
pub(crate) struct Sizes(Mutex<State>);

struct State {
    calls: Learnt,
    bytes: Learnt,
    /// The largest message that the server takes, if it has said so.
    limit: Option<usize>,
    /// How large a call is, in bytes, as a moving average.
    typical: usize,
    /// Calls of commits whose outcome is not known, by the number of their lane, and how many may go together.
    suspects: HashMap<u64, usize>,
}

/// What one commit may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) calls: usize,
    pub(crate) bytes: usize,
}

/// One size that is learnt.
struct Learnt {
    now: usize,
    most: usize,
    /// Half of what failed last: up to here it grows fast.
    fast_below: usize,
    /// How many of that size went through in a row.
    full: u32,
}

impl Learnt {
    fn new(most: usize) -> Self {
        Self { now: most, most, fast_below: most, full: 0 }
    }

    fn failed(&mut self, size: usize) {
        self.now = self.now.min(size / 4).max(1);
        self.fast_below = size / 2;
        self.full = 0;
    }

    fn went(&mut self, size: usize) {
        if size.saturating_mul(2) < self.now || self.now == self.most {
            return;
        }
        self.full += 1;
        let (wanted, next) = if self.now < self.fast_below {
            (2, (self.now * 2).min(self.fast_below))
        } else {
            (8, self.now + (self.now / 4).max(1))
        };
        if self.full >= wanted {
            self.now = next.min(self.most);
            self.full = 0;
        }
    }
}

impl State {
    /// These calls go apart from others from now on, so many of them together.
    fn suspect(&mut self, lanes: &[u64], together: usize) {
        if self.suspects.len() + lanes.len() > SUSPECTS_MAX {
            self.suspects.clear();
        }
        for lane in lanes {
            let most = self.suspects.entry(*lane).or_insert(together);
            *most = together.min(*most);
        }
    }
}

impl Sizes {
    /// Nothing is learnt yet.
    pub(crate) fn new() -> Self {
        Self(Mutex::new(State {
            calls: Learnt::new(WRITES_MAX),
            bytes: Learnt::new(BYTES_MAX),
            limit: None,
            typical: 0,
            suspects: HashMap::new(),
        }))
    }

    /// What one commit may hold now.
    pub(crate) fn bounds(&self) -> Bounds {
        let state = self.0.lock();
        let limit = state.limit.map_or(BYTES_MAX, |limit| limit.saturating_sub(OVERHEAD));
        Bounds { calls: state.calls.now, bytes: state.bytes.now.min(limit) }
    }

    /// How many calls replay should take at once.
    pub(crate) fn batch(&self) -> usize {
        let Bounds { calls, bytes } = self.bounds();
        let state = self.0.lock();
        if state.bytes.now == state.bytes.most || state.typical == 0 {
            return calls;
        }
        calls.min(bytes / state.typical).max(1)
    }

    /// How many calls of suspect commits may go together with the one of this lane; `None` if it is no suspect.
    pub(crate) fn suspect(&self, lane: u64) -> Option<usize> {
        self.0.lock().suspects.get(&lane).copied()
    }

    /// The largest message that the server takes, in bytes, if it has said so.
    pub(crate) fn limit(&self) -> Option<usize> {
        self.0.lock().limit
    }

    /// A commit of these calls was answered, whatever the answer; `applied` says that it went through.
    pub(crate) fn answered(&self, lanes: &[u64], bytes: usize, applied: bool) {
        let mut state = self.0.lock();
        if !state.suspects.is_empty() {
            for lane in lanes {
                state.suspects.remove(lane);
            }
        }
        if !applied {
            return;
        }
        let each = bytes / lanes.len().max(1);
        state.typical = if state.typical == 0 { each } else { (state.typical * 7 + each) / 8 };
        if lanes.len() > 1 || state.calls.now == 1 {
            state.calls.went(lanes.len());
            state.bytes.went(bytes);
        }
    }

    /// Whether a commit of these calls was applied is not known.
    pub(crate) fn lost(&self, lanes: &[u64], bytes: usize) {
        if lanes.len() < 2 {
            return;
        }
        let mut state = self.0.lock();
        state.calls.failed(lanes.len());
        state.bytes.failed(bytes);
        state.typical = state.typical.max(bytes / lanes.len());
        state.suspect(lanes, (lanes.len() / 4).max(1));
    }

    /// There was no time left to send these calls, which were to share a commit: halves of one that was refused,
    /// say, which must not become whole again.
    pub(crate) fn unsent(&self, lanes: &[u64]) {
        self.0.lock().suspect(lanes, lanes.len());
    }

    /// The server takes no message of so many bytes, of so many calls; `limit` is what it does take, if it
    /// said so.
    pub(crate) fn too_large(&self, limit: Option<usize>, calls: usize, bytes: usize) {
        let mut state = self.0.lock();
        match limit.filter(|limit| *limit > 2 * OVERHEAD && *limit < bytes + OVERHEAD) {
            Some(limit) => state.limit = Some(limit),
            None if calls > 1 => state.bytes.failed(bytes * 2),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(count: u64) -> Vec<u64> {
        (0..count).collect()
    }

    #[test]
    fn what_was_lost_shrinks_to_one_and_grows_again_slowly() {
        let sizes = Sizes::new();
        let mut seen = Vec::new();
        for _ in 0..4 {
            let calls = sizes.bounds().calls;
            sizes.lost(&lanes(calls as u64), calls * 100);
            seen.push(sizes.bounds().calls);
        }
        assert_eq!(seen, [125, 31, 7, 1]);
        sizes.lost(&[7], 1 << 20);
        assert_eq!(sizes.bounds(), Bounds { calls: 1, bytes: 175 }, "one alone says nothing");
        let mut commits = 0;
        while sizes.bounds().calls < WRITES_MAX {
            let calls = sizes.bounds().calls;
            sizes.answered(&lanes(calls as u64), calls * 100, true);
            commits += 1;
        }
        assert!((100..400).contains(&commits), "{commits}");
    }

    #[test]
    fn it_grows_fast_up_to_half_of_what_failed() {
        let sizes = Sizes::new();
        sizes.lost(&lanes(400), 400_000);
        let mut commits = 0;
        while sizes.bounds().calls < 200 {
            let Bounds { calls, bytes } = sizes.bounds();
            sizes.answered(&lanes(calls as u64), bytes, true);
            commits += 1;
        }
        assert_eq!(commits, 2);
        assert_eq!(sizes.bounds(), Bounds { calls: 200, bytes: 200_000 });
        sizes.answered(&lanes(20), 20_000, true);
        sizes.answered(&lanes(20), 20_000, true);
        assert_eq!(sizes.bounds().calls, 200, "small ones prove nothing");
    }

    #[test]
    fn suspects_go_apart_until_they_are_answered() {
        let sizes = Sizes::new();
        sizes.lost(&lanes(21), 2_100);
        assert_eq!((sizes.suspect(3), sizes.suspect(30)), (Some(5), None));
        sizes.lost(&lanes(5), 500);
        assert_eq!((sizes.suspect(3), sizes.suspect(9)), (Some(1), Some(5)));
        sizes.answered(&[3], 100, false);
        assert_eq!(sizes.suspect(3), None);
        sizes.unsent(&[3, 9]);
        assert_eq!((sizes.suspect(3), sizes.suspect(9)), (Some(2), Some(2)));
    }

    #[test]
    fn a_limit_that_the_server_names_is_kept_and_takes_nothing_else_down() {
        let sizes = Sizes::new();
        sizes.too_large(Some(4_194_304), 5, 4_500_000);
        assert_eq!(sizes.limit(), Some(4_194_304));
        assert_eq!(sizes.bounds(), Bounds { calls: WRITES_MAX, bytes: 4_194_304 - OVERHEAD });
        sizes.too_large(Some(9_000_000), 5, 4_000_000);
        assert_eq!(sizes.limit(), Some(4_194_304), "what is larger than the message is no limit");
        sizes.too_large(None, 4, 2_000_000);
        assert_eq!(sizes.bounds().bytes, 1_000_000);
    }

    #[test]
    fn replay_takes_as_many_calls_as_fill_one_commit() {
        let sizes = Sizes::new();
        assert_eq!(sizes.batch(), WRITES_MAX);
        sizes.lost(&lanes(240), 3_840_000);
        assert_eq!(sizes.batch(), 60);
        assert_eq!(sizes.bounds().bytes, 960_000);
    }
}
