//! `fusebox queue export|check|repair`: reads stores itself, with the daemon stopped or not; and `downgrade`, which
//! writes them, with the daemon stopped.
//!
//! The others change nothing: what they look at is the raw log. A store is at `<state_dir>/backends/<name>`, or at
//! `queue.dir`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use fusebox_actors::Clock;
use fusebox_state::{
    Lanes,
    store::{
        Faults, StoreSettings,
        check::{self, CheckReport, CheckVerdict, ExportedCall},
    },
};
use serde_json::{Value, json};

use super::args::{QueueArgs, QueueCommand};
use crate::{
    config::{Config, size},
    kinds,
    terminal::{
        client::segment,
        failure::{Done, Failure},
        print::{complain, on_terminal, say, say_json},
        progress,
        table::table,
    },
};

/// Damage was found.
const DAMAGE: u8 = 5;

/// A store and the backend that it is of.
#[derive(Debug, PartialEq, Eq)]
struct Store {
    name: String,
    dir: PathBuf,
}

/// Runs one of them. If the configuration is valid, it says which stores are elsewhere.
pub(crate) fn run(queue: QueueArgs, state_dir: &Path, config: Option<&Config>) -> Done {
    if let QueueCommand::Repair { dir: Some(dir) } = &queue.command {
        return repair_all([("", dir.as_path())]);
    }
    let stores = stores(state_dir, config, queue.backend.as_deref())?;
    match queue.command {
        QueueCommand::Check { output } => check_all(&stores, output.json),
        QueueCommand::Downgrade => downgrade_all(&stores),
        QueueCommand::Repair { .. } => {
            // A folder without a log, such as one of snapshots, has no calls.
            let asides: Vec<_> = asides(&stores)
                .into_iter()
                .filter(|(_, dir)| dir.join("db").try_exists().unwrap_or(true))
                .collect();
            if asides.is_empty() {
                complain(&format!("no store in {} was set aside", state_dir.display()));
            }
            repair_all(asides.iter().map(|(name, dir)| (*name, dir.as_path())))
        }
        _ => export_all(&stores),
    }
}

