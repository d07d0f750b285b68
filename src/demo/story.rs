//! The story in five phases.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use serde_json::Value;

use super::{
    DemoOptions,
    callers::{Caller, Ended, FIXED, Workload},
    proof::{self, Applied, Verdict},
    screen::{Screen, thousands},
    stage::Stage,
    watch::{self, Health},
};
use crate::cli::{client::Client, table::table};

/// The longest that the breaker takes to open.
const TRIP_DEADLINE: Duration = Duration::from_secs(20);
/// The longest that replay takes.
const DRAIN_DEADLINE: Duration = Duration::from_secs(120);
/// Keys of the single calls that are shown.
const GUEST: &str = "demo:guest";

/// Figures that the ledger does not have.
#[derive(Default)]
struct Figures {
    /// Writes acknowledged as durable when the daemon was killed.
    durable_at_kill: u64,
    /// Calls replayed, by both daemons.
    replayed: u64,
    dead_letters: u64,
}

/// One telling.
pub(super) struct Story<'a> {
    options: DemoOptions,
    screen: Arc<Screen>,
    stage: &'a mut Stage,
    caller: Caller,
    client: Client,
    figures: Figures,
}

impl<'a> Story<'a> {
    /// A story told on `screen` and played on `stage`.
    pub(super) fn new(options: DemoOptions, screen: Arc<Screen>, stage: &'a mut Stage) -> Self {
        let (caller, client) = (Caller::new(stage.socket()), Client::new(stage.socket()));
        Self { options, screen, stage, caller, client, figures: Figures::default() }
    }

    /// Tells it. Returns whether the proof holds.
    ///
    /// # Errors
    /// The story could not be played to its end.
    pub(super) async fn tell(mut self) -> anyhow::Result<bool> {
        self.screen.heading("1  Everything is well: calls go straight to the backend.");
        let watching = watch::start(&self.screen, &self.caller, self.stage.socket());
        for key in FIXED {
            self.caller.set(key, 1).await;
        }
        let workload = Workload::start(&self.caller, self.options.seed);
        self.all_is_well().await;
        self.outage().await?;
        self.kill().await?;
        self.recovery().await?;
        workload.stop().await;
        self.drained().await?;
        drop(watching);
        self.screen.end_status();
        self.proof().await
    }

    async fn all_is_well(&mut self) {
        self.screen.note(&format!(
            "a stand-in for Redis, inside this process, listens at {}",
            self.stage.address
        ));
        let id = self.stage.daemon_id().unwrap_or_default();
        self.screen.note(&format!("the daemon, a real one, is process {id}"));
        let ended = self.caller.set(GUEST, 1).await;
        self.show(&format!("SET {GUEST} 1"), &ended);
        let ended = self.caller.get(GUEST).await;
        self.show(&format!("GET {GUEST}"), &ended);
        self.until_part(0.2).await;
    }

    async fn outage(&mut self) -> anyhow::Result<()> {
        self.screen
            .heading("2  The stand-in is stopped: callers go on, their writes wait on the disk.");
        self.stage.stand_in.stop();
        self.wait("the breaker opens", TRIP_DEADLINE, |health| health.breaker == "OPEN").await?;
        let ended = self.caller.set(GUEST, 2).await;
        self.show(&format!("SET {GUEST} 2"), &ended);
        let ended = self.caller.get(GUEST).await;
        self.show(&format!("GET {GUEST}"), &ended);
        let ended = self.caller.get("demo:fixed-1").await;
        self.show("GET demo:fixed-1", &ended);
        let ended = self.caller.get("demo:never-read").await;
        self.show("GET demo:never-read", &ended);
        let ended = self.caller.increment("demo:visits", false).await;
        self.show("INCR demo:visits", &ended);
        let ended = self.caller.increment("demo:visits", true).await;
        self.show("INCR demo:visits, min_ack durable", &ended);
        self.until_part(0.4).await;
        Ok(())
    }

