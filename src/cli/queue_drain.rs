//! `fusebox queue drain`: replays what waits in a state directory that no daemon has, without doors.
//!
//! For a directory whose host is gone: its stores are opened, what waits in them is sent to the backends of the
//! given configuration, and what is left is reported. Only the stores of that directory are opened
//! ([`stores`](super::stores)), and only of backends that the configuration has. Those that are not to be had are
//! reported, too.
//!
//! A store also holds what the daemon that is gone was ordered and had found: that a backend is offline, that its
//! breaker is forced or open. None of that is to hold replay back here. It is in effect once the store is open, which
//! for a large one is some time after the start: only then is it lifted, and only then does patience count.
//!
//! A crash, or an interruption, leaves what a daemon's would: the rest waits.

use std::{
    collections::BTreeMap,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use fusebox_actors::{Backend, Fusebox, view::QueuedCallView};
use fusebox_state::{Words, breaker::State};
use serde_json::{Value, json};

use super::{args::DrainArgs, queue_offline::of_backend, stores::Host};
use crate::{
    GRACE,
    config::Config,
    daemon,
    signals::Signals,
    state_dir::{
        StateDir,
        stores::{Missing, Store},
    },
    terminal::{
        failure::{Done, Failure},
        print::{complain, say, say_json},
        progress,
    },
};

/// How often it looks how far replay is.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What is left of one backend's queue.
#[derive(Debug, Default, PartialEq)]
struct Left {
    replayed: u64,
    waiting: u64,
    /// Why what waits does not go on, if it does not.
    why: Option<String>,
    /// Names, lanes and reasons.
    dead: Vec<(String, String, String)>,
}

impl Left {
    fn is_empty(&self) -> bool {
        self.waiting == 0 && self.dead.is_empty() && self.why.is_none()
    }
}

/// Drains the directory. Ends with 0 if nothing is left, with 1 and what is left otherwise. `host` is the configuration
/// without regard to the directory.
pub(crate) async fn run(
    mut config: Config,
    host: &Host,
    only: Option<&str>,
    wanted: DrainArgs,
) -> Done {
    let dir = config.state_dir.clone();
    // Before the directory is opened, which notes that it is a copy.
    let (stores, missing) = stores(&dir, host, only)?;
    let state_dir =
        Arc::new(StateDir::open(&dir).map_err(|error| Failure::failed(format!("{error:#}")))?);
    state_dir.recognise(stores.values().map(|store| (store.name.as_str(), store.dir.as_path())));
    accept_copy(&state_dir, &dir, wanted.accept_clone, &|name| stores.contains_key(name))?;
    config.backends.retain_mut(|backend| {
        let settings = &mut backend.settings;
        // The folder of this host's own cache does not matter to the directory.
        settings.cache_dir = None;
        let store = stores.get(&settings.name);
        settings.queue_dir = store.filter(|it| it.is_elsewhere).map(|it| it.dir.clone());
        store.is_some()
    });
    let is_known = |name: &&String| config.backends.iter().any(|it| it.settings.name == **name);
    let stray: Vec<String> = match only {
        None => stores.keys().filter(|name| !is_known(name)).cloned().collect(),
        Some(only) if config.backends.is_empty() => {
            for Missing { backend, why } in &missing {
                complain(&of_backend(backend.as_deref(), why));
            }
            return Err(Failure::usage(format!(
                "{} has no store of {only}, or the configuration has no such backend",
                dir.display()
            )));
        }
        Some(_) => Vec::new(),
    };
    let identity = daemon::identity(&state_dir, &config);
    let specs = daemon::specs(&config.backends, &identity).map_err(Failure::usage)?;
    let fusebox = Fusebox::start(config.system(identity.instance.clone()), specs, None).await;
    let fusebox = fusebox.map_err(|error| Failure::failed(error.to_string()))?;
    let mut signals = Signals::new().map_err(anyhow::Error::from)?;
    tokio::select! {
        () = until_still(&fusebox, &wanted) => {}
        () = identity.twins.proven() => complain(
            "another daemon uses the instance name of this directory: the directory was copied, and the copy is in use"
        ),
        () = signals.stop() => complain("interrupted: the remaining calls keep waiting"),
    }
    let mut left = BTreeMap::new();
    for backend in fusebox.backends() {
        left.insert(backend.name().to_owned(), left_of(&backend).await);
    }
    fusebox.shutdown(GRACE).await;
    if wanted.output.json {
        say_json(&as_json(&left, &stray, &missing))?;
    } else {
        say(&as_text(&left, &stray, &missing))?;
    }
    let done = left.values().all(Left::is_empty) && stray.is_empty() && missing.is_empty();
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Has a directory that is a copy drained, or such stores, if that was said to be right.
fn accept_copy(
    state_dir: &StateDir,
    dir: &Path,
    accepted: bool,
    is_drained: &dyn Fn(&str) -> bool,
) -> Result<(), Failure> {
    let Some(why) = state_dir.doubts(is_drained) else { return Ok(()) };
    if !accepted {
        return Err(Failure::failed(format!(
            "{why}: if no other daemon has the same calls or will replay them, and newer writes may be overwritten, use \
             --accept-clone"
        )));
    }
    let accepted = state_dir.accept_clone(is_drained);
    accepted.map_err(|error| Failure::failed(format!("{}: {error}", dir.display())))?;
    Ok(())
}

/// The store of each backend that is to be drained, and the stores that are not. A directory that is not there is not
/// made.
fn stores(
    dir: &Path,
    host: &Host,
    only: Option<&str>,
) -> Result<(BTreeMap<String, Store>, Vec<Missing>), Failure> {
    let mut found = host.stores(dir, only).map_err(|error| {
        Failure::failed(format!("there are no stores in {}: {error}", dir.display()))
    })?;
    found.name_left_over();
    let stores = found.stores.into_iter().map(|store| (store.name.clone(), store));
    Ok((stores.collect(), found.missing))
}

/// What the daemon that is gone was ordered, or had found, holds nothing back any more: to drain is to replay. The
/// store is open, so all of it is in effect.
async fn release(backend: &Backend, accept_retarget: bool) {
    let name = backend.name();
    let mut failed = Vec::new();
    failed.extend(backend.set_offline(false).await.err());
    // If it still is, its calls wait for another address.
    if accept_retarget && backend.view().offline {
        match backend.accept_retarget().await {
            Ok(()) => {
                complain(&format!("{name}: the waiting calls go to {}", backend.view().target));
            }
            Err(error) => failed.push(error),
        }
    }
    let breaker = backend.view().breaker;
    if breaker.forced.is_some() || breaker.state.known() == Some(State::Open) {
        failed.extend(backend.reset().await.err());
    }
    for error in failed {
        complain(&format!("{name}: {error}"));
    }
}

/// Waits until nothing waits, or nothing has moved for as long as the patience. A store that is being opened moves; once
/// it is open, what holds its backend back is lifted.
async fn until_still(fusebox: &Fusebox, wanted: &DrainArgs) {
    let backends = fusebox.backends();
    let mut held: Vec<&Arc<Backend>> = backends.iter().collect();
    let (mut last, mut moved) = (None, Instant::now());
    let mut waiting = progress::Waiting::of("replay");
    let mut poll = tokio::time::interval(LOOK_EVERY);
    loop {
        poll.tick().await;
        let (open, closed): (Vec<_>, Vec<_>) =
            held.into_iter().partition(|backend| backend.is_stored() && !backend.view().opening);
        held = closed;
        for backend in open {
            release(backend, wanted.accept_retarget).await;
        }
        let mut now: Vec<(bool, u64, u64)> = Vec::with_capacity(backends.len());
        let (mut over, mut is_opening) = (true, false);
        for backend in &backends {
            // Asked first: once it is open, what it holds has been counted.
            let is_stored = backend.is_stored();
            let view = backend.view();
            over &= is_stored && view.queue.calls == 0;
            is_opening |= view.opening;
            now.push((is_stored, view.queue.calls, view.queue.dead_letters));
        }
        waiting.left(now.iter().map(|(_, calls, _)| calls).sum());
        if over {
            return;
        }
        if is_opening || last.as_ref() != Some(&now) {
            (last, moved) = (Some(now), Instant::now());
        } else if moved.elapsed() >= wanted.patience {
            return;
        }
    }
}

async fn left_of(backend: &Backend) -> Left {
    let view = backend.view();
    let refuses = view.queue.store_refuses.filter(|_| !backend.is_stored());
    let mut left = Left {
        replayed: view.queue.replayed,
        waiting: view.queue.calls,
        why: refuses.map(|why| format!("its store does not open: {why}")),
        dead: Vec::new(),
    };
    if left.waiting > 0 {
        let why = told(view.alerts.into_iter().next()).or(view.queue.replay_paused);
        left.why = left.why.or(why);
        if left.why.is_none() {
            let newest = backend.queue_page(false, None, 1).await.calls.into_iter().next();
            left.why = newest.and_then(|call| told(call.last_error));
        }
    }
    let mut after = None;
    loop {
        let page = backend.queue_page(true, after, 1_000).await;
        let named = |call: QueuedCallView| {
            (call.op_id.to_string(), call.lane, told(call.last_error).unwrap_or_default())
        };
        left.dead.extend(page.calls.into_iter().map(named));
        after = page.next;
        if after.is_none() {
            return left;
        }
    }
}

/// Whoever may open the store is an admin, and sees what servers said.
fn told(words: Option<Words>) -> Option<String> {
    words.map(|words| words.whole().to_owned())
}

fn as_json(left: &BTreeMap<String, Left>, stray: &[String], missing: &[Missing]) -> Value {
    let one = |left: &Left| {
        let dead: Vec<Value> = left
            .dead
            .iter()
            .map(|(op_id, lane, why)| json!({ "op_id": op_id, "lane": lane, "why": why }))
            .collect();
        json!({ "replayed": left.replayed, "waiting": left.waiting, "why": left.why, "dead": dead })
    };
    let backends: serde_json::Map<String, Value> =
        left.iter().map(|(name, left)| (name.clone(), one(left))).collect();
    json!({ "backends": backends, "without_backend": stray, "missing": missing })
}

fn as_text(left: &BTreeMap<String, Left>, stray: &[String], missing: &[Missing]) -> String {
    let mut out = String::new();
    for (name, left) in left {
        let Left { replayed, waiting, why, dead } = left;
        out.extend([match (waiting, dead.len()) {
            (0, 0) => format!("{name}: {replayed} replayed, nothing left\n"),
            (waiting, dead) => {
                format!("{name}: {replayed} replayed, {waiting} waiting, {dead} dead letters\n")
            }
        }]);
        out.extend(why.iter().map(|why| format!("  {why}\n")));
        out.extend(dead.iter().map(|(op_id, lane, why)| format!("  {op_id}  {lane}  {why}\n")));
    }
    out.extend(stray.iter().map(|name| format!("{name}: no such backend in the configuration\n")));
    out.extend(missing.iter().map(|it| of_backend(it.backend.as_deref(), &it.why) + "\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_named() {
        let dead = vec![("01J".to_owned(), "k".to_owned(), "rejected: WRONGTYPE".to_owned())];
        let left = BTreeMap::from([
            ("a".to_owned(), Left { replayed: 3, ..Left::default() }),
            (
                "b".to_owned(),
                Left { replayed: 1, waiting: 2, why: Some("it is down".into()), dead },
            ),
        ]);
        let missing = [Missing { backend: Some("d".to_owned()), why: "it is in /q".to_owned() }];
        assert_eq!(
            as_text(&left, &["c".to_owned()], &missing),
            "a: 3 replayed, nothing left\nb: 1 replayed, 2 waiting, 1 dead letters\n  it is down\n  01J  k  rejected: \
             WRONGTYPE\nc: no such backend in the configuration\nd: it is in /q\n"
        );
        let json = as_json(&left, &[], &missing);
        assert_eq!(json["missing"][0]["backend"], "d");
        assert_eq!(json["backends"]["b"]["dead"][0]["op_id"], "01J");
        assert!(left["a"].is_empty() && !left["b"].is_empty());
    }
}
