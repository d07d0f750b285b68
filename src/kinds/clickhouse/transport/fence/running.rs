//! The queries that a server runs, and how they are ended.
//!
//! A client may have chosen the id of a query of ours, and another program may run one under the same id. One that had
//! been running before ours was sent is the other program's, and is left alone. The server says how long each has run,
//! but nobody knows when it found that out: a statement may be on its way, or wait at a server that is frozen. So an age
//! counts as that of the moment at which the answer is here, and what a late answer leaves open is taken for ours: else
//! a write in doubt would be taken for gone while it runs.
//!
//! Two clocks do not run alike: ours is slowed down for a while, or stands still for a moment in a virtual machine that
//! is paused. So between what is ours and what is another's there is what is neither: it is not ended, and ours is not
//! taken for gone. Only that grows with the age. How much earlier another's began stays the same, so that it never
//! becomes one of ours by growing older.
//!
//! ```text
//!  its age  0 ──────── as old as ours, and 1 s ──────── as old as ours, and 1.5 s and an eighth ───────▶
//!               ours                             in doubt                                another's
//! ```

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::words::{is_query, unescaped};
use crate::kinds::clickhouse::transport::http::{Failed, Http};

/// How much older than ours one may be that is taken for ours.
const SLACK: Duration = Duration::from_secs(1);
/// How much older than ours one may be that is not another's beyond doubt: so much,
const DOUBT: Duration = Duration::from_millis(1_500);
/// and this part of the age of ours. Clocks are slowed down by at most a twelfth.
const DOUBT_PART: u32 = 8;

/// What a server runs, as it said.
pub(crate) struct Running {
    /// How long each has run, by the id. Two users may use one id at the same time.
    ages: BTreeMap<String, Vec<Duration>>,
    /// When the answer was here.
    at: Instant,
}

impl Running {
    /// The queries for which `condition` holds.
    ///
    /// # Errors
    /// The server did not say so within `time`.
    pub(crate) async fn ask(http: &Http, condition: &str, time: Duration) -> Result<Self, Failed> {
        let list = format!(
            "SELECT query_id, elapsed FROM system.processes WHERE {condition} FORMAT TabSeparated"
        );
        let answer = http.ask(list, time).await?;
        Ok(Self::of_lines(&answer, Instant::now()))
    }

    fn of_lines(answer: &str, at: Instant) -> Self {
        let mut ages: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
        for line in answer.lines() {
            let (id, age) = line.split_once('\t').unwrap_or((line, ""));
            let Some(id) = unescaped(id) else { continue };
            let age = age.parse::<f64>().ok().and_then(|age| Duration::try_from_secs_f64(age).ok());
            ages.entry(id).or_default().push(age.unwrap_or_default());
        }
        Self { ages, at }
    }

    /// The ids of these queries.
    pub(super) fn ids(&self) -> impl Iterator<Item = &String> {
        self.ages.keys()
    }

    /// Whether one with this id is taken for one that was sent after it had `begun`.
    pub(crate) fn has_since(&self, id: &str, begun: Instant) -> bool {
        self.has_one(id, self.age(begun) + SLACK)
    }

    /// Whether one with this id is not another's beyond doubt.
    pub(super) fn may_have_since(&self, id: &str, begun: Instant) -> bool {
        let age = self.age(begun);
        self.has_one(id, age + age / DOUBT_PART + DOUBT)
    }

    /// Whether one with this id is no older than that.
    fn has_one(&self, id: &str, oldest: Duration) -> bool {
        self.ages.get(id).is_some_and(|ages| ages.iter().any(|age| *age <= oldest))
    }

    /// The condition that a query has this id and was sent after it had `begun`, in a statement that is sent now and
    /// answered within `time`.
    pub(crate) fn sent_since(&self, id: &str, begun: Instant, time: Duration) -> String {
        let oldest_here = self.age(begun) + SLACK;
        let ours = begun.elapsed() + time + SLACK;
        let ages = self.ages.get(id).into_iter().flatten().copied();
        let others = ages.filter(|age| *age > oldest_here).min();
        let limit = others.map_or(ours, |others| ours.min(others)).as_secs_f64();
        format!("{} AND elapsed < {limit:.3}", is_query(id))
    }

    /// How old one was by our clock that had `begun` then.
    fn age(&self, begun: Instant) -> Duration {
        self.at.saturating_duration_since(begun)
    }
}

/// Kills the queries for which `condition` holds. Returns the ids of those that ran, and whether they have ended.
///
/// # Errors
/// The server did not say so within `time`, or does not let them be killed.
pub(crate) async fn end(
    http: &Http,
    condition: &str,
    time: Duration,
) -> Result<BTreeMap<String, bool>, Failed> {
    let kill = format!("KILL QUERY WHERE {condition} SYNC FORMAT TabSeparated");
    let answer = http.ask(kill, time).await?;
    let mut ended: BTreeMap<String, bool> = BTreeMap::new();
    for line in answer.lines() {
        let mut fields = line.split('\t');
        let has_ended = fields.next() == Some("finished");
        let Some(id) = fields.next().and_then(unescaped) else { continue };
        ended.entry(id).and_modify(|all| *all &= has_ended).or_insert(has_ended);
    }
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_an_answer_that_came_late_leaves_open_is_ours() {
        let begun = Instant::now();
        let seconds = Duration::from_secs;
        let lines = "mine\t29.5\ntheirs\t31.5\nboth\t29.5\nboth\t40.25\nit\\'s\n";
        let running = Running::of_lines(lines, begun + seconds(30));
        let is_ours = |id: &str| running.has_since(id, begun);
        assert!(is_ours("mine") && is_ours("both") && !is_ours("theirs") && !is_ours("none"));
        assert!(is_ours("it's"), "it does not say how old it is");
        tokio::time::advance(seconds(35)).await;
        let condition = |id: &str| running.sent_since(id, begun, seconds(3));
        assert_eq!(condition("mine"), "query_id = 'mine' AND elapsed < 39.000");
        assert_eq!(condition("both"), "query_id = 'both' AND elapsed < 39.000");
        tokio::time::advance(seconds(5)).await;
        let condition = running.sent_since("both", begun, seconds(3));
        assert_eq!(condition, "query_id = 'both' AND elapsed < 40.250", "not the other's");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_older_than_ours_can_be_is_anothers_only_beyond_doubt() {
        let begun = Instant::now();
        let lines = "mine\t101.0\nslow\t104.0\nunclear\t113.9\ntheirs\t114.1\n";
        let running = Running::of_lines(lines, begun + Duration::from_secs(100));
        let is_ours = |id: &str| (running.has_since(id, begun), running.may_have_since(id, begun));
        assert_eq!((is_ours("mine"), is_ours("slow")), ((true, true), (false, true)));
        assert_eq!((is_ours("unclear"), is_ours("theirs")), ((false, true), (false, false)));
        assert_eq!(is_ours("none"), (false, false));
        let condition = running.sent_since("unclear", begun, Duration::from_secs(600));
        assert_eq!(condition, "query_id = 'unclear' AND elapsed < 113.900", "it is not ended");
    }

    #[tokio::test(start_paused = true)]
    async fn another_programs_query_does_not_become_ours_by_growing_older() {
        let begun = Instant::now();
        for seconds in [1, 30, 160, 100_000] {
            // It began 20 s before ours.
            let line = format!("nightly\t{}\n", seconds + 20);
            let running = Running::of_lines(&line, begun + Duration::from_secs(seconds));
            assert!(!running.has_since("nightly", begun), "after {seconds} s");
        }
    }
}
