//! The state: the daemon's health and what becomes of the calls, as a line or as a small table.

use fusebox_actors::view::Lenient;
use fusebox_state::{breaker::State, system::SystemState};

use super::backend::Each;
use crate::terminal::table::thousands;

/// What changes while the story runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Status {
    /// How the system is; `None` if no daemon answers.
    pub(super) health: Option<Health>,
    /// What becomes of the calls to each backend.
    pub(super) rates: Each<Rates>,
}

/// Calls a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rates {
    /// Those that the backend answered.
    pub(super) live: u64,
    /// Writes that became durable in the queue, and reads answered from there.
    pub(super) queued: u64,
    /// Reads that the cache answered, or nothing if it had nothing.
    pub(super) cached: u64,
    /// Those without an answer.
    pub(super) failed: u64,
}

/// What `/health` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Health {
    /// The system's state.
    pub(super) state: Lenient<SystemState>,
    /// Each backend's.
    pub(super) backends: Each<Condition>,
}

/// How a backend is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Condition {
    /// Its breaker's state.
    pub(super) breaker: Lenient<State>,
    /// Calls that wait in its queue.
    pub(super) queued: u64,
}

impl Status {
    /// A line with the state.
    pub(super) fn line(&self) -> String {
        let Some(health) = &self.health else { return "no daemon".to_owned() };
        let breakers = health.backends.iter().map(|(backend, Condition { breaker, queued })| {
            let waiting =
                if *queued > 0 { format!(" ({} wait)", thousands(*queued)) } else { String::new() };
            format!("{} {breaker}{waiting}", backend.name())
        });
        let sum = |rate: fn(&Rates) -> u64| {
            thousands(self.rates.iter().map(|(_, rates)| rate(rates)).sum())
        };
        format!(
            "state {}: {}; live {}/s, to queue {}/s, cache {}/s, failed {}/s",
            health.state,
            breakers.collect::<Vec<_>>().join(", "),
            sum(|rates| rates.live),
            sum(|rates| rates.queued),
            sum(|rates| rates.cached),
            sum(|rates| rates.failed)
        )
    }

    /// The same as a small table, with what becomes of each backend's calls.
    pub(super) fn block(&self) -> String {
        let state = self.health.as_ref().map(|health| health.state.to_string());
        let state = state.as_deref().unwrap_or("no daemon");
        let mut text = row(state, "breaker", ["wait", "live", "to queue", "cache", "failed"]);
        for (backend, rates) in self.rates.iter() {
            let condition = self.health.as_ref().map(|health| health.backends.get(backend));
            let breaker = condition.map(|condition| condition.breaker.to_string());
            let queued = condition.map_or("-".to_owned(), |condition| thousands(condition.queued));
            let rate = |rate: u64| format!("{}/s", thousands(rate));
            let Rates { live, queued: to_queue, cached, failed } = *rates;
            let figures = [queued, rate(live), rate(to_queue), rate(cached), rate(failed)];
            let figures = figures.each_ref().map(String::as_str);
            text = format!(
                "{text}\n{}",
                row(backend.name(), breaker.as_deref().unwrap_or("none"), figures)
            );
        }
        text
    }
}

/// A row of the small table.
fn row(first: &str, second: &str, figures: [&str; 5]) -> String {
    let figures = figures.map(|figure| format!("{figure:>9}"));
    format!("{first:<12} {second:<10}{}", figures.join(" "))
}

#[cfg(test)]
mod tests {
    use super::super::backend::Backend;
    use super::*;

    fn status() -> Status {
        let backends = Each::of(|backend| Condition {
            breaker: if backend == Backend::Keys { State::HalfOpen } else { State::Closed }.into(),
            queued: if backend == Backend::Keys { 12_345 } else { 0 },
        });
        let health = Some(Health { state: SystemState::Degraded.into(), backends });
        let rates = Each::of(|_| Rates { live: 1_000, queued: 7, cached: 0, failed: 1 });
        Status { health, rates }
    }

    #[test]
    fn a_status_in_a_pipe_is_a_line() {
        assert_eq!(
            status().line(),
            "state DEGRADED: redis HALF_OPEN (12,345 wait), clickhouse CLOSED, firestore CLOSED; \
             live 3,000/s, to queue 21/s, cache 0/s, failed 3/s"
        );
        assert_eq!(Status::default().line(), "no daemon");
    }

    #[test]
    fn a_status_on_a_terminal_is_a_row_for_each_backend() {
        let block = status().block();
        let lines: Vec<&str> = block.lines().collect();
        assert_eq!(
            lines[..2],
            [
                "DEGRADED     breaker        wait      live  to queue     cache    failed",
                "redis        HALF_OPEN    12,345   1,000/s       7/s       0/s       1/s",
            ]
        );
        assert_eq!(lines.len(), 4);
        assert!(lines.iter().all(|line| line.len() < 80));
    }
}