    async fn kill(&mut self) -> anyhow::Result<()> {
        self.screen.heading(
            "3  In the middle of the outage the daemon is killed with -9 and started again.",
        );
        self.figures.replayed =
            watch::replayed(&self.client).await.context("the daemon does not answer")?.0;
        let id = self.stage.kill_daemon().await?;
        self.figures.durable_at_kill = self.caller.ledger.lock().durable;
        self.screen.note(&format!(
            "killed process {id}; {} writes had been acknowledged as durable by then",
            thousands(self.figures.durable_at_kill)
        ));
        let ended = self.caller.get(GUEST).await;
        self.show(&format!("GET {GUEST}"), &ended);
        self.until_part(0.45).await;
        let took = self.stage.start_daemon().await?;
        let health = watch::health(&self.client).await.context("the daemon does not answer")?;
        self.screen.note(&format!(
            "started again as process {}, ready after {} ms; {} writes wait in its queue",
            self.stage.daemon_id().unwrap_or_default(),
            took.as_millis(),
            thousands(health.queued)
        ));
        let ended = self.caller.get(GUEST).await;
        self.show(&format!("GET {GUEST}"), &ended);
        self.until_part(0.65).await;
        Ok(())
    }

    async fn recovery(&mut self) -> anyhow::Result<()> {
        self.screen.heading(
            "4  The stand-in is back: what waits is replayed, then calls go straight again.",
        );
        let address = self.stage.address;
        self.stage.stand_in.start(address).await.context("cannot listen again")?;
        let begun = self.screen.elapsed();
        self.drained().await?;
        let took = self.screen.elapsed().saturating_sub(begun);
        self.screen.note(&format!(
            "nothing waits any more, {:.1} s after it came back",
            took.as_secs_f64()
        ));
        let ended = self.caller.set(GUEST, 3).await;
        self.show(&format!("SET {GUEST} 3"), &ended);
        if watch::health(&self.client).await.is_some_and(|health| health.state != "HEALTHY") {
            self.screen.note("the system counts as HEALTHY again once that has held for 5 s");
        }
        // A moment of peace, whatever replay left of the time.
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.until_part(0.97).await;
        Ok(())
    }

    async fn proof(&mut self) -> anyhow::Result<bool> {
        self.screen
            .heading("5  The proof: what callers were told, against what the stand-in applied.");
        let (replayed, dead) =
            watch::replayed(&self.client).await.context("the daemon does not answer")?;
        self.figures.replayed += replayed;
        self.figures.dead_letters = dead;
        let log = self.stage.stand_in.log();
        let whole = log.is_some();
        let values = self.stage.stand_in.snapshot();
        let applied = Applied { log: log.unwrap_or_default(), values };
        let told = self.caller.ledger.lock().told.clone();
        let mut verdict = proof::verify(&told, &applied);
        if !whole {
            verdict.problems.push("more was written than the stand-in remembers".into());
        }
        if self.figures.durable_at_kill == 0 {
            let nothing = "nothing waited when the daemon was killed: this run shows nothing";
            verdict.problems.push(nothing.into());
        }
        self.screen.print(&self.tables(&verdict));
        let seed = self.options.seed;
        let seconds = self.screen.elapsed().as_secs_f64();
        if verdict.holds() {
            self.screen.print(&self.screen.verdict(
                true,
                &format!(
                    "PROVEN: every acknowledged write arrived, in order, none twice (seed {seed}, {seconds:.1} s)"
                ),
            ));
        } else {
            let shown: Vec<&str> = verdict.problems.iter().take(20).map(String::as_str).collect();
            let count = verdict.problems.len();
            let text = format!("NOT PROVEN (seed {seed}): {count} found\n  {}", shown.join("\n  "));
            self.screen.print(&self.screen.verdict(false, &text));
        }
        Ok(verdict.holds())
    }

