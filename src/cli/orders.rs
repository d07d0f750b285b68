//! Orders about breakers, backends and the configuration.

use std::{process::ExitCode, time::Duration};

use fusebox_actors::view::BackendView;
use serde_json::{Map, Value, json};

use super::args::BreakerOrder;
use crate::terminal::{
    client::{Client, segment},
    failure::{Done, Failure},
    print::{complain, say, say_json},
    views::{Held, Logged, Recovered, Tested, read},
};

/// `fusebox breaker`
pub(crate) async fn breaker(
    client: &Client,
    backend: &str,
    order: BreakerOrder,
    reason: Option<String>,
    lasting: Option<Duration>,
) -> Done {
    let word = match order {
        BreakerOrder::ForceOpen => "force-open",
        BreakerOrder::ForceClose => "force-close",
        BreakerOrder::Release => "release",
        BreakerOrder::Reset => "reset",
    };
    let forces = matches!(order, BreakerOrder::ForceOpen | BreakerOrder::ForceClose);
    if !forces && lasting.is_some() {
        return Err(Failure::usage(format!(
            "{word} takes effect at once and takes no --for, which limits a forced state"
        )));
    }
    let mut body = Map::new();
    body.extend(reason.map(|reason| ("reason".to_owned(), json!(reason))));
    body.extend(
        lasting.map(|lasting| {
            ("for".to_owned(), json!(humantime::format_duration(lasting).to_string()))
        }),
    );
    let path = format!("/admin/circuit-breaker/{}/{word}", segment(backend)?);
    let answer = client.post(&path, Some(&Value::Object(body))).await?;
    let view: BackendView = read(&answer)?;
    say(&format!("{backend} is {}\n", view.breaker.state))?;
    Ok(ExitCode::SUCCESS)
}

/// `fusebox recover`
pub(crate) async fn recover(client: &Client, backend: Option<&str>) -> Done {
    let body = backend.map(|name| json!({ "backend": name }));
    let answer = client.post("/admin/resilience/force-recovery", body.as_ref()).await?;
    let Recovered { half_open: tried, held } = read(&answer)?;
    if !tried.is_empty() {
        say(&format!("half-open: {}\n", tried.join(", ")))?;
    } else if held.is_empty() {
        say("no breaker was open\n")?;
    }
    let failed = tried.is_empty() && !held.is_empty();
    for Held { backend: name, by, release } in held {
        complain(&format!("{name} is {by}, and a recovery cannot change that: run `{release}`"));
    }
    // What was asked for did not come about.
    Ok(ExitCode::from(u8::from(failed)))
}

/// `fusebox trace-test`
pub(crate) async fn trace_test(client: &Client, json: bool) -> Done {
    let answer = client.post("/admin/trace-test", None).await?;
    let Tested { taken, endpoint, protocol, took_ms, trace_id, error } = read(&answer)?;
    let code = if taken { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if json {
        say_json(&answer)?;
        return Ok(code);
    }
    if taken {
        let trace = trace_id.unwrap_or_default();
        say(&format!(
            "the collector at {endpoint} ({protocol}) accepted trace {trace} in {took_ms} ms\n"
        ))?;
    } else {
        let error = error.unwrap_or_default();
        say(&format!(
            "the collector at {endpoint} ({protocol}) did not accept the trace: {error}\n"
        ))?;
    }
    Ok(code)
}

/// `fusebox offline` and `fusebox online`
pub(crate) async fn offline(client: &Client, backend: &str, offline: bool) -> Done {
    let word = if offline { "offline" } else { "online" };
    client.post(&format!("/admin/backends/{}/{word}", segment(backend)?), None).await?;
    say(&format!("{backend} is {word}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// `fusebox backend accept-retarget`
pub(crate) async fn accept_retarget(client: &Client, backend: &str) -> Done {
    let path = format!("/admin/backends/{}/accept-retarget", segment(backend)?);
    let view: BackendView = read(&client.post(&path, None).await?)?;
    say(&format!("waiting calls now go to {}\n", view.target))?;
    Ok(ExitCode::SUCCESS)
}

/// `fusebox backend accept-clone`
pub(crate) async fn accept_clone(client: &Client) -> Done {
    client.post("/admin/backends/accept-clone", None).await?;
    say("replay resumes\n")?;
    Ok(ExitCode::SUCCESS)
}

/// `fusebox backend accept-loss`
pub(crate) async fn accept_loss(client: &Client, backend: &str) -> Done {
    let path = format!("/admin/backends/{}/accept-loss", segment(backend)?);
    client.post(&path, None).await?;
    say(&format!("the loss of the store of {backend} is accepted\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// `fusebox log-level`
pub(crate) async fn log_level(
    client: &Client,
    filter: Option<String>,
    lasting: Option<Duration>,
    usual: bool,
) -> Done {
    let mut body = Map::new();
    body.extend(filter.map(|filter| ("filter".to_owned(), json!(filter))));
    body.extend(
        lasting.map(|lasting| {
            ("for".to_owned(), json!(humantime::format_duration(lasting).to_string()))
        }),
    );
    let changes = usual || !body.is_empty();
    let answer = if changes {
        client.put("/admin/log", &Value::Object(body)).await?
    } else {
        client.get("/admin/log").await?
    };
    let Logged { filter } = read(&answer)?;
    say(&format!("{filter}\n"))?;
    Ok(ExitCode::SUCCESS)
}
