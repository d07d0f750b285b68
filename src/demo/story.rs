//! The story in five phases.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};

use super::{
    backend::{Backend, Each},
    call::Call,
    callers::{Caller, Workload, fixed, name},
    proof,
    screen::Screen,
    shown,
    stage::Stage,
    status::{Condition, Health},
    tables::{Figures, tables},
    watch,
};
use crate::terminal::{client::Client, table::thousands};
use fusebox_state::{breaker::State, system::SystemState};

/// The longest that a breaker takes to open.
const TRIP_DEADLINE: Duration = Duration::from_secs(20);
/// The longest that replay takes.
const DRAIN_DEADLINE: Duration = Duration::from_secs(120);
/// The longest that the system takes to be HEALTHY again.
const HEALTHY_DEADLINE: Duration = Duration::from_secs(60);
/// About how long the recovery takes: from EMERGENCY back to HEALTHY is two steps of 5 s each.
const RECOVERY: Duration = Duration::from_millis(11_500);
/// The least that is left for what comes before it.
const BEFORE_MIN: Duration = Duration::from_secs(3);
/// The longest outage: what it leaves to be replayed takes its time, too.
const OUTAGE_MAX: Duration = Duration::from_secs(45);
/// The order in which backends fail, and the state that the system is in after each.
const OUTAGES: [(Backend, SystemState); 3] = [
    (Backend::Documents, SystemState::Degraded),
    (Backend::Keys, SystemState::Critical),
    (Backend::Rows, SystemState::Emergency),
];
/// A result that is asked for while all is well, and in the outage.
const RESULT: &str = "count() AS visits";
/// The id of the first row that is inserted for all to see.
const GUEST_ROW: u64 = 1;

/// What the demo is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DemoOptions {
    /// About how long it takes; if that is not enough, longer.
    pub(crate) seconds: u32,
    /// What its random choices start from: what is written and read, and when.
    pub(crate) seed: u64,
}

/// One run of the story.
pub(super) struct Story<'a> {
    options: DemoOptions,
    screen: Arc<Screen>,
    stage: &'a mut Stage,
    caller: Caller,
    client: Client,
    figures: Each<Figures>,
}

impl<'a> Story<'a> {
    /// A story shown on `screen` and played on `stage`.
    pub(super) fn new(options: DemoOptions, screen: Arc<Screen>, stage: &'a mut Stage) -> Self {
        let (caller, client) = (Caller::new(stage.socket()), Client::new(stage.socket()));
        Self { options, screen, stage, caller, client, figures: Each::default() }
    }

    /// Tells it. Returns whether the proof holds.
    ///
    /// # Errors
    /// The story could not be played to its end.
    pub(super) async fn tell(mut self) -> anyhow::Result<bool> {
        self.screen.heading("1  Everything works: calls go straight to the backends.");
        self.who_is_who();
        let watching = watch::start(&self.screen, &self.caller, self.stage.socket());
        for backend in [Backend::Keys, Backend::Documents] {
            self.caller.make(&Call::set(backend, &fixed(backend), 1)).await;
        }
        let workload = Workload::start(&self.caller, self.options.seed);
        self.all_is_well().await;
        self.outages().await?;
        self.kill().await?;
        self.recovery().await?;
        workload.stop().await;
        self.wait("everything is replayed", DRAIN_DEADLINE, |health| {
            let is_well =
                |is: &Condition| is.queued == 0 && is.breaker.known() == Some(State::Closed);
            health.backends.iter().all(|(_, is)| is_well(is))
        })
        .await?;
        drop(watching);
        self.screen.end_status();
        self.proof().await
    }

    fn who_is_who(&self) {
        for (backend, address) in self.stage.addresses.iter() {
            let title = backend.title();
            self.screen
                .note(&format!("a stand-in for {title}, inside this process, is at {address}"));
        }
        let id = self.stage.daemon_id().unwrap_or_default();
        self.screen.note(&format!("the daemon is a real one, process {id}"));
        self.screen.note(
            "ordinary clients use the three backends through the daemon's doors; calls that need more than these \
             clients can express go over the command socket",
        );
    }

    async fn all_is_well(&mut self) {
        self.show(&guest_set(Backend::Keys, 1)).await;
        self.show(&guest_get(Backend::Keys)).await;
        self.show(&Call::insert(GUEST_ROW..GUEST_ROW + 1)).await;
        self.show(&Call::select(RESULT)).await;
        self.show(&guest_set(Backend::Documents, 1)).await;
        self.show(&guest_get(Backend::Documents)).await;
        self.until_part(0.0).await;
    }

