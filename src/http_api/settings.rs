//! The settings in effect, and changes of them at run time: `/admin/config` and `/admin/backends/{backend}/config`.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, header::IF_MATCH},
};
use fusebox_actors::KeyChange;
use fusebox_state::UnixMillis;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    admin::optional_json,
    api::Api,
    problem::{Checked, Problem},
};
use crate::{
    changes::{
        self,
        edit::{Edit, Refusal},
    },
    config::{Config, declared::each_leaf, setting::Takes},
    daemon::settings::revision,
    ingress::peer::Who,
};

/// The longest that a change is made for.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// How settings are changed.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct How {
    /// Whether the change outlasts a restart.
    persist: bool,
    /// For how long, such as `10m`, at most `365days`; until it is taken back if it is not said.
    #[serde(rename = "for", with = "humantime_serde")]
    #[schemars(with = "Option<String>")]
    lasting: Option<Duration>,
    /// Whether nothing is changed, and the answer says what would be.
    dry_run: bool,
    /// Whether values that endanger the service are taken.
    force: bool,
}

/// A merge patch (RFC 7396) in the shape of the configuration file. Null takes a change back.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct MergePatch(#[schemars(with = "Map<String, Value>")] Value);

/// The settings in effect.
#[derive(Serialize, JsonSchema)]
pub(crate) struct SettingsShown {
    #[serde(flatten)]
    settings: Settings,
    /// The settings that cannot be changed at run time.
    locked: Vec<String>,
}

/// What was changed, and the settings in effect then.
#[derive(Serialize, JsonSchema)]
pub(crate) struct SettingsChanged {
    #[serde(flatten)]
    settings: Settings,
    /// The settings whose values changed.
    changed: Vec<KeyChange>,
    /// Whether nothing was changed, and this is what would be.
    dry_run: bool,
}

/// The settings in effect, by their paths.
#[derive(Serialize, JsonSchema)]
struct Settings {
    /// Tells these settings from others, for `If-Match`.
    revision: String,
    /// The settings in the shape of the configuration file. Secrets are masked.
    effective: Value,
    /// From which each value is: `default`, `file`, `persisted`, `runtime`, or the name of a variable.
    sources: BTreeMap<String, String>,
    /// The settings that were changed at run time.
    overrides: BTreeMap<String, Override>,
}

/// A change of a setting at run time.
#[derive(Serialize, JsonSchema)]
struct Override {
    /// The value.
    #[schemars(with = "Value")]
    value: toml::Value,
    /// Whether it outlasts a restart.
    persisted: bool,
    /// Who made it.
    by: String,
    /// When it was made.
    #[schemars(with = "UnixMillis")]
    at: String,
    /// When it ends by itself; null if it does not.
    #[schemars(with = "Option<UnixMillis>")]
    until: Option<String>,
}

/// GET /admin/config
pub(crate) async fn show(State(api): State<Arc<Api>>) -> Json<SettingsShown> {
    Json(shown(&api.daemon.config.load(), ""))
}

/// GET /admin/backends/{backend}/config
pub(crate) async fn show_backend(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
) -> Result<Json<SettingsShown>, Problem> {
    api.backend(&name)?;
    Ok(Json(shown(&api.daemon.config.load(), &section(&name))))
}

/// PATCH /admin/config
pub(crate) async fn change(
    State(api): State<Arc<Api>>,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
    Checked(Query(how)): Checked<Query<How>>,
    body: Body,
) -> Result<Json<SettingsChanged>, Problem> {
    edit(&api, None, who, &headers, how, body).await
}

/// PATCH /admin/backends/{backend}/config
pub(crate) async fn change_backend(
    State(api): State<Arc<Api>>,
    Extension(who): Extension<Who>,
    Checked(Path(name)): Checked<Path<String>>,
    headers: HeaderMap,
    Checked(Query(how)): Checked<Query<How>>,
    body: Body,
) -> Result<Json<SettingsChanged>, Problem> {
    api.backend(&name)?;
    let edited = edit(&api, Some(name.clone()), who, &headers, how, body).await;
    edited.map_err(|problem| problem.of(&name))
}

