//! `fusebox queue export|check|repair`: reads stores itself, with the daemon stopped or not; and `downgrade`, which
//! writes them, with the daemon stopped.
//!
//! The others change nothing: what they look at is the raw log. All of them look at the same stores of a directory
//! ([`stores`](super::stores)), and fail if one of these is not to be had. A store that was left over is only checked, and
//! what was set aside in it repaired: its calls, exported with those of the store in use, would be applied again, or
//! behind newer ones.

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

use super::{
    args::{QueueArgs, QueueCommand},
    export_lines::{line_max, room_for},
    stores::Host,
};
use crate::{
    config::size,
    kinds::{self, port::SHOWN_MAX},
    state_dir::stores::{Found, Missing, Store},
    terminal::{
        client::segment,
        failure::{Done, Failure},
        print::{complain, on_terminal, say, say_json},
        progress,
        table::table,
    },
};

/// All was done.
const DONE: u8 = 0;
/// Something was not done.
const FAILED: u8 = 1;
/// Damage was found.
const DAMAGE: u8 = 5;
/// The least that `calls.bytes` is by default.
const CALLS_BYTES: u64 = 16 << 20;

/// Prints a text.
type Print<'a> = &'a mut dyn FnMut(&str) -> Result<(), Failure>;

/// Runs one of them. The configuration of the host, if it is valid, says which stores are elsewhere.
pub(crate) fn run(queue: QueueArgs, state_dir: &Path, host: &Host) -> Done {
    run_printing(queue, state_dir, host, &mut say).map(ExitCode::from)
}

/// Runs one of them, and prints the lines of calls with `print`. Returns the exit code.
fn run_printing(
    queue: QueueArgs,
    state_dir: &Path,
    host: &Host,
    print: Print<'_>,
) -> Result<u8, Failure> {
    let QueueArgs { backend, command } = queue;
    let calls_bytes = host.config().map(|config| config.calls_bytes);
    match &command {
        QueueCommand::Repair { dir: Some(dir) } => {
            return repair_all([("", dir.as_path())], calls_bytes, print);
        }
        QueueCommand::Export { dir: Some(dir) } => {
            let name = backend.as_deref().map(segment).transpose()?.unwrap_or_default();
            return export_all(&[Store::at(name, dir)], calls_bytes, print);
        }
        _ => {}
    }
    let mut found = stores(state_dir, host, backend.as_deref())?;
    if matches!(command, QueueCommand::Export { .. } | QueueCommand::Downgrade) {
        found.name_left_over();
    }
    for Missing { backend, why } in &found.missing {
        complain(&of_backend(backend.as_deref(), why));
    }
    let code = match command {
        QueueCommand::Check { output } => check_all(&found, output.json)?,
        QueueCommand::Downgrade => downgrade_all(&found.stores)?,
        QueueCommand::Repair { .. } => {
            // What was left over is older. A folder without a log, such as one of snapshots, has no calls.
            let asides: Vec<_> = asides(found.left_over.iter().chain(&found.stores))
                .into_iter()
                .filter(|(_, dir)| dir.join("db").try_exists().unwrap_or(true))
                .collect();
            if asides.is_empty() {
                complain(&format!("no store in {} was set aside", state_dir.display()));
            }
            let asides = asides.iter().map(|(name, dir)| (*name, dir.as_path()));
            repair_all(asides, calls_bytes, print)?
        }
        _ => export_all(&found.stores, calls_bytes, print)?,
    };
    Ok(if code == DONE && !found.missing.is_empty() { FAILED } else { code })
}

/// The stores of the directory; only those of one backend if it is named.
fn stores(state_dir: &Path, host: &Host, backend: Option<&str>) -> Result<Found, Failure> {
    let name = backend.map(segment).transpose()?;
    let mut found = host.stores(state_dir, name).map_err(|error| {
        Failure::failed(format!("cannot read {}: {error}", state_dir.join("backends").display()))
    })?;
    if let Some(name) = name.filter(|_| found.stores.is_empty() && found.missing.is_empty()) {
        found.stores.push(Store::usual(state_dir, name));
    }
    Ok(found)
}

/// `why`, said of a backend, if it is known which.
pub(super) fn of_backend(backend: Option<&str>, why: &str) -> String {
    backend.map_or_else(|| why.to_owned(), |name| format!("{name}: {why}"))
}

