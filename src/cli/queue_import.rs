//! `fusebox queue import`: has the daemon take in the lines of an export or a repair.
//!
//! The file is read twice: first the daemon says whether it understands every line, and only then takes any. What
//! is large goes in several requests, in order. A call that waits there already is passed over. One that has been replayed
//! meanwhile is not known any more: who imports its line again has it applied again.
//!
//! A daemon takes no line that is longer than half of its `calls.bytes`. Such a line is left out, with those behind it
//! that must not overtake its call, and all else is imported. Later, these lines alone are to be imported.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    process::ExitCode,
};

use fusebox_state::{LaneId, Lanes};
use serde_json::{Value, json};

use super::{
    backends::only_backend,
    export_lines::{Order, name_of, read_lines, room_for, unnamed},
};
use crate::{
    config::size,
    terminal::{
        client::{Client, segment},
        failure::{Done, Failure},
        print::{complain, say, say_json},
        views::{ImportLine, read},
    },
};

/// Bytes of one request; a single line may be longer.
const REQUEST_BYTES: u64 = 8 << 20;
/// Lines of one request.
const REQUEST_LINES: usize = 1_000;
/// The largest request that a daemon takes which does not say that: one of an earlier release.
const BODY_MAX_BEFORE: u64 = 64 << 20;
/// The numbers of a report.
const COUNTS: [&str; 7] =
    ["imported", "in_doubt", "dead", "salvaged", "known", "wants_force", "not_tried"];

/// A line of the file.
struct Line<'t> {
    number: usize,
    backend: String,
    text: &'t str,
}

impl Line<'_> {
    /// What it is in a request.
    fn bytes(&self) -> u64 {
        self.text.len() as u64 + 1
    }
}

/// Lines that follow one another in the file and are for one backend.
#[derive(Debug, PartialEq)]
struct Part<'t> {
    backend: String,
    first_line: usize,
    lines: Vec<&'t str>,
    bytes: u64,
}

/// A line that is not sent.
#[derive(Debug, PartialEq)]
struct Unsent {
    line: usize,
    op_id: String,
    why: String,
}

/// What must not be overtaken of a backend: the lanes of lines that are not sent, each with the first of these lines.
#[derive(Default)]
struct Held {
    lanes: HashMap<LaneId, usize>,
    all: Option<usize>,
}

impl Held {
    fn add(&mut self, lanes: &Lanes, line: usize) {
        if lanes.is_all() {
            self.all.get_or_insert(line);
        }
        for lane in lanes.as_slice() {
            self.lanes.entry(*lane).or_insert(line);
        }
    }

    /// A line that one with these lanes must not overtake.
    fn before(&self, lanes: &Lanes) -> Option<usize> {
        if self.all.is_some() {
            return self.all;
        }
        let shared = if lanes.is_all() {
            self.lanes.values().min()
        } else {
            lanes.as_slice().iter().filter_map(|lane| self.lanes.get(lane)).min()
        };
        shared.copied()
    }
}

/// What is asked for besides the lines.
pub(super) struct Wanted {
    pub(super) force: bool,
    pub(super) retarget: bool,
    pub(super) json: bool,
}

