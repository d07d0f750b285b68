//! `fusebox chaos`: faults on purpose.

use std::{io::Read, process::ExitCode};

use fusebox_actors::view::{BackendView, ChaosFaultView, ChaosView};
use fusebox_state::chaos::{FaultOrder, Only, Order};
use serde::Deserialize;
use serde_json::{Value, json};

use super::args::{ChaosOrder, ChaosSet, Output};
use crate::terminal::{
    client::{Client, segment},
    failure::{Done, Failure},
    paint::Paper,
    print::{say, say_json},
    table::table,
    views::read,
};

/// What a backend's faults are answered as.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Told {
    backend: String,
    chaos: Option<ChaosView>,
    cleared: bool,
}

/// Every backend.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct All {
    backends: Vec<BackendView>,
}

/// `fusebox chaos`
pub(crate) async fn run(client: &Client, order: ChaosOrder) -> Done {
    match order {
        ChaosOrder::Ls { backend, output } => list(client, backend.as_deref(), output).await,
        ChaosOrder::Set(wanted) => set(client, *wanted).await,
        ChaosOrder::Clear { backend } => {
            let path = format!("/admin/backends/{}/chaos", segment(&backend)?);
            let told: Told = read(&client.delete(&path).await?)?;
            let what = if told.cleared { "chaos is cleared" } else { "there was no chaos" };
            say(&format!("{backend}: {what}\n"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn list(client: &Client, backend: Option<&str>, output: Output) -> Done {
    let told = if let Some(name) = backend {
        let path = format!("/admin/backends/{}/chaos", segment(name)?);
        let told: Told = read(&client.get(&path).await?)?;
        vec![(told.backend, told.chaos)]
    } else {
        let all: All = read(&client.get("/v1/backends").await?)?;
        all.backends.into_iter().map(|it| (it.name, it.chaos)).collect()
    };
    if output.json {
        let shown = told.iter().map(|(name, chaos)| json!({ "backend": name, "chaos": chaos }));
        say_json(&Value::Array(shown.collect()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let set: Vec<_> = told.iter().filter_map(|(name, it)| Some((name, it.as_ref()?))).collect();
    if set.is_empty() {
        say("no chaos is set\n")?;
    }
    for (name, chaos) in set {
        say(&shown(name, chaos, Paper::of_stdout().width.is_some()))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn set(client: &Client, wanted: ChaosSet) -> Done {
    let path = format!("/admin/backends/{}/chaos", segment(&wanted.backend)?);
    let (name, output) = (wanted.backend.clone(), wanted.output);
    let order = serde_json::to_value(order(wanted)?).map_err(anyhow::Error::from)?;
    let answer = client.put(&path, &order).await?;
    if output.json {
        say_json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let told: Told = read(&answer)?;
    let chaos = told.chaos.unwrap_or_default();
    say(&shown(&name, &chaos, Paper::of_stdout().width.is_some()))?;
    Ok(ExitCode::SUCCESS)
}

/// The order that the flags make, or the file and the flags.
fn order(wanted: ChaosSet) -> Result<Order, Failure> {
    let mut order = match &wanted.file {
        Some(file) => {
            let mut text = String::new();
            let read = if file.as_os_str() == "-" {
                std::io::stdin().read_to_string(&mut text).map(|_| text)
            } else {
                std::fs::read_to_string(file)
            };
            let shown = file.display();
            let text = read.map_err(|error| Failure::usage(format!("{shown}: {error}")))?;
            serde_json::from_str(&text)
                .map_err(|error| Failure::usage(format!("{shown}: {error}")))?
        }
        None => Order {
            faults: vec![FaultOrder {
                kind: wanted.kind.unwrap_or_default(),
                rate: wanted.rate,
                latency: wanted.latency,
                jitter: wanted.jitter,
                code: wanted.code,
                class: wanted.class,
                only: Only { uid: wanted.uid, baggage: wanted.baggage },
            }],
            ..Order::default()
        },
    };
    order.lasting = wanted.lasting.or(order.lasting);
    order.seed = wanted.seed.or(order.seed);
    order.count = if wanted.no_count { Some(false) } else { order.count };
    order.reason = wanted.reason.or(order.reason);
    order.max_active = wanted.max_active.or(order.max_active);
    order.abort_on = wanted.abort_on.or(order.abort_on);
    order.abort_above = wanted.abort_above.or(order.abort_above);
    order.force |= wanted.force;
    Ok(order)
}

/// What is set, for people.
fn shown(name: &str, chaos: &ChaosView, terminal: bool) -> String {
    let ChaosView { until, by, reason, seed, attempts, .. } = chaos;
    let reason = (!reason.is_empty()).then(|| format!(" ({})", reason.escape_debug()));
    let neutral = (!chaos.count).then(|| ", does not count for the breaker".to_owned());
    let suspended = chaos.suspended.as_ref().map(|why| format!(", suspended: {why}"));
    let more = [reason, neutral, suspended].map(Option::unwrap_or_default).concat();
    let head = format!(
        "{name}: chaos until {until}, set by {by}, seed {seed}{more}; {attempts} attempts seen\n"
    );
    let rows: Vec<Vec<String>> = chaos.faults.iter().map(row).collect();
    let heads = ["KIND", "RATE", "HOW", "STRIKES", "HITS", "SUPPRESSED"];
    head + &table(&heads, &rows, terminal)
}

fn row(fault: &ChaosFaultView) -> Vec<String> {
    let ChaosFaultView { kind, rate, latency, jitter, code, class, only, hits, suppressed } = fault;
    let jitter = jitter.as_ref().map(|jitter| format!("\u{b1} {jitter}"));
    let how: Vec<String> = [latency.clone(), jitter, code.clone()].into_iter().flatten().collect();
    let class = class.clone().unwrap_or_else(|| "read, write".to_owned());
    let uid = only.uid.map(|uid| format!("of uid {uid}"));
    let baggage = only.baggage.as_ref().map(|member| format!("with {member}"));
    let strikes: Vec<String> = [Some(class), uid, baggage].into_iter().flatten().collect();
    let how = if how.is_empty() { "-".to_owned() } else { how.join(" ") };
    vec![
        kind.clone(),
        format!("{rate}"),
        how,
        strikes.join(" "),
        hits.to_string(),
        suppressed.to_string(),
    ]
}