    async fn outages(&mut self) -> anyhow::Result<()> {
        self.screen.heading(
            "2  One after the other, they fail: callers go on, and their writes wait on the disk.",
        );
        for ((backend, state), part) in OUTAGES.into_iter().zip([0.2, 0.4, 0.67]) {
            let title = backend.title();
            self.stage.lose_answers(backend);
            self.screen
                .note(&format!("{title} fails: it still executes calls, but no answer arrives"));
            self.wait(&format!("the system is {state}"), TRIP_DEADLINE, |health| {
                let is_open = health.backends.get(backend).breaker.known() == Some(State::Open);
                is_open && health.state.known().is_some_and(|now| now >= state)
            })
            .await?;
            self.stage.stop(backend);
            self.screen.note(&format!("{title} is gone completely"));
            for call in calls_in_outage(backend) {
                self.show(&call).await;
            }
            self.until_part(part).await;
        }
        Ok(())
    }

    async fn kill(&mut self) -> anyhow::Result<()> {
        self.screen.heading(
            "3  In the middle of the outage, the daemon is killed with kill -9 and started again.",
        );
        let replayed = watch::replayed(&self.client).await.context("the daemon does not answer")?;
        let id = self.stage.kill_daemon().await?;
        let mut durable = 0;
        for (backend, page) in self.caller.ledger.lock().iter() {
            durable += page.durable;
            let figures = self.figures.get_mut(backend);
            (figures.durable_at_kill, figures.replayed) = (page.durable, *replayed.get(backend));
        }
        let durable = thousands(durable);
        self.screen.note(&format!(
            "killed process {id}; {durable} writes had been acknowledged as durable by then"
        ));
        self.show(&guest_get(Backend::Keys)).await;
        self.until_part(0.76).await;
        let took = self.stage.start_daemon().await?;
        let health = watch::health(&self.client).await.context("the daemon does not answer")?;
        self.screen.note(&format!(
            "started again as process {}, ready after {} ms; {} writes wait in its queues",
            self.stage.daemon_id().unwrap_or_default(),
            took.as_millis(),
            thousands(health.backends.iter().map(|(_, is)| is.queued).sum())
        ));
        self.show(&guest_get(Backend::Keys)).await;
        self.show(&guest_get(Backend::Documents)).await;
        self.until_part(1.0).await;
        Ok(())
    }

    async fn recovery(&mut self) -> anyhow::Result<()> {
        self.screen.heading(
            "4  The stand-ins are back: the waiting writes are replayed, then calls go straight to the backends again.",
        );
        let waiting = watch::health(&self.client).await.context("the daemon does not answer")?;
        let waiting = waiting.backends.iter().map(|(_, is)| is.queued).sum();
        let begun = self.screen.elapsed();
        for backend in Backend::ALL {
            self.stage.start(backend).await?;
        }
        self.drained_of(begun).await?;
        let took = self.screen.elapsed().saturating_sub(begun).as_secs_f64();
        let count = thousands(waiting);
        self.screen.note(&format!(
            "the {count} writes that waited are replayed, {took:.1} s after the stand-ins came back"
        ));
        if watch::health(&self.client)
            .await
            .is_some_and(|health| health.state.known() == Some(SystemState::Emergency))
        {
            self.screen.note("in EMERGENCY, new writes are still stored on the disk first");
            self.screen.note("the state improves only when it would have been better for 5 s");
        }
        self.wait("the system is HEALTHY", HEALTHY_DEADLINE, |health| {
            health.state.known() == Some(SystemState::Healthy)
        })
        .await?;
        self.show(&guest_set(Backend::Keys, 3)).await;
        self.show(&Call::insert(GUEST_ROW + 3..GUEST_ROW + 4)).await;
        self.show(&guest_set(Backend::Documents, 3)).await;
        // A moment of peace, whatever replay left of the time.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let end = Duration::from_secs(self.options.seconds.into());
        tokio::time::sleep(end.saturating_sub(self.screen.elapsed())).await;
        Ok(())
    }