/// Imports the lines of `file`, those of a repair into `backend`.
pub(super) async fn run(
    client: &Client,
    backend: Option<String>,
    file: &Path,
    wanted: &Wanted,
) -> Done {
    let text = read_lines(file)?;
    // A line of a repair names no backend.
    let usual = match &backend {
        Some(name) => name.clone(),
        None if unnamed(&text) => only_backend(client).await?,
        None => String::new(),
    };
    let lines = lines(&text, backend.as_deref(), &usual);
    let most = match lines.first() {
        Some(line) => body_max(client, &line.backend).await?,
        None => 0,
    };
    let (parts, unsent) = parts(lines, most, wanted.retarget);
    let asks = format!("force={}&retarget={}", wanted.force, wanted.retarget);
    for part in &parts {
        send(client, part, &format!("{asks}&check=true")).await?;
    }
    let mut sums: BTreeMap<&str, u64> = COUNTS.iter().map(|count| (*count, 0)).collect();
    let mut written: Vec<Value> = Vec::new();
    let mut refused: Vec<Value> = unsent
        .into_iter()
        .map(|Unsent { line, op_id, why }| json!({ "line": line, "op_id": op_id, "why": why }))
        .collect();
    for part in &parts {
        let report = send(client, part, &asks).await?;
        for (count, sum) in &mut sums {
            *sum += report.get(*count).and_then(Value::as_u64).unwrap_or(0);
        }
        let list = |key| report.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        written.extend(list("lanes_written"));
        let now_refused = list("refused");
        let is_over = !now_refused.is_empty();
        refused.extend(now_refused);
        if is_over {
            // Those behind it must not overtake it.
            break;
        }
    }
    let done = refused.is_empty() && sums.get("wants_force") == Some(&0);
    if wanted.json {
        say_json(&json!({ "counts": sums, "lanes_written": written, "refused": refused }))?;
    } else {
        say(&text_of(&sums))?;
        let wants_force =
            "its lane was, or may have been, written since: --force imports it anyway";
        for line in &written {
            let ImportLine { line, op_id, .. } = read(line)?;
            complain(&format!("line {line}, {op_id}: {wants_force}"));
        }
        for line in &refused {
            let ImportLine { line, op_id, why } = read(line)?;
            complain(&format!("line {line}, {op_id}: {why}"));
        }
    }
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The largest request that the daemon takes, in bytes.
async fn body_max(client: &Client, backend: &str) -> Result<u64, Failure> {
    let path = format!("/admin/backends/{}/queue/import?check=true", segment(backend)?);
    let answer = client.post_text(&path, String::new()).await?;
    Ok(answer.get("body_max").and_then(Value::as_u64).unwrap_or(BODY_MAX_BEFORE))
}

async fn send(client: &Client, part: &Part<'_>, asks: &str) -> Result<Value, Failure> {
    let path = format!(
        "/admin/backends/{}/queue/import?{asks}&first_line={}",
        segment(&part.backend)?,
        part.first_line
    );
    client.post_text(&path, part.lines.join("\n")).await
}

fn text_of(sums: &BTreeMap<&str, u64>) -> String {
    let count = |name: &str| sums.get(name).copied().unwrap_or(0);
    let mut out = format!(
        "{} calls wait ({} of them may have been applied), {} are dead letters, {} were already there\n",
        count("imported"),
        count("in_doubt"),
        count("dead"),
        count("known")
    );
    if count("salvaged") > 0 {
        out.extend([format!(
            "{} come from a repair: some of them may have been delivered long ago\n",
            count("salvaged")
        )]);
    }
    out
}

/// The lines of the file. Those without a name are for `usual`; if `only` is wanted, those of others are left out.
fn lines<'t>(text: &'t str, only: Option<&str>, usual: &str) -> Vec<Line<'t>> {
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let named = lines.map(|(number, text)| {
        let name = name_of(text);
        let backend = if name.is_empty() { usual.to_owned() } else { name };
        Line { number, backend, text }
    });
    named.filter(|line| only.is_none_or(|only| only == line.backend)).collect()
}