fn check_all(found: &Found, as_json: bool) -> Result<u8, Failure> {
    let reports: Vec<(&Store, CheckReport)> = found
        .all()
        .into_iter()
        .map(|store| {
            let bar = progress::bytes(&store.label);
            let report = check::check(&store.dir, &mut progress::follow(&bar));
            bar.finish_and_clear();
            (store, report)
        })
        .collect();
    if as_json {
        let all: serde_json::Map<String, Value> = reports
            .iter()
            .map(|(store, report)| Ok((store.label.clone(), serde_json::to_value(report)?)))
            .collect::<Result<_, serde_json::Error>>()
            .map_err(anyhow::Error::from)?;
        say_json(&json!({ "backends": all, "missing": found.missing }))?;
    } else {
        say(&report_text(&reports, on_terminal()))?;
    }
    let damaged = reports.iter().any(|(_, report)| {
        matches!(report.verdict, CheckVerdict::Damaged | CheckVerdict::NewerFormat)
    });
    Ok(if damaged { DAMAGE } else { DONE })
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
                store.label.clone(),
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
    for (Store { label: name, dir, .. }, report) in reports {
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

/// `fusebox queue export`: the calls of each store, as JSON lines. One that cannot be read keeps no other from it.
fn export_all(stores: &[Store], calls_bytes: Option<u64>, print: Print<'_>) -> Result<u8, Failure> {
    let (mut bad, mut unread) = (0, false);
    for store in stores {
        let (bar, mut lines) =
            (progress::bytes(&store.label), Lines::new(&store.name, calls_bytes, print));
        let summary = check::export(&store.dir, &mut progress::follow(&bar), &mut |call| {
            bar.finish_and_clear();
            lines.print(&call);
        });
        bar.finish_and_clear();
        lines.end()?;
        let summary = match summary {
            Ok(summary) => summary,
            Err(error) => {
                complain(&format!("{}: {error}", store.label));
                unread = true;
                continue;
            }
        };
        complain(&format!("{}: {} calls exported", store.label, summary.calls));
        if summary.bad > 0 {
            complain(&format!("{}: {} damaged records were left out", store.label, summary.bad));
        }
        bad += summary.bad;
    }
    Ok(code_of(unread, bad))
}

/// The exit code after stores of which one may be unread, and of which so much was damaged.
fn code_of(unread: bool, damaged: u64) -> u8 {
    match (unread, damaged) {
        (true, _) => FAILED,
        (false, 0) => DONE,
        (false, _) => DAMAGE,
    }
}

/// The lines of one store, as they are printed. A line that a daemon may have no room for is counted.
struct Lines<'a> {
    backend: &'a str,
    /// The longest line that there is room for, in bytes.
    longest: u64,
    too_long: u64,
    most: u64,
    failed: Option<Failure>,
    out: Print<'a>,
}

impl<'a> Lines<'a> {
    /// Lines of `backend`, for a daemon with so many `calls.bytes`.
    fn new(backend: &'a str, calls_bytes: Option<u64>, out: Print<'a>) -> Self {
        let longest = line_max(calls_bytes.unwrap_or(CALLS_BYTES));
        Self { backend, longest, too_long: 0, most: 0, failed: None, out }
    }

    fn print(&mut self, call: &ExportedCall) {
        if self.failed.is_some() {
            return;
        }
        let text = format!("{}\n", line(self.backend, call));
        let bytes = text.len() as u64;
        self.most = self.most.max(bytes);
        self.too_long += u64::from(bytes > self.longest);
        self.failed = (self.out)(&text).err();
    }

    /// Warns of lines that are too long, so that nobody discards their calls.
    fn end(self) -> Result<(), Failure> {
        let Self { backend, too_long, most, failed, .. } = self;
        if too_long > 0 {
            let room = room_for(most);
            complain(&of_backend(
                Some(backend).filter(|name| !name.is_empty()),
                &format!(
                    "{too_long} calls are large: to import all of them, a daemon needs calls.bytes of at least {room}"
                ),
            ));
        }
        failed.map_or(Ok(()), Err)
    }
}

/// `fusebox queue downgrade`: each store in the format of the release before, or the first that cannot be.
fn downgrade_all(stores: &[Store]) -> Result<u8, Failure> {
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
        let done = done.map_err(|error| Failure::failed(format!("{}: {error}", store.label)))?;
        say(&format!(
            "{}: {} calls, in the format of the previous release\n",
            store.label, done.calls
        ))?;
    }
    Ok(DONE)
}

/// The folders that were set aside of these stores, each with the name of its store.
fn asides<'a>(stores: impl Iterator<Item = &'a Store>) -> Vec<(&'a str, PathBuf)> {
    stores
        .flat_map(|store| {
            let folders = check::asides(&store.dir).into_iter();
            folders.map(move |folder| (store.name.as_str(), store.dir.join(folder)))
        })
        .collect()
}