    async fn proof(&mut self) -> anyhow::Result<bool> {
        self.screen
            .heading("5  The proof: the answers to callers, against what the stand-ins applied.");
        let replayed = watch::replayed(&self.client).await.context("the daemon does not answer")?;
        let ledger = self.caller.ledger.lock().clone();
        let mut problems = Vec::new();
        for (backend, page) in ledger.iter() {
            let figures = self.figures.get_mut(backend);
            figures.replayed.calls += replayed.get(backend).calls;
            figures.replayed.dead_letters = replayed.get(backend).dead_letters;
            figures.recognised = self.stage.stand_ins.recognised(backend);
            let applied = self.stage.stand_ins.applied(backend);
            let whole = applied.is_some();
            figures.verdict = proof::verify(&page.told, &applied.unwrap_or_default());
            let found = &mut figures.verdict.problems;
            if !whole {
                found.push("more was written than the stand-in remembers".into());
            }
            if figures.durable_at_kill == 0 {
                found.push(
                    "nothing waited when the daemon was killed, so the demo proves nothing".into(),
                );
            }
            problems.extend(found.iter().map(|problem| format!("{}: {problem}", backend.name())));
        }
        let terminal = self.screen.is_terminal();
        self.screen.print(&tables(&ledger, &self.figures, terminal));
        let holds = self.figures.iter().all(|(_, figures)| figures.verdict.holds());
        let (seed, seconds) = (self.options.seed, self.screen.elapsed().as_secs_f64());
        let text = if holds {
            format!(
                "PROVEN: every acknowledged write to all three backends was applied or was replaced by a newer write \
                 to its key, in order, none twice (seed {seed}, {seconds:.1} s)"
            )
        } else {
            let shown: Vec<&str> = problems.iter().take(20).map(String::as_str).collect();
            let count = problems.len();
            format!("NOT PROVEN (seed {seed}): {count} found\n  {}", shown.join("\n  "))
        };
        self.screen.print(&self.screen.verdict(holds, &text));
        Ok(holds)
    }

    /// Makes one call and shows its answer.
    async fn show(&self, call: &Call) {
        let ended = self.caller.make(call).await;
        self.screen.note(&shown::line(call, &ended));
    }

    /// Waits until this part of the outage is over; not at all if it is.
    async fn until_part(&self, part: f64) {
        let length = Duration::from_secs(self.options.seconds.into());
        let before = length.saturating_sub(RECOVERY).max(BEFORE_MIN);
        let outage = before.mul_f64(0.75).min(OUTAGE_MAX);
        let until = before.saturating_sub(outage) + outage.mul_f64(part);
        tokio::time::sleep(until.saturating_sub(self.screen.elapsed())).await;
    }

    /// Waits until nothing waits any more that was accepted before `moment`.
    async fn drained_of(&self, moment: Duration) -> anyhow::Result<()> {
        let until = moment + DRAIN_DEADLINE;
        loop {
            let asked = self.screen.elapsed().saturating_sub(moment);
            let replayed = watch::replayed(&self.client).await;
            if replayed.is_some_and(|each| each.iter().all(|(_, is)| is.oldest < asked)) {
                return Ok(());
            }
            if self.screen.elapsed() > until {
                bail!("the waiting writes were not replayed within {} s", DRAIN_DEADLINE.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
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
                bail!("after {} s, this is still not true: {what}", deadline.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        Ok(())
    }
}

/// The key, or document, of the single calls that are shown.
fn guest_set(backend: Backend, value: u64) -> Call {
    Call::set(backend, &name(backend, "guest"), value)
}

fn guest_get(backend: Backend) -> Call {
    Call::get(backend, &name(backend, "guest"))
}

/// What is shown of a backend's outage.
fn calls_in_outage(backend: Backend) -> Vec<Call> {
    let counter = Call::increment(backend, &name(backend, "visits"));
    match backend {
        Backend::Keys => vec![
            guest_set(backend, 2),
            guest_get(backend),
            Call::get(backend, &fixed(backend)),
            Call::get(backend, &name(backend, "never-read")),
            counter.clone(),
            counter.durable(),
        ],
        Backend::Rows => vec![
            Call::select(RESULT),
            Call::select("sum(id) AS ids"),
            Call::select("sum(id) AS ids").low(),
            Call::insert(GUEST_ROW + 1..GUEST_ROW + 2),
            Call::insert(GUEST_ROW + 2..GUEST_ROW + 3).applied(),
        ],
        Backend::Documents => vec![
            guest_set(backend, 2),
            Call::increment(backend, &name(backend, "guest-visits")),
            guest_get(backend),
        ],
    }
}
