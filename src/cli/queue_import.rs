//! `fusebox queue import`: has the daemon take in the lines of an export or a repair.
//!
//! The file is read twice: first the daemon says whether it understands every line, and only then takes any. What
//! is large goes in several requests, in order. A call that is there already is passed over, so that a file may be
//! imported again after an interruption.

use std::{collections::BTreeMap, path::Path, process::ExitCode};

use serde_json::{Value, json};

use super::{
    backends::only_backend,
    export_lines::{name_of, read_lines, unnamed},
};
use crate::{
    agreed::IMPORT_MAX,
    terminal::{
        client::{Client, segment},
        failure::{Done, Failure},
        print::{complain, say, say_json},
        views::{ImportLine, read},
    },
};

/// Bytes of one request; a single line may be longer.
const REQUEST_BYTES: usize = 8 << 20;
/// Lines of one request.
const REQUEST_LINES: usize = 1_000;
/// The numbers of a report.
const COUNTS: [&str; 7] =
    ["imported", "in_doubt", "dead", "salvaged", "known", "wants_force", "not_tried"];

/// Lines that follow one another in the file and are for one backend.
#[derive(Debug, PartialEq)]
struct Part {
    backend: String,
    first_line: usize,
    text: String,
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
    let (shown, text) = (file.display(), read_lines(file)?);
    // A line of a repair names no backend.
    let usual = match &backend {
        Some(name) => name.clone(),
        None if unnamed(&text) => only_backend(client).await?,
        None => String::new(),
    };
    let parts = parts(&text, backend.as_deref(), &usual)
        .map_err(|why| Failure::failed(format!("{shown}: {why}")))?;
    let asks = format!("force={}&retarget={}", wanted.force, wanted.retarget);
    for part in &parts {
        send(client, part, &format!("{asks}&check=true")).await?;
    }
    let mut sums: BTreeMap<&str, u64> = COUNTS.iter().map(|count| (*count, 0)).collect();
    let (mut refused, mut written): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
    for part in &parts {
        let report = send(client, part, &asks).await?;
        for (count, sum) in &mut sums {
            *sum += report.get(*count).and_then(Value::as_u64).unwrap_or(0);
        }
        let list = |key| report.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        written.extend(list("lanes_written"));
        refused.extend(list("refused"));
        if !refused.is_empty() {
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

async fn send(client: &Client, part: &Part, asks: &str) -> Result<Value, Failure> {
    let path = format!(
        "/admin/backends/{}/queue/import?{asks}&first_line={}",
        segment(&part.backend)?,
        part.first_line
    );
    client.post_text(&path, part.text.clone()).await
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

/// The file in requests. Lines without a name are for `usual`; if `only` is wanted, those of others are left out.
fn parts(text: &str, only: Option<&str>, usual: &str) -> Result<Vec<Part>, String> {
    let mut parts: Vec<Part> = Vec::new();
    let mut lines = 0;
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        if line.len() as u64 >= IMPORT_MAX {
            return Err(format!("line {number}: a line must be shorter than {IMPORT_MAX} bytes"));
        }
        let name = name_of(line);
        let name = if name.is_empty() { usual.to_owned() } else { name };
        if only.is_some_and(|only| only != name) {
            continue;
        }
        let fits = |part: &Part| {
            part.backend == name
                && part.first_line + lines == number
                && lines < REQUEST_LINES
                && part.text.len() + line.len() < REQUEST_BYTES
        };
        if let Some(part) = parts.last_mut().filter(|part| fits(part)) {
            part.text.extend([line, "\n"]);
        } else {
            lines = 0;
            parts.push(Part { backend: name, first_line: number, text: format!("{line}\n") });
        }
        lines += 1;
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_to_their_backends_in_order_and_keep_their_numbers() {
        let text =
            "{\"backend\":\"a\"}\n{\"backend\":\"a\"}\n\n{\"backend\":\"b\"}\n{}\nnonsense\n";
        let part = |backend: &str, first_line, text: &str| Part {
            backend: backend.to_owned(),
            first_line,
            text: text.to_owned(),
        };
        assert!(unnamed(text));
        assert_eq!(
            parts(text, None, "u").unwrap(),
            [
                part("a", 1, "{\"backend\":\"a\"}\n{\"backend\":\"a\"}\n"),
                part("b", 4, "{\"backend\":\"b\"}\n"),
                part("u", 5, "{}\nnonsense\n"),
            ]
        );
        let only = parts(text, Some("b"), "b").unwrap();
        assert_eq!(only.len(), 1, "a mended file's lines stay with their backend: {only:?}");
        let many = "{}\n".repeat(REQUEST_LINES + 1);
        assert_eq!(parts(&many, None, "u").unwrap().len(), 2);
    }
}