/// `fusebox queue repair`: what can be read of stores that were set aside, as JSON lines. Each has the name of its
/// backend, which is empty if that is not known.
fn repair_all<'a>(
    asides: impl IntoIterator<Item = (&'a str, &'a Path)>,
    calls_bytes: Option<u64>,
    print: Print<'_>,
) -> Result<u8, Failure> {
    let (mut incomplete, mut unread) = (0, false);
    for (name, dir) in asides {
        let (bar, mut lines) = (progress::bytes(name), Lines::new(name, calls_bytes, print));
        let summary = check::repair(dir, &mut progress::follow(&bar), &mut |call| {
            bar.finish_and_clear();
            lines.print(&call);
        });
        bar.finish_and_clear();
        lines.end()?;
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
    Ok(code_of(unread, incomplete))
}

/// A call as a line of an export: with its body in wire form, and as JSON if its kind is known and it is not large. So a
/// line of a large call is about a third longer than its body.
fn line(backend: &str, exported: &ExportedCall) -> Value {
    let ExportedCall { call, body, state } = exported;
    let header = &call.header;
    let kind = kinds::find(call.target.kind()).filter(|_| body.len() <= SHOWN_MAX);
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
    use crate::state_dir::tests::store_with_a_call;
    use crate::{
        config::{Environment, Flags},
        state_dir::StateDir,
    };

    fn store(name: &str, dir: PathBuf) -> Store {
        Store { name: name.into(), label: name.into(), dir, is_elsewhere: false }
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

    /// The host whose daemon has the state directory `dir`, and the store of `redis` in `q` if it is not in the usual
    /// folder.
    fn host(dir: &Path, q: Option<&Path>) -> Host {
        let q = q.map(|q| ("FUSEBOX_BACKENDS__REDIS__QUEUE__DIR", q.to_str().unwrap()));
        let pairs = [("FUSEBOX_STATE_DIR", dir.to_str().unwrap()), ("FUSEBOX_CONFIG", "/dev/null")];
        let pairs: Vec<_> = pairs.into_iter().chain(q).collect();
        let host = Host::of(&Flags::default(), &Environment::of(&pairs));
        assert!(host.config().is_some(), "its configuration is valid");
        host
    }

    /// What an export of the state directory `dir`, or of one folder, prints: its calls, and the exit code.
    fn export(dir: &Path, host: &Host, folder: Option<&Path>) -> (Vec<Value>, u8) {
        let command = QueueCommand::Export { dir: folder.map(Path::to_owned) };
        let queue = QueueArgs { backend: None, command };
        let mut calls = Vec::new();
        let code = run_printing(queue, dir, host, &mut |text: &str| {
            let line: Value = serde_json::from_str(text).unwrap();
            calls.push(line["call"].clone());
            Ok(())
        });
        (calls, code.unwrap())
    }

    #[test]
    fn an_export_has_one_store_of_a_backend_and_names_the_other() {
        let place = tempfile::tempdir().unwrap();
        let (dir, q) = (place.path().join("state"), place.path().join("q"));
        let old = dir.join("backends/redis");
        store_with_a_call(&q, "new");
        store_with_a_call(&old, "old");
        let state = StateDir::open(&dir).unwrap();
        state.remember_stores([("redis".to_owned(), Some(q.clone()))].into_iter());
        drop(state);
        let own = host(&dir, Some(&q));
        let set_to = |value: &str| vec![json!(["SET", "k", value])];
        assert_eq!(export(&dir, &own, None), (set_to("new"), FAILED));
        let mut found = stores(&dir, &own, None).unwrap();
        found.name_left_over();
        let [Missing { backend, why }] = found.missing.as_slice() else { panic!("{found:?}") };
        assert_eq!(backend.as_deref(), Some("redis"));
        assert!(why.contains(&format!("fusebox queue export {} ", old.display())), "{why}");
        assert_eq!(export(&dir, &own, Some(&old)), (set_to("old"), DONE));
        // A daemon whose configuration names the usual folder again uses the store there.
        let home = host(&dir, None);
        assert_eq!(export(&dir, &home, None), (set_to("old"), FAILED));
        std::fs::remove_dir_all(&q).unwrap();
        assert_eq!(export(&dir, &home, None), (set_to("old"), DONE));
    }

    #[test]
    fn a_store_that_cannot_be_exported_keeps_no_other_from_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("backends/a/db.damaged-1")).unwrap();
        store_with_a_call(&dir.path().join("backends/redis"), "v");
        let own = host(dir.path(), None);
        assert_eq!(export(dir.path(), &own, None), (vec![json!(["SET", "k", "v"])], FAILED));
    }

    /// The line of the only call of the store at `dir`.
    fn exported(dir: &Path) -> Value {
        let mut lines = Vec::new();
        check::export(dir, &mut |_, _| {}, &mut |call| lines.push(line("redis", &call))).unwrap();
        let [exported] = lines.as_slice() else { panic!("one call, got {lines:?}") };
        exported.clone()
    }

    #[test]
    fn a_large_call_is_exported_once_and_not_as_json_too() {
        let dir = tempfile::tempdir().unwrap();
        let value = "v".repeat(SHOWN_MAX);
        store_with_a_call(dir.path(), &value);
        let exported = exported(dir.path());
        assert_eq!(exported["call"], Value::Null);
        let bytes = exported.to_string().len();
        assert!(bytes < value.len() * 4 / 3 + 2_000, "{bytes}");
        assert!(
            exported["body"]["base64"].as_str().unwrap().len() > value.len(),
            "it is all there"
        );
    }

    #[test]
    fn a_call_is_exported_with_its_command_and_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let redis = store("redis", dir.path().join("backends/redis"));
        store_with_a_call(&redis.dir, "v");
        let exported = exported(&redis.dir);
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