async fn edit(
    api: &Arc<Api>,
    backend: Option<String>,
    who: Who,
    headers: &HeaderMap,
    how: How,
    body: Body,
) -> Result<Json<SettingsChanged>, Problem> {
    let MergePatch(patch) = optional_json(body).await?;
    let How { persist, lasting, dry_run, force } = how;
    if let Some(given) = lasting.filter(|lasting| lasting.is_zero() || *lasting > LONGEST) {
        let given = humantime::format_duration(given);
        let why = format!("for must be more than 0s and at most 365days, got {given}");
        return Err(Problem::malformed(why));
    }
    let expected = headers.get(IF_MATCH).map(|value| value.to_str().unwrap_or_default());
    // `*` is any revision (RFC 9110, 13.1.1).
    let expected = expected.filter(|value| *value != "*");
    let expected = expected.map(|value| value.trim_matches('"').to_owned());
    let base = backend.as_deref().map_or_else(String::new, section);
    let at = SystemTime::now();
    let until = lasting.and_then(|lasting| at.checked_add(lasting));
    let edit = Edit { backend, patch, persist, until, force, by: who.to_string(), at };
    let edited = api.daemon.edit(edit, expected.as_deref(), dry_run).await.map_err(refused)?;
    let SettingsShown { settings, .. } = shown(&edited.config, &base);
    let below = |key: String| strip(&key, &base).map_or(key.clone(), str::to_owned);
    let changed = edited.changed.into_iter();
    let changed = changed.map(|change| KeyChange { key: below(change.key), ..change }).collect();
    Ok(Json(SettingsChanged { settings, changed, dry_run }))
}

fn section(backend: &str) -> String {
    format!("backends.{backend}")
}

/// The path of a setting below a section; `None` if it is not there.
fn strip<'a>(path: &'a str, base: &str) -> Option<&'a str> {
    if base.is_empty() {
        return Some(path);
    }
    path.strip_prefix(base)?.strip_prefix('.')
}

/// What is shown of the settings below `base`; of all if that is empty.
fn shown(config: &Config, base: &str) -> SettingsShown {
    let effective = match base.strip_prefix("backends.") {
        Some(name) => config.show_backend(name),
        None => config.show(),
    };
    let (mut sources, mut locked) = (BTreeMap::new(), Vec::new());
    each_leaf(&config.effective, "", &mut |path, _| {
        let Some(key) = strip(path, base) else { return };
        sources.insert(key.to_owned(), changes::source(config, path).to_owned());
        let takes = config.declared.find(path, None).map(|setting| setting.facts.takes);
        if takes != Some(Takes::Patch) {
            locked.push(key.to_owned());
        }
    });
    let mut overrides = BTreeMap::new();
    for change in &config.changes {
        let Some(key) = strip(&change.path, base) else { continue };
        let time = |time| humantime::format_rfc3339_millis(time).to_string();
        overrides.insert(
            key.to_owned(),
            Override {
                value: change.value.clone(),
                persisted: change.persisted,
                by: change.by.clone(),
                at: time(change.at),
                until: change.until.map(time),
            },
        );
    }
    let settings = Settings { revision: revision(config), effective, sources, overrides };
    SettingsShown { settings, locked }
}

fn refused(why: Refusal) -> Problem {
    let (status, code) = match &why {
        Refusal::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_settings"),
        Refusal::Locked(_) => (StatusCode::CONFLICT, "locked"),
        Refusal::Overridden(_) => (StatusCode::CONFLICT, "overridden"),
        Refusal::Unsafe(_) => (StatusCode::CONFLICT, "unsafe"),
        Refusal::Stale(_) => (StatusCode::PRECONDITION_FAILED, "stale_revision"),
        Refusal::Failed(_) => (StatusCode::SERVICE_UNAVAILABLE, "order_failed"),
    };
    Problem::new(status, code, why.to_string())
}
