//! `fusebox queue`, as far as it asks the daemon.

use std::{process::ExitCode, time::Duration};

use fusebox_actors::view::{QueueView, ResilienceView};
use hyper::Method;
use serde_json::{Value, json};

use super::{
    args::{QueueArgs, QueueCommand},
    backends::meant,
    queue_import::{self, Wanted},
};
use crate::{
    config::size,
    terminal::{
        client::Client,
        failure::{Done, Failure},
        print::{complain, on_terminal, say, say_json},
        progress,
        table::{ago, table},
        views::{ListedCall, Listing, ProblemView, read},
    },
};

impl QueueCommand {
    /// Whether it reads stores itself and wants no daemon.
    pub(crate) fn is_offline(&self) -> bool {
        matches!(
            self,
            Self::Export { .. } | Self::Check { .. } | Self::Downgrade | Self::Repair { .. }
        )
    }
}

/// `fusebox queue`
pub(crate) async fn run(client: &Client, queue: QueueArgs) -> Done {
    let QueueArgs { backend, command } = queue;
    let wanted = match &command {
        QueueCommand::Import { file, force, retarget, output } => {
            Some((file, Wanted { force: *force, retarget: *retarget, json: output.json }))
        }
        QueueCommand::Requeue { from: Some(file), force, .. } => {
            Some((file, Wanted { force: *force, retarget: false, json: false }))
        }
        _ => None,
    };
    if let Some((file, wanted)) = wanted {
        return queue_import::run(client, backend, file, &wanted).await;
    }
    let named = match &command {
        QueueCommand::Ls { name: Some(name), .. }
        | QueueCommand::Compact { name: Some(name), .. }
        | QueueCommand::Replay { name: Some(name) } => Some(name.clone()),
        _ => backend,
    };
    match command {
        QueueCommand::Ls { dead, limit, output, .. } => {
            ls(client, named, if dead { "dead" } else { "pending" }, limit, output.json).await
        }
        QueueCommand::Show { op_id } => {
            let (_, call) = find(client, named, op_id, Shown::Whole).await?;
            say(&format!("{call:#}\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        QueueCommand::Replay { .. } => replay(client, named).await,
        QueueCommand::Compact { purge, .. } => compact(client, named, purge).await,
        QueueCommand::Requeue { op_id: Some(op_id), force, not_applied, .. } => {
            let (backend, _) = find(client, named, op_id, Shown::WithoutBody).await?;
            let body = json!({ "force": force, "not_applied": not_applied });
            let path = format!("/admin/backends/{backend}/queue/{op_id}/requeue");
            client.post(&path, Some(&body)).await?;
            say(&format!("{op_id} is queued again\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        QueueCommand::Discard { op_id } => {
            let (backend, _) = find(client, named, op_id, Shown::WithoutBody).await?;
            client.delete(&format!("/admin/backends/{backend}/queue/{op_id}")).await?;
            say(&format!("{op_id} is discarded\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        QueueCommand::Requeue { op_id: None, .. }
        | QueueCommand::Export { .. }
        | QueueCommand::Check { .. }
        | QueueCommand::Downgrade
        | QueueCommand::Drain(_)
        | QueueCommand::Import { .. }
        | QueueCommand::Repair { .. } => Err(Failure::usage("this command does not use a daemon")),
    }
}

/// `queue ls`: one backend's page, or those of all as one.
async fn ls(client: &Client, named: Option<String>, state: &str, limit: u32, json: bool) -> Done {
    let backends = meant(client, named).await?;
    let mut pages = Vec::with_capacity(backends.len());
    for backend in &backends {
        let path = format!("/v1/backends/{backend}/queue?state={state}&limit={limit}");
        pages.push((backend.as_str(), client.get(&path).await?));
    }
    let several = pages.len() != 1;
    let page = one_page(pages);
    if json {
        say_json(&page)?;
    } else {
        say(&page_text(&read(&page)?, several, on_terminal()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The pages of several backends as one, each call with its backend; that of one as it is.
fn one_page(mut pages: Vec<(&str, Value)>) -> Value {
    if pages.len() == 1 {
        return pages.pop().map(|(_, page)| page).unwrap_or_default();
    }
    let (mut total, mut calls) = (0, Vec::new());
    for (backend, mut page) in pages {
        total += page.get("total").and_then(Value::as_u64).unwrap_or(0);
        let own = page.get_mut("calls").and_then(Value::as_array_mut).map(std::mem::take);
        calls.extend(own.unwrap_or_default().into_iter().map(|mut call| {
            if let Some(fields) = call.as_object_mut() {
                fields.insert("backend".into(), json!(backend));
            }
            call
        }));
    }
    json!({ "total": total, "calls": calls, "next": null })
}

/// What is wanted of a call.
#[derive(Clone, Copy)]
enum Shown {
    Whole,
    /// All but its body, which may be large.
    WithoutBody,
}

/// The queued call or dead letter of that name, and its backend: names are given once.
async fn find(
    client: &Client,
    named: Option<String>,
    op_id: fusebox_state::OpId,
    shown: Shown,
) -> Result<(String, Value), Failure> {
    let backends = meant(client, named).await?;
    let query = match shown {
        Shown::Whole => "",
        Shown::WithoutBody => "?call=false",
    };
    for backend in &backends {
        let path = format!("/v1/backends/{backend}/queue/{op_id}{query}");
        let (status, answer) = client.exchange(Method::GET, &path, None).await?;
        match status {
            200..300 => return Ok((backend.clone(), answer)),
            404 if backends.len() > 1 => {}
            _ => return Err(Failure::of_problem(status, &answer, false)),
        }
    }
    let of = backends.join(", ");
    Err(Failure::failed(format!("the queues of {of} have no call or dead letter {op_id}")))
}

/// How many calls wait.
#[derive(serde::Deserialize)]
struct Waiting {
    waiting: u64,
}

/// `queue replay`: of one backend, or of all that can. Whoever looks on sees how far it is.
async fn replay(client: &Client, named: Option<String>) -> Done {
    let backends = meant(client, named).await?;
    let (mut failed, mut ordered) = (false, Vec::new());
    for backend in &backends {
        let path = format!("/admin/backends/{backend}/queue/replay");
        let (status, answer) = client.exchange(Method::POST, &path, None).await?;
        if (200..300).contains(&status) {
            let Waiting { waiting } = read(&answer)?;
            let of = if backends.len() > 1 { format!("{backend}: ") } else { String::new() };
            say(&format!("{of}{waiting} calls wait\n"))?;
            ordered.push(backend.as_str());
        } else if backends.len() > 1 {
            failed = true;
            complain(&format!("{backend}: {}", read::<ProblemView>(&answer)?.detail));
        } else {
            return Err(Failure::of_problem(status, &answer, false));
        }
    }
    if progress::is_seen() {
        follow_replay(client, &ordered).await?;
    }
    Ok(ExitCode::from(u8::from(failed)))
}

/// How often it looks how far a replay is.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Shows the replay of these backends until nothing waits, or nothing goes on; then what holds it up.
async fn follow_replay(client: &Client, backends: &[&str]) -> Result<(), Failure> {
    let mut waiting = progress::Waiting::of("replay");
    let held = loop {
        let view: ResilienceView = read(&client.get("/health/resilience").await?)?;
        let queues: Vec<_> = backends
            .iter()
            .filter_map(|name| Some((*name, &view.backends.get(*name)?.queue)))
            .filter(|(_, queue)| queue.calls > 0)
            .collect();
        waiting.left(queues.iter().map(|(_, queue)| queue.calls).sum());
        if queues.iter().all(|(_, queue)| queue.replay_paused.is_some()) {
            let held = |(name, queue): &(&str, &QueueView)| {
                Some(format!(
                    "{name}: {} calls wait: {}",
                    queue.calls,
                    queue.replay_paused.as_ref()?
                ))
            };
            break queues.iter().filter_map(held).collect::<Vec<_>>();
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    drop(waiting);
    for why in held {
        complain(&why);
    }
    Ok(())
}

/// What a compaction has done.
#[derive(serde::Deserialize)]
struct Compacted {
    before_bytes: u64,
    bytes: u64,
    deleted: Vec<String>,
    deleted_bytes: u64,
}

/// `queue compact`: of one backend, or of all.
async fn compact(client: &Client, named: Option<String>, purge: bool) -> Done {
    for backend in &meant(client, named).await? {
        let path = format!("/admin/backends/{backend}/queue/compact");
        let answer = client.post(&path, Some(&json!({ "purge": purge }))).await?;
        let Compacted { before_bytes, bytes, deleted, deleted_bytes } = read(&answer)?;
        say(&format!("{backend}: {}, {} before\n", size(bytes), size(before_bytes)))?;
        if !deleted.is_empty() {
            let (folders, bytes) = (deleted.join(", "), size(deleted_bytes));
            say(&format!("{backend}: deleted {folders}, {bytes}\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn page_text(page: &Listing, several: bool, terminal: bool) -> String {
    let Listing { total, calls } = page;
    if calls.is_empty() {
        return format!("none of {total}\n").replace("none of 0", "none");
    }
    let rows: Vec<Vec<String>> = calls
        .iter()
        .map(|ListedCall { backend, call }| {
            let backend = several.then(|| backend.clone());
            let last_error = call.last_error.as_ref().map(|error| error.whole().to_owned());
            let rest = [
                call.op_id.to_string(),
                call.state.to_string(),
                call.lane.clone(),
                ago(call.age_ms),
                size(call.bytes),
                call.attempts.to_string(),
                last_error.unwrap_or_default(),
            ];
            backend.into_iter().chain(rest).collect()
        })
        .collect();
    let heads = ["OP_ID", "STATE", "LANE", "AGE", "SIZE", "ATTEMPTS", "LAST ERROR"];
    let heads: Vec<&str> = several.then_some("BACKEND").into_iter().chain(heads).collect();
    let mut out = table(&heads, &rows, terminal);
    if *total > calls.len() as u64 {
        out.extend([format!("{} of {total}\n", calls.len())]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const OP_ID: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";

    #[test]
    fn a_page_is_a_table_and_says_how_much_is_left() {
        let page = json!({ "total": 500, "next": "x", "calls": [{
            "op_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "lane": "user:1", "state": "retry", "attempts": 2,
            "age_ms": 61_000, "bytes": 120, "last_error": "connect: refused" }] });
        assert_eq!(
            page_text(&read(&page).unwrap(), false, false),
            "OP_ID                       STATE  LANE    AGE    SIZE   ATTEMPTS  LAST ERROR\n\
             01ARZ3NDEKTSV4RRFFQ69G5FAV  retry  user:1  1m 1s  120 B  2         connect: refused\n\
             1 of 500\n"
        );
        assert_eq!(page_text(&Listing::default(), true, false), "none\n");
    }

    #[test]
    fn pages_of_several_backends_are_one_in_which_each_call_names_its_backend() {
        let page = |lane: &str| {
            json!({ "total": 1, "next": "x", "calls": [{ "op_id": OP_ID, "lane": lane, "state": "dead",
                "attempts": 1, "age_ms": 1_000, "bytes": 2, "last_error": null }] })
        };
        assert_eq!(one_page(vec![("a", page("k"))]), page("k"), "one is as it was");
        let both = one_page(vec![("a", page("k")), ("b", page("t"))]);
        assert_eq!((&both["total"], &both["calls"][1]["backend"]), (&json!(2), &json!("b")));
        let text = page_text(&read(&both).unwrap(), true, false);
        assert!(text.starts_with("BACKEND  OP_ID                       STATE  LANE"), "{text}");
        assert!(text.contains("\na        01ARZ3NDEKTSV4RRFFQ69G5FAV  dead   k "), "{text}");
    }
}
