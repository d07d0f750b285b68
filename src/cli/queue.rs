//! `fusebox queue`, as far as it asks the daemon.

use std::{path::Path, process::ExitCode};

use hyper::Method;

use serde_json::{Value, json};

use super::{
    Done,
    args::{QueueArgs, QueueCommand},
    queue_import::{self, Wanted},
};
use crate::{
    config::size,
    terminal::{
        client::{Client, segment},
        failure::Failure,
        print::{complain, on_terminal, say, say_json},
        table::{ago, table, text},
    },
};

impl QueueCommand {
    /// Whether it reads stores itself and wants no daemon.
    pub(crate) fn is_offline(&self) -> bool {
        matches!(self, Self::Export | Self::Check { .. } | Self::Downgrade | Self::Repair { .. })
    }
}

/// `fusebox queue`
pub(crate) async fn run(client: &Client, queue: QueueArgs) -> Done {
    let QueueArgs { backend, command } = queue;
    if let QueueCommand::Import { file, force, retarget, output } = &command {
        let wanted = Wanted { force: *force, retarget: *retarget, json: output.json };
        return queue_import::run(client, backend, file, &wanted).await;
    }
    let named = match &command {
        QueueCommand::Ls { name: Some(name), .. } | QueueCommand::Replay { name: Some(name) } => {
            Some(name.clone())
        }
        _ => backend,
    };
    let backend = match named {
        Some(name) => name,
        None => only_backend(client).await?,
    };
    let backend = segment(&backend)?;
    let seen = format!("/v1/backends/{backend}/queue");
    let orders = format!("/admin/backends/{backend}/queue");
    match command {
        QueueCommand::Ls { dead, limit, output, .. } => {
            let state = if dead { "dead" } else { "pending" };
            let page = client.get(&format!("{seen}?state={state}&limit={limit}")).await?;
            if output.json { say_json(&page)? } else { say(&page_text(&page, on_terminal()))? }
        }
        QueueCommand::Show { op_id } => {
            let call = client.get(&format!("{seen}/{op_id}")).await?;
            say(&format!("{call:#}\n"))?;
        }
        QueueCommand::Replay { .. } => {
            let answer = client.post(&format!("{orders}/replay"), None).await?;
            say(&format!("{} calls wait\n", text(&answer, "waiting")))?;
        }
        QueueCommand::Requeue { from: Some(file), .. } => {
            return requeue_from(client, backend, &file).await;
        }
        QueueCommand::Requeue { op_id, force, not_applied, from: None } => {
            let op_id = op_id.map(|op_id| op_id.to_string()).unwrap_or_default();
            let body = json!({ "force": force, "not_applied": not_applied });
            client.post(&format!("{orders}/{op_id}/requeue"), Some(&body)).await?;
            say(&format!("{op_id} waits again\n"))?;
        }
        QueueCommand::Discard { op_id } => {
            client.delete(&format!("{orders}/{op_id}")).await?;
            say(&format!("{op_id} is discarded\n"))?;
        }
        QueueCommand::Export
        | QueueCommand::Check { .. }
        | QueueCommand::Downgrade
        | QueueCommand::Drain(_)
        | QueueCommand::Import { .. }
        | QueueCommand::Repair { .. } => {
            return Err(Failure::usage("this command asks no daemon"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The text of a file, or of standard input for `-`.
pub(super) fn read_lines(file: &Path) -> Result<String, Failure> {
    let read = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    read.map_err(|error| Failure::failed(format!("cannot read {}: {error}", file.display())))
}

/// Sends the calls of an export as new writes under their old names: what is still in the queue is
/// recognised, all else is written now, over whatever was written since.
async fn requeue_from(client: &Client, backend: &str, file: &Path) -> Done {
    let (shown, text) = (file.display(), read_lines(file)?);
    let (mut sent, mut refused) = (0, 0);
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let exported: Value = serde_json::from_str(line)
            .map_err(|error| Failure::failed(format!("{shown}, line {number}: {error}")))?;
        let (Some(call), Some(op_id)) = (exported.get("call"), exported.get("op_id")) else {
            let what = "an exported call has \"call\" and \"op_id\"";
            return Err(Failure::failed(format!("{shown}, line {number}: {what}")));
        };
        let body = json!({
            "command": call,
            "options": { "op_id": op_id, "min_ack": "durable" },
        });
        let path = format!("/v1/backends/{backend}/call");
        let (status, answer) = client.exchange(Method::POST, &path, Some(&body)).await?;
        if (200..300).contains(&status) {
            sent += 1;
        } else {
            refused += 1;
            complain(&format!(
                "line {number}: {}",
                crate::terminal::table::text(&answer, "detail")
            ));
        }
    }
    say(&format!("{sent} calls sent, {refused} refused\n"))?;
    Ok(ExitCode::from(u8::from(refused > 0)))
}

/// The backend that is meant where none is named.
pub(super) async fn only_backend(client: &Client) -> Result<String, Failure> {
    let answer = client.get("/v1/backends").await?;
    let names: Vec<String> = answer
        .get("backends")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|backend| text(backend, "name"))
        .collect();
    match names.as_slice() {
        [only] => Ok(only.clone()),
        _ => Err(Failure::usage(format!(
            "name the backend with --backend; there are: {}",
            names.join(", ")
        ))),
    }
}

fn page_text(page: &Value, terminal: bool) -> String {
    let calls: Vec<&Value> =
        page.get("calls").and_then(Value::as_array).into_iter().flatten().collect();
    let total = page.get("total").and_then(Value::as_u64).unwrap_or(0);
    if calls.is_empty() {
        return format!("none of {total}\n").replace("none of 0", "none");
    }
    let whole = |call: &Value, key: &str| call.get(key).and_then(Value::as_u64).unwrap_or(0);
    let rows: Vec<Vec<String>> = calls
        .iter()
        .map(|call| {
            vec![
                text(call, "op_id"),
                text(call, "state"),
                text(call, "lane"),
                ago(whole(call, "age_ms")),
                size(whole(call, "bytes")),
                text(call, "attempts"),
                text(call, "last_error"),
            ]
        })
        .collect();
    let heads = ["OP_ID", "STATE", "LANE", "AGE", "SIZE", "ATTEMPTS", "LAST ERROR"];
    let mut out = table(&heads, &rows, terminal);
    if total > calls.len() as u64 {
        out.extend([format!("{} of {total}\n", calls.len())]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_a_table_and_says_how_much_is_left() {
        let page = json!({ "total": 500, "next": "x", "calls": [{
            "op_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "lane": "user:1", "state": "retry", "attempts": 2,
            "age_ms": 61_000, "bytes": 120, "last_error": "connect: refused" }] });
        assert_eq!(
            page_text(&page, false),
            "OP_ID                       STATE  LANE    AGE    SIZE   ATTEMPTS  LAST ERROR\n\
             01ARZ3NDEKTSV4RRFFQ69G5FAV  retry  user:1  1m 1s  120 B  2         connect: refused\n\
             1 of 500\n"
        );
        assert_eq!(page_text(&json!({ "total": 0, "calls": [] }), false), "none\n");
    }
}