/// The stores that are there, by name; only one if it is named.
fn stores(
    state_dir: &Path,
    config: Option<&Config>,
    backend: Option<&str>,
) -> Result<Vec<Store>, Failure> {
    let base = state_dir.join("backends");
    let mut found: Vec<Store> = config
        .into_iter()
        .flat_map(|config| &config.backends)
        .filter_map(|backend| {
            let settings = &backend.settings;
            Some(Store { name: settings.name.clone(), dir: settings.queue_dir.clone()? })
        })
        .collect();
    if let Some(name) = backend {
        let dir = base.join(segment(name)?);
        found.retain(|store| store.name == name);
        return Ok(if found.is_empty() {
            vec![Store { name: name.to_owned(), dir }]
        } else {
            found
        });
    }
    match std::fs::read_dir(&base) {
        Ok(entries) => found.extend(entries.filter_map(|entry| {
            let dir = entry.ok()?.path();
            let name = dir.file_name()?.to_str()?.to_owned();
            dir.is_dir().then_some(Store { name, dir })
        })),
        Err(error) if !found.is_empty() => drop(error),
        Err(error) => {
            return Err(Failure::failed(format!("cannot read {}: {error}", base.display())));
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found.dedup_by(|later, earlier| later.name == earlier.name);
    Ok(found)
}

fn check_all(stores: &[Store], as_json: bool) -> Done {
    let reports: Vec<(&Store, CheckReport)> = stores
        .iter()
        .map(|store| {
            let bar = progress::bytes(&store.name);
            let report = check::check(&store.dir, &mut progress::follow(&bar));
            bar.finish_and_clear();
            (store, report)
        })
        .collect();
    if as_json {
        let all: serde_json::Map<String, Value> = reports
            .iter()
            .map(|(store, report)| Ok((store.name.clone(), serde_json::to_value(report)?)))
            .collect::<Result<_, serde_json::Error>>()
            .map_err(anyhow::Error::from)?;
        say_json(&json!({ "backends": all }))?;
    } else {
        say(&report_text(&reports, on_terminal()))?;
    }
    let damaged = reports.iter().any(|(_, report)| {
        matches!(report.verdict, CheckVerdict::Damaged | CheckVerdict::NewerFormat)
    });
    Ok(ExitCode::from(if damaged { DAMAGE } else { 0 }))
}

fn report_text(reports: &[(&Store, CheckReport)], terminal: bool) -> String {
    let word = |value: Result<Value, serde_json::Error>| {
        value.ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    };
    let rows: Vec<Vec<String>> = reports
        .iter()
        .map(|(store, report)| {
            let count = |of: fn(&fusebox_state::store::Counts) -> u64| {
                report.counts.as_ref().map_or_else(|| "?".into(), |counts| of(counts).to_string())
            };
            vec![
                store.name.clone(),
                word(serde_json::to_value(report.verdict)),
                count(|counts| counts.pending),
                count(|counts| counts.sending),
                count(|counts| counts.dead),
                size(report.log_bytes),
                if report.live { "yes".into() } else { "no".into() },
            ]
        })
        .collect();
    let heads = ["BACKEND", "VERDICT", "WAITING", "SENDING", "DEAD", "SIZE", "OPEN"];
    let mut out = table(&heads, &rows, terminal);
    for (Store { name, dir }, report) in reports {
        for finding in &report.findings {
            out.extend([format!("{name}: {finding}\n")]);
        }
        if let Some(why) = &report.not_proven {
            out.extend([format!("{name}: its waiting calls are not known: {why}\n")]);
        }
        for folder in &report.set_aside {
            let path = dir.join(folder);
            out.extend([format!(
                "{name}: set aside; see: fusebox queue repair {}\n",
                path.display()
            )]);
        }
    }
    out
}

fn export_all(stores: &[Store]) -> Done {
    let mut bad = 0;
    for store in stores {
        let (bar, mut failed) = (progress::bytes(&store.name), None);
        let summary = check::export(&store.dir, &mut progress::follow(&bar), &mut |call| {
            bar.finish_and_clear();
            failed = failed.take().or_else(|| say_json(&line(&store.name, &call)).err());
        });
        bar.finish_and_clear();
        if let Some(failure) = failed {
            return Err(failure);
        }
        let summary =
            summary.map_err(|error| Failure::failed(format!("{}: {error}", store.name)))?;
        complain(&format!("{}: {} calls exported", store.name, summary.calls));
        if summary.bad > 0 {
            complain(&format!("{}: {} damaged records were left out", store.name, summary.bad));
        }
        bad += summary.bad;
    }
    Ok(ExitCode::from(if bad > 0 { DAMAGE } else { 0 }))
}

/// `fusebox queue downgrade`: each store in the format of the release before, or the first that cannot be.
fn downgrade_all(stores: &[Store]) -> Done {
    for store in stores {
        let settings = StoreSettings {
            dir: store.dir.clone(),
            target: "".into(),
            disk_floor: 0,
            unix_now: Arc::new(|| Clock::system().unix()),
            on_event: Arc::new(|_| ()),
            packed: false,
            faults: Faults::default(),
        };
        let done = fusebox_state::store::downgrade(&settings);
        let done = done.map_err(|error| Failure::failed(format!("{}: {error}", store.name)))?;
        say(&format!(
            "{}: {} calls, in the format of the previous release\n",
            store.name, done.calls
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The folders that were set aside of these stores, each with the name of its store.
fn asides(stores: &[Store]) -> Vec<(&str, PathBuf)> {
    let of = |store: &Store| {
        let folders = check::asides(&store.dir);
        folders.into_iter().map(|folder| store.dir.join(folder)).collect::<Vec<_>>()
    };
    stores
        .iter()
        .flat_map(|store| of(store).into_iter().map(|dir| (store.name.as_str(), dir)))
        .collect()
}

/// `fusebox queue repair`: what can be read of stores that were set aside, as JSON lines. Each has the name of its
/// backend, which is empty if that is not known.
fn repair_all<'a>(asides: impl IntoIterator<Item = (&'a str, &'a Path)>) -> Done {
    let (mut incomplete, mut unread) = (0, false);
    for (name, dir) in asides {
        let (bar, mut failed) = (progress::bytes(name), None);
        let summary = check::repair(dir, &mut progress::follow(&bar), &mut |call| {
            bar.finish_and_clear();
            failed = failed.take().or_else(|| say_json(&line(name, &call)).err());
        });
        bar.finish_and_clear();
        if let Some(failure) = failed {
            return Err(failure);
        }
        let summary = match summary {
            Ok(summary) => summary,
            Err(error) if name.is_empty() => return Err(Failure::failed(error.to_string())),
            // The others may be read.
            Err(error) => {
                complain(&format!("{name}: {}: {error}", dir.display()));
                unread = true;
                continue;
            }
        };
        let of = if name.is_empty() { String::new() } else { format!("{name}: ") };
        complain(&format!(
            "{of}{} complete calls, {} incomplete; some of them may have been delivered long ago",
            summary.calls, summary.incomplete
        ));
        incomplete += summary.incomplete;
    }
    Ok(match (unread, incomplete) {
        (true, _) => ExitCode::FAILURE,
        (false, 0) => ExitCode::SUCCESS,
        (false, _) => ExitCode::from(DAMAGE),
    })
}

/// A call as a line of an export: with its body in wire form, and as JSON if its kind is known.
fn line(backend: &str, exported: &ExportedCall) -> Value {
    let ExportedCall { call, body, state } = exported;
    let header = &call.header;
    let kind = kinds::find(call.target.kind());
    json!({
        "backend": backend,
        "op_id": header.op_id,
        "sequence": call.seq,
        "state": state,
        "lane": call.label,
        "target": call.target,
        "uid": header.uid,
        "accepted_at": header.accepted_at,
        "expires_at": null,
        "traceparent": call.traceparent,
        "dead": call.dead.as_ref().map(|dead| json!({
            "why": dead.detail.whole(), "at": dead.at, "reason": dead.reason, "attempts": dead.attempts,
        })),
        "digest": format!("{:016x}", header.digest),
        "lanes": lanes(&header.lanes),
        "token": header.token,
        "traits": {
            "whole": header.traits.is_whole(),
            "timed": header.traits.is_timed(),
            "gather": header.traits.gather().map(|number| format!("{number:016x}")),
            "due": header.traits.due(),
        },
        "sent": call.first_sent_at.map(|at| json!({
            "at": at,
            "evidence": { "base64": STANDARD.encode(&call.evidence) },
            "together": call.group.is_some(),
        })),
        "call": kind.map(|kind| kind.body_to_json(body)),
        "body": { "base64": STANDARD.encode(body) },
    })
}

/// Lanes as an export has them: hexadecimal, as they do not fit the numbers of every reader.
fn lanes(lanes: &Lanes) -> Value {
    if lanes.is_all() {
        return json!("all");
    }
    lanes.as_slice().iter().map(|lane| json!(format!("{:016x}", lane.0))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(name: &str, dir: PathBuf) -> Store {
        Store { name: name.into(), dir }
    }

    #[test]
    fn stores_are_the_folders_below_backends() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("backends");
        assert!(stores(dir.path(), None, None).is_err());
        for name in ["b", "a"] {
            std::fs::create_dir_all(base.join(name)).unwrap();
        }
        std::fs::write(base.join("file"), "").unwrap();
        let (a, b) = (store("a", base.join("a")), store("b", base.join("b")));
        assert_eq!(stores(dir.path(), None, None).unwrap(), [a, b]);
        assert_eq!(stores(dir.path(), None, Some("x")).unwrap(), [store("x", base.join("x"))]);
    }

    #[test]
    fn an_empty_folder_is_empty_and_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        let empty = store("redis", dir.path().to_owned());
        let report = check::check(&empty.dir, &mut |_, _| {});
        assert_eq!(
            report_text(&[(&empty, report)], false),
            "BACKEND  VERDICT  WAITING  SENDING  DEAD  SIZE  OPEN\n\
             redis    empty    ?        ?        ?     0 B   no\n"
        );
    }

    /// A store at `dir` with one call in it.
    fn store_with_a_call(dir: &Path) {
        use fusebox_state::{
            LaneId, Lanes, OpId, UnixMillis,
            store::{
                CallHeader, CallStore, Faults, NewCall, Store, StoreSettings, TokenKind, Traits,
            },
        };
        let settings = StoreSettings {
            dir: dir.to_owned(),
            target: "redis h:1/0".into(),
            disk_floor: 0,
            unix_now: std::sync::Arc::new(|| UnixMillis::new(1_790_000_000_000)),
            on_event: std::sync::Arc::new(|_| {}),
            packed: false,
            faults: Faults::default(),
        };
        let store = Store::open(settings).unwrap().store;
        let call = NewCall {
            seq: 1,
            header: CallHeader {
                op_id: OpId::from_u128(7),
                digest: 1,
                uid: 1_000,
                lanes: Lanes::One(LaneId(1)),
                token: TokenKind::Absolute,
                traits: Traits::default(),
                accepted_at: UnixMillis::new(1_790_000_000_000),
            },
            label: "k".into(),
            note: None,
            traceparent: None,
            body: b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n".as_slice().into(),
        };
        let (done, wait) = std::sync::mpsc::channel();
        store.append(call, Box::new(move |result| done.send(result.is_ok()).unwrap()));
        assert!(wait.recv().unwrap());
        store.close();
    }

    #[test]
    fn a_call_is_exported_with_its_command_and_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let redis = store("redis", dir.path().join("backends/redis"));
        store_with_a_call(&redis.dir);
        let mut lines = Vec::new();
        check::export(&redis.dir, &mut |_, _| {}, &mut |call| lines.push(line("redis", &call)))
            .unwrap();
        let [exported] = lines.as_slice() else { panic!("one call, got {lines:?}") };
        assert_eq!(exported["call"], json!(["SET", "k", "v"]));
        assert_eq!(exported["body"]["base64"], "KjMNCiQzDQpTRVQNCiQxDQprDQokMQ0Kdg0K");
        assert_eq!(
            (exported["state"].as_str(), exported["lane"].as_str()),
            (Some("pending"), Some("k"))
        );
        let report = check::check(&redis.dir, &mut |_, _| {});
        let text = report_text(&[(&redis, report)], false);
        assert!(
            text.lines().nth(1).unwrap().starts_with("redis    whole    1        0        0"),
            "{text}"
        );
    }
}
