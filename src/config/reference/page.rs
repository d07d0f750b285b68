//! docs/configuration.md.

use std::fmt::Write as _;

use super::{
    super::{declared::Declared, section::Section, setting::Setting, shape::Shape},
    leaves, name, written,
};

const HEAD: &str = "\
# Configuration

<!-- `fusebox config schema --format markdown` generates this page from the declarations of the settings. A test \
checks that the page is up to date. -->

This page lists every setting, with its default, its possible values, and how to change it. The configuration is a \
TOML file: `/etc/fusebox/fusebox.toml`, or the file that `--config` or `FUSEBOX_CONFIG` names. If \
`/etc/fusebox/fusebox.toml` does not exist, every setting has its default, unless [something else](#what-wins) sets \
it. A file that `--config` or `FUSEBOX_CONFIG` names must exist. The [glossary](glossary.md) explains the terms.

| to | run |
| --- | --- |
| validate a file, and see what is in effect | `fusebox check` |
| get a JSON schema for editors | `fusebox config schema` |
| get a file with every setting and its default | `fusebox config schema --format toml` |

An unknown key in the file is an error. The error message names the setting whose name is most similar.

## What wins
If several sources set the same setting, the source that comes last in this list wins:
1. the defaults
2. the file
3. changes at run time
4. the environment variables in the table below
5. `FUSEBOX_*` environment variables
6. command-line options

There is one exception. If somebody edits a setting in the file after a change at run time, the file wins over this \
change (see [settings.md](settings.md#what-wins)).

Every setting except those of `[[doors]]` can be set by an environment variable. For example, \
`FUSEBOX_BACKENDS__REDIS__BREAKER__FAILURE_THRESHOLD=7` sets `backends.redis.breaker.failure_threshold`. A list is \
written with commas: `redis,clickhouse`. The variables in the next table work as well. In a row with several \
variables, the first variable sets the first setting, and so on.

| variable | sets |
| --- | --- |
| `HEALTH_CHECK_INTERVAL` (seconds), `ENABLE_AUTO_RECOVERY` | `health.interval`, `health.auto_recovery` |
| `REDIS_URL`, `REDIS_CIRCUIT_BREAKER_THRESHOLD`, `REDIS_FALLBACK_CACHE_DIR` | `url`, `breaker.failure_threshold`, `cache.dir` of the backend `redis` |
| `CLICKHOUSE_URL`, `CLICKHOUSE_CIRCUIT_BREAKER_THRESHOLD` | `url`, `breaker.failure_threshold` of the backend `clickhouse` |
| `FIRESTORE_EMULATOR_HOST`, `FIRESTORE_CIRCUIT_BREAKER_THRESHOLD`, `FIRESTORE_QUEUE_FILE` | `url`, `breaker.failure_threshold`, `queue.dir` of the backend `firestore` |
| `GOOGLE_CLOUD_PROJECT`, `GOOGLE_APPLICATION_CREDENTIALS` | `project`, `credentials_file` of the backend `firestore` |

## How to read the tables
Durations are written as `200ms`, `30s` or `1m 30s`, and sizes as `64KiB` or `1GiB`. The column *change* says how a \
new value takes effect:

| change | a new value takes effect with |
| --- | --- |
| `patch` | `fusebox config set` at run time, or a reload |
| `reload` | `fusebox config reload` or SIGHUP |
| `restart` | a restart of the daemon |
";

/// The page.
pub(crate) fn page(sections: &[&dyn Section]) -> String {
    let declared = Declared::new(sections);
    let mut page = HEAD.to_owned();
    let kinds: Vec<&str> = sections.iter().map(|section| section.name()).collect();
    let core = leaves(&declared, "").filter(|it| it.kind.is_none());
    table(&mut page, "## The daemon", "", core, &declared, &kinds);
    for section in &declared.sections {
        let shown = section.path.replace('*', "NAME");
        let head = match shown.strip_suffix("[]") {
            Some(list) => format!("## `[[{list}]]`"),
            None => format!("## `[{shown}]`"),
        };
        let of_all = leaves(&declared, &section.path).filter(|it| it.kind.is_none());
        table(&mut page, &head, &section.doc, of_all, &declared, &kinds);
        if section.path == "backends.*" {
            for kind in &kinds {
                let own = leaves(&declared, &section.path).filter(|it| it.kind == Some(*kind));
                let head = format!("### Of the kind `{kind}` alone");
                table(&mut page, &head, "", own, &declared, &[kind]);
            }
        }
    }
    page
}

fn table<'a>(
    page: &mut String,
    head: &str,
    doc: &str,
    settings: impl Iterator<Item = &'a Setting>,
    declared: &Declared,
    kinds: &[&str],
) {
    let rows: Vec<String> = settings.map(|setting| row(setting, declared, kinds)).collect();
    if rows.is_empty() && doc.is_empty() {
        return;
    }
    write!(page, "\n{head}\n").ok();
    if !doc.is_empty() {
        writeln!(page, "{doc}").ok();
    }
    if !rows.is_empty() {
        write!(
            page,
            "\n| setting | default | values | change | |\n| --- | --- | --- | --- | --- |\n{}",
            rows.concat()
        )
        .ok();
    }
}

fn row(setting: &Setting, declared: &Declared, kinds: &[&str]) -> String {
    let facts = &setting.facts;
    format!(
        "| `{}` | {} | {} | {} | {} |\n",
        name(setting),
        default(setting, declared, kinds),
        values(setting),
        facts.takes.as_str(),
        setting.doc.replace('|', "\\|"),
    )
}

fn default(setting: &Setting, declared: &Declared, kinds: &[&str]) -> String {
    if let Some(rule) = &setting.facts.rule {
        return rule.to_string();
    }
    let of = |kind: &str| {
        declared.default_of(setting, kind).map(|value| format!("`{}`", written(setting, &value)))
    };
    let each: Vec<(String, &str)> =
        kinds.iter().filter_map(|kind| Some((of(kind)?, *kind))).collect();
    match each.as_slice() {
        [] => String::new(),
        [(first, _), rest @ ..] if rest.iter().all(|(other, _)| other == first) => first.clone(),
        each => {
            let each = each.iter().map(|(value, kind)| format!("{value} {kind}"));
            each.collect::<Vec<_>>().join(", ")
        }
    }
}

fn values(setting: &Setting) -> String {
    let facts = &setting.facts;
    if !facts.words.is_empty() {
        let words: Vec<String> = facts.words.iter().map(|word| format!("`{word:?}`")).collect();
        return words.join(", ");
    }
    let text = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match &facts.range {
        Some((least, most)) => format!("{} to {}", text(least), text(most)),
        None if setting.shape == Shape::Text => match &facts.example {
            Some(example) => format!("such as `{example}`"),
            None => "text".to_owned(),
        },
        None => setting.shape.called().to_owned(),
    }
}