/// The lines in requests of at most `most` bytes. One that is longer is not sent, and neither is any that would overtake
/// it: after a retarget that may be any, as the lanes of the calls are others then.
fn parts(lines: Vec<Line<'_>>, most: u64, retarget: bool) -> (Vec<Part<'_>>, Vec<Unsent>) {
    let (mut requests, mut unsent): (Vec<Part<'_>>, Vec<Unsent>) = (Vec::new(), Vec::new());
    let mut held: HashMap<String, Held> = HashMap::new();
    for line in lines {
        let bytes = line.bytes();
        if bytes > most || held.contains_key(&line.backend) {
            let Order { op_id, lanes: own, is_dead } = Order::of(line.text);
            let touched = if retarget { Lanes::All } else { own };
            let held = held.entry(line.backend.clone()).or_default();
            let why = if bytes > most {
                Some(format!(
                    "its line has {}, and this daemon takes {}: set calls.bytes to at least {}, reload, and import \
                     only the lines that are named here, in their order, from a file of their own",
                    size(bytes),
                    size(most),
                    room_for(bytes)
                ))
            } else {
                let before = held.before(&touched).filter(|_| !is_dead);
                before.map(|before| {
                    format!("it must not overtake line {before}, which is not imported")
                })
            };
            if let Some(why) = why {
                // Also if it is a dead letter, which may block its lanes.
                held.add(&touched, line.number);
                unsent.push(Unsent { line: line.number, op_id, why });
                continue;
            }
        }
        let fits = |part: &Part<'_>| {
            part.backend == line.backend
                && part.first_line + part.lines.len() == line.number
                && part.lines.len() < REQUEST_LINES
                && part.bytes + bytes <= REQUEST_BYTES.min(most)
        };
        if let Some(part) = requests.last_mut().filter(|part| fits(part)) {
            part.lines.push(line.text);
            part.bytes += bytes;
        } else {
            let Line { number: first_line, backend, text } = line;
            requests.push(Part { backend, first_line, lines: vec![text], bytes });
        }
    }
    (requests, unsent)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A place for all lines of the tests.
    const ROOM: u64 = 1 << 20;

    fn part<'t>(backend: &str, first_line: usize, lines: &[&'t str]) -> Part<'t> {
        let bytes = lines.iter().map(|line| line.len() as u64 + 1).sum();
        Part { backend: backend.to_owned(), first_line, lines: lines.to_vec(), bytes }
    }

    #[test]
    fn lines_go_to_their_backends_in_order_and_keep_their_numbers() {
        let text =
            "{\"backend\":\"a\"}\n{\"backend\":\"a\"}\n\n{\"backend\":\"b\"}\n{}\nnonsense\n";
        assert!(unnamed(text));
        let (a, b) = ("{\"backend\":\"a\"}", "{\"backend\":\"b\"}");
        let expected =
            vec![part("a", 1, &[a, a]), part("b", 4, &[b]), part("u", 5, &["{}", "nonsense"])];
        assert_eq!(parts(lines(text, None, "u"), ROOM, false), (expected, vec![]));
        let (only, _) = parts(lines(text, Some("b"), "b"), ROOM, false);
        assert_eq!(only.len(), 1, "a mended file's lines stay with their backend: {only:?}");
        let many = "{}\n".repeat(REQUEST_LINES + 1);
        assert_eq!(parts(lines(&many, None, "u"), ROOM, false).0.len(), 2);
    }

    #[test]
    fn a_line_that_is_too_long_holds_back_only_what_would_overtake_it() {
        let line = |backend: &str, op_id: &str, lanes: &Value, dead: &Value, more: &str| {
            let line = json!({ "backend": backend, "op_id": op_id, "lanes": lanes, "dead": dead, "body": more });
            line.to_string()
        };
        let (none, long) = (Value::Null, "x".repeat(1_000));
        let file = [
            line("a", "first", &json!(["1"]), &none, ""),
            line("a", "long", &json!(["1", "2"]), &none, &long),
            line("a", "same lane", &json!(["2", "3"]), &none, ""),
            line("a", "lane of that one", &json!(["3"]), &none, ""),
            line("a", "another lane", &json!(["4"]), &none, ""),
            line("a", "dead", &json!(["1"]), &json!({}), ""),
            line("b", "another backend", &json!(["1"]), &none, ""),
            line("b", "long and dead", &json!("all"), &json!({}), &long),
            line("b", "behind a dead one", &json!(["1"]), &none, ""),
            line("a", "all lanes", &json!("all"), &none, ""),
            line("a", "behind all", &json!([]), &none, ""),
        ]
        .join("\n");
        let ops = |retarget| {
            let (parts, unsent) = parts(lines(&file, None, ""), 500, retarget);
            let sent = parts.iter().flat_map(|part| &part.lines);
            let sent: Vec<String> = sent.map(|line| Order::of(line).op_id).collect();
            let held: Vec<String> = unsent.iter().map(|unsent| unsent.op_id.clone()).collect();
            (sent, held, unsent)
        };
        let (sent, held, unsent) = ops(false);
        assert_eq!(sent, ["first", "another lane", "dead", "another backend"]);
        let expected = [
            "long",
            "same lane",
            "lane of that one",
            "long and dead",
            "behind a dead one",
            "all lanes",
            "behind all",
        ];
        assert_eq!(held, expected);
        assert!(unsent[0].why.contains("set calls.bytes to at least 1 MiB"), "{unsent:?}");
        assert!(unsent[0].why.contains("import only the lines that are named here"), "{unsent:?}");
        assert!(unsent[1].why.contains("line 2"), "{unsent:?}");
        assert!(unsent[4].why.contains("line 8"), "{unsent:?}");
        assert_eq!((unsent[1].line, unsent[6].line), (3, 11));
        let (sent, ..) = ops(true);
        assert_eq!(sent, ["first", "dead", "another backend"]);
    }

    #[test]
    fn no_request_is_longer_than_the_daemon_takes() {
        let text = "{}\n".repeat(10);
        let (parts, unsent) = parts(lines(&text, None, "u"), 10, false);
        assert!(unsent.is_empty());
        let counts: Vec<usize> = parts.iter().map(|part| part.lines.len()).collect();
        assert_eq!(counts, [3, 3, 3, 1]);
    }
}
