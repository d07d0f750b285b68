//! Sides of a comparison, measured in turns.

use std::{
    fs,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::Runtime;

use crate::turns::median;

/// Rounds of a comparison.
const ROUNDS: usize = 15;
/// About how long a side takes in a round.
const ROUND: Duration = Duration::from_millis(250);
/// The kernel counts processor time in these.
const TICKS: f64 = 100.0;

/// Callers that ask at once, each the next when the last was answered.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) callers: usize,
    /// Of each caller.
    pub(crate) calls: usize,
}

/// What a load took.
pub(crate) struct Took {
    /// Seconds of a call: the median if there is one caller, and what passed divided by the calls otherwise.
    call: f64,
    /// Seconds of processor time, of all calls together.
    processor: f64,
}

/// One side.
pub(crate) struct Side<'a> {
    name: &'static str,
    run: Box<dyn FnMut(Load) -> Took + 'a>,
}

/// The processor time, in seconds, of the threads of a process whose name is `name`; of all threads if it is empty.
fn processor(process: &str, name: &str) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("its threads");
    let figures = tasks.filter_map(|task| {
        let stat = fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
        let (begin, figures) = stat.rsplit_once(')')?;
        let is_wanted = name.is_empty() || begin.ends_with(&format!("({name}"));
        let used = figures.split_whitespace().skip(11).take(2);
        let ticks: f64 = used.filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
        is_wanted.then_some(ticks / TICKS)
    });
    figures.sum()
}

/// Measures `work`, which returns how long each call took.
fn measured(load: Load, spent: impl Fn() -> f64, work: impl FnOnce() -> Vec<f64>) -> Took {
    let (spent_before, begun) = (spent(), Instant::now());
    let each = work();
    let passed = begun.elapsed().as_secs_f64();
    let call = match load.callers {
        1 => median(each),
        callers => passed / (callers * load.calls) as f64,
    };
    Took { call, processor: spent() - spent_before }
}

/// Calls from tasks of `runtime`, whose threads are called `caller`.
pub(crate) fn of_tasks<'a, F, A>(
    name: &'static str,
    runtime: &'a Runtime,
    ask: impl Fn() -> F + Clone + Send + 'static,
) -> Side<'a>
where
    F: Future<Output = A> + Send + 'static,
{
    let run = move |load: Load| {
        let asking = async || {
            let callers: Vec<_> = (0..load.callers)
                .map(|_| {
                    let ask = ask.clone();
                    tokio::spawn(async move {
                        let mut each = Vec::with_capacity(load.calls);
                        for _ in 0..load.calls {
                            let begun = Instant::now();
                            ask().await;
                            each.push(begun.elapsed().as_secs_f64());
                        }
                        each
                    })
                })
                .collect();
            let mut all = Vec::new();
            for caller in callers {
                all.extend(caller.await.expect("a caller"));
            }
            all
        };
        measured(load, || processor("self", "caller"), || runtime.block_on(asking()))
    };
    Side { name, run: Box::new(run) }
}

/// Calls from threads, each of which has what `connect` makes, to the daemon whose process is named. The processor time
/// is the daemon's.
pub(crate) fn of_threads<'a, C, A>(
    name: &'static str,
    process: String,
    connect: impl Fn() -> C + Sync + 'a,
    ask: impl Fn(&mut C) -> A + Sync + 'a,
) -> Side<'a> {
    let run = move |load: Load| {
        let asking = || {
            thread::scope(|scope| {
                let callers: Vec<_> = (0..load.callers)
                    .map(|_| {
                        scope.spawn(|| {
                            let mut connection = connect();
                            let asked = (0..load.calls).map(|_| {
                                let begun = Instant::now();
                                ask(&mut connection);
                                begun.elapsed().as_secs_f64()
                            });
                            asked.collect::<Vec<_>>()
                        })
                    })
                    .collect();
                callers.into_iter().flat_map(|caller| caller.join().expect("a caller")).collect()
            })
        };
        measured(load, || processor(&process, ""), asking)
    };
    Side { name, run: Box::new(run) }
}

/// Measures the sides in turns, and prints each beside the first. The last is a whole call, of which the differences are
/// shares.
pub(crate) fn compare(what: &str, callers: usize, mut sides: Vec<Side<'_>>) {
    // Warms up, and tells how many calls a round may have.
    let loads: Vec<Load> = sides.iter_mut().map(|side| load(side, callers)).collect();
    let mut rounds: Vec<Vec<Took>> = Vec::new();
    for round in 0..ROUNDS {
        let mut took: Vec<Option<Took>> = sides.iter().map(|_| None).collect();
        for turn in 0..sides.len() {
            // Each side is the first in turn.
            let at = (round + turn) % sides.len();
            took[at] = Some((sides[at].run)(loads[at]));
        }
        rounds.push(took.into_iter().flatten().collect());
    }
    let over = |of: &dyn Fn(&Vec<Took>) -> f64| median(rounds.iter().map(of).collect());
    let work = |at: usize| {
        let calls = (ROUNDS * loads[at].callers * loads[at].calls) as f64;
        rounds.iter().map(|round| round[at].processor).sum::<f64>() / calls
    };
    println!("\n{what}, {callers} at once");
    println!(
        "  {:<22} {:>11} {:>6} {:>13} {:>9} {:>12} {:>9}",
        "", "a call", "ratio", "middle half", "share", "processor", "share"
    );
    let last = sides.len() - 1;
    for (at, side) in sides.iter().enumerate() {
        let mut ratios: Vec<f64> = rounds.iter().map(|it| it[at].call / it[0].call).collect();
        ratios.sort_by(f64::total_cmp);
        let told = |share: f64| {
            if at == last { String::new() } else { format!("{:+.1} %", share * 100.0) }
        };
        println!(
            "  {:<22} {:>8.1} µs {:>6.2} {:>5.2} to {:>4.2} {:>9} {:>9.1} µs {:>9}",
            side.name,
            over(&|it| it[at].call) * 1e6,
            ratios[ROUNDS / 2],
            ratios[ROUNDS / 4],
            ratios[ROUNDS - 1 - ROUNDS / 4],
            told(over(&|it| (it[at].call - it[0].call) / it[last].call)),
            work(at) * 1e6,
            told((work(at) - work(0)) / work(last)),
        );
    }
}

/// A load that takes about [`ROUND`].
fn load(side: &mut Side<'_>, callers: usize) -> Load {
    let few = Load { callers, calls: 20 };
    let warming = Instant::now();
    while warming.elapsed() < ROUND {
        (side.run)(few);
    }
    let begun = Instant::now();
    (side.run)(few);
    let each = begun.elapsed().as_secs_f64() / few.calls as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number")]
    let calls = (ROUND.as_secs_f64() / each) as usize;
    Load { callers, calls: calls.clamp(5, 50_000) }
}

/// A runtime like the daemon's.
pub(crate) fn runtime() -> Arc<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let built = builder.worker_threads(2).thread_name("caller").enable_all().build();
    Arc::new(built.expect("a runtime"))
}