    fn tables(&self, verdict: &Verdict) -> String {
        let ledger = self.caller.ledger.lock();
        let order = ["live", "queued", "cache", "stale", "empty", "bypass"];
        let rank = |word: &str| order.iter().position(|is| *is == word).unwrap_or(order.len());
        let mut ended: Vec<_> = ledger.ended.iter().collect();
        ended.sort_by_key(|(word, _)| rank(word));
        let calls: Vec<Vec<String>> = ended
            .into_iter()
            .map(|(word, (reads, writes))| {
                vec![word.clone(), thousands(*reads), thousands(*writes)]
            })
            .collect();
        let sum = |count: fn(&proof::Key) -> usize| {
            ledger.told.keys.values().map(|key| count(key) as u64).sum::<u64>()
        };
        let unknown = sum(|key| key.unknown.len())
            + ledger.told.counters.values().map(|counter| counter.unknown).sum::<u64>();
        let figures: Vec<Vec<String>> = [
            ("acknowledged as applied", ledger.applied),
            ("acknowledged as durable", ledger.durable),
            ("  of these before the daemon was killed", self.figures.durable_at_kill),
            ("replayed", self.figures.replayed),
            ("outcome unknown to the caller", unknown),
            ("lost", verdict.lost),
            ("applied twice", verdict.applied_twice),
            ("out of order", verdict.out_of_order),
            ("refused and yet applied", verdict.refused_but_applied),
            ("keys with a wrong value", verdict.wrong_values),
            ("SETs repeated in place, without effect", verdict.repeated),
            ("dead letters", self.figures.dead_letters),
        ]
        .into_iter()
        .map(|(what, figure)| vec![what.to_owned(), thousands(figure)])
        .collect();
        let terminal = self.screen.is_terminal();
        format!(
            "{}\n{}",
            table(&["CALLS BY SOURCE", "READS", "WRITES"], &calls, terminal),
            table(&["WRITES", "COUNT"], &figures, terminal)
        )
    }

    /// Shows one call and what its caller was told.
    fn show(&self, call: &str, ended: &Ended) {
        let told = match ended {
            Ended::Answered { status, source, ack, value } => {
                let means = match (source.as_str(), ack.as_str()) {
                    ("live", _) => "",
                    ("queued", "durable") => ": synced to this host's disk, to be replayed",
                    ("queued", _) => ": as the waiting writes will leave it",
                    ("empty" | "bypass", _) => ": not cached, so that the caller computes it",
                    _ => ": as it was last seen there",
                };
                let value = match value {
                    Value::Null if ack == "durable" => String::new(),
                    Value::Null => ", nil".to_owned(),
                    value => format!(", {value}"),
                };
                format!("{status} {source}{value}{means}")
            }
            Ended::Refused(why) | Ended::Unknown(why) => why.clone(),
            Ended::NoDaemon => "nobody listens at the socket".to_owned(),
        };
        self.screen.note(&format!("{call:<34} -> {told}"));
    }

    /// Waits until this part of the demo's time is over; not at all where it is.
    async fn until_part(&self, part: f64) {
        let until = Duration::from_secs(self.options.seconds.into()).mul_f64(part);
        tokio::time::sleep(until.saturating_sub(self.screen.elapsed())).await;
    }

    async fn drained(&self) -> anyhow::Result<()> {
        let drained = |health: &Health| health.queued == 0 && health.breaker == "CLOSED";
        self.wait("all is replayed", DRAIN_DEADLINE, drained).await
    }

    async fn wait(
        &self,
        what: &str,
        deadline: Duration,
        met: impl Fn(&Health) -> bool,
    ) -> anyhow::Result<()> {
        let until = self.screen.elapsed() + deadline;
        while !watch::health(&self.client).await.as_ref().is_some_and(&met) {
            if self.screen.elapsed() > until {
                bail!("waited in vain, for {} s, until {what}", deadline.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        Ok(())
    }
}
