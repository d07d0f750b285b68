//! `fusebox config`: the settings in effect, and changes of them.

use std::{fmt::Write as _, process::ExitCode, time::Duration};

use serde_json::{Map, Value};

use super::args::{ConfigOrder, Output};
use crate::terminal::{
    client::{Client, segment},
    failure::{Done, Failure},
    print::{say, say_json},
    views::{Reloaded, SettingsView, read},
};

/// Carries out an order about the configuration.
pub(super) async fn run(client: &Client, order: ConfigOrder) -> Done {
    match order {
        ConfigOrder::Show { sources, output } => show(client, sources, output).await,
        ConfigOrder::Set { settings, lasting, persist, dry_run, force, output } => {
            let (backend, settings) = of_backend(&settings, |word| word.contains('='));
            let mut patch = Map::new();
            for setting in settings {
                let (key, value) = setting.split_once('=').ok_or_else(|| {
                    Failure::usage(format!("the argument must be KEY=VALUE, got {setting:?}"))
                })?;
                put(&mut patch, key, Value::String(value.to_owned()));
            }
            let how =
                query(lasting, &[("persist", persist), ("dry_run", dry_run), ("force", force)]);
            change(client, backend, &how, patch, output).await
        }
        ConfigOrder::Unset { settings, output } => {
            let shown: SettingsView = read(&client.get("/admin/config").await?)?;
            let is_backend = |word: &str| {
                shown.effective.get("backends").is_some_and(|all| all.get(word).is_some())
            };
            let (backend, settings) = of_backend(&settings, |word| !is_backend(word));
            let mut patch = Map::new();
            for key in settings {
                put(&mut patch, key, Value::Null);
            }
            change(client, backend, "", patch, output).await
        }
        ConfigOrder::Reload => {
            let answer = client.post("/admin/config/reload", None).await?;
            let Reloaded { changed } = read(&answer)?;
            match changed.as_slice() {
                [] => say("nothing changed\n")?,
                changed => say(&format!("changed: {}\n", changed.join(", ")))?,
            }
            Ok(ExitCode::SUCCESS)
        }
        // It needs no daemon, and was answered before.
        ConfigOrder::Schema { .. } => Ok(ExitCode::SUCCESS),
    }
}

/// The backend that goes before the settings, if one does.
fn of_backend(words: &[String], is_setting: impl Fn(&str) -> bool) -> (Option<&str>, &[String]) {
    match words {
        [first, rest @ ..] if !is_setting(first) => (Some(first), rest),
        all => (None, all),
    }
}

fn query(lasting: Option<Duration>, flags: &[(&str, bool)]) -> String {
    let lasting =
        lasting.map(|time| format!("for={}", humantime::format_duration(time)).replace(' ', "%20"));
    let flags = flags.iter().filter(|(_, set)| *set).map(|(name, _)| format!("{name}=true"));
    let all: Vec<String> = lasting.into_iter().chain(flags).collect();
    if all.is_empty() { String::new() } else { format!("?{}", all.join("&")) }
}

/// Puts a value at a key such as `breaker.window`.
fn put(patch: &mut Map<String, Value>, key: &str, value: Value) {
    let Some((section, rest)) = key.split_once('.') else {
        patch.insert(key.to_owned(), value);
        return;
    };
    let section = patch.entry(section).or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(section) = section {
        put(section, rest, value);
    }
}

async fn change(
    client: &Client,
    backend: Option<&str>,
    how: &str,
    wanted: Map<String, Value>,
    output: Output,
) -> Done {
    let path = match backend {
        Some(name) => format!("/admin/backends/{}/config{how}", segment(name)?),
        None => format!("/admin/config{how}"),
    };
    let answer = client.patch(&path, &Value::Object(wanted)).await?;
    if output.json {
        say_json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let SettingsView { changed, dry_run, .. } = read(&answer)?;
    let mut text = String::new();
    if changed.is_empty() {
        text.push_str("nothing changed\n");
    }
    for change in changed {
        writeln!(text, "{}{change}", if dry_run { "would change " } else { "" }).ok();
    }
    say(&text)?;
    Ok(ExitCode::SUCCESS)
}

async fn show(client: &Client, sources: bool, output: Output) -> Done {
    let answer = client.get("/admin/config").await?;
    if output.json {
        // The settings alone, in the shape of the file, unless more is asked for.
        let settings = answer.get("effective").unwrap_or(&Value::Null);
        say_json(if sources { &answer } else { settings })?;
        return Ok(ExitCode::SUCCESS);
    }
    let shown: SettingsView = read(&answer)?;
    if !sources {
        let table = toml::Value::try_from(&shown.effective).map_err(anyhow::Error::from)?;
        say(&toml::to_string(&table).map_err(anyhow::Error::from)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let width = shown.sources.keys().map(String::len).max().unwrap_or_default();
    let mut text = String::new();
    for (key, source) in &shown.sources {
        let value = at(&shown.effective, key).map_or_else(String::new, ToString::to_string);
        write!(text, "{key:width$}  {source:<9}  {value}").ok();
        if let Some(change) = shown.overrides.get(key) {
            let until = change.until.as_ref().map_or_else(String::new, |it| format!(" until {it}"));
            let kept = if change.persisted { ", kept over restarts" } else { "" };
            write!(text, "  (by {}{until}{kept})", change.by).ok();
        }
        text.push('\n');
    }
    say(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The value of a key such as `doors[0].listen`.
fn at<'a>(settings: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(settings, |at, part| match part.split_once('[') {
        Some((list, index)) => {
            at.get(list)?.get(index.trim_end_matches(']').parse::<usize>().ok()?)
        }
        None => at.get(part),
    })
}
