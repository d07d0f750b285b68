//! Importing into a queue: `POST /admin/backends/{backend}/queue/import`, the lines of `queue export` and `queue
//! repair`.
//!
//! The lines of a request are read before any is taken: if one is not understood, it is named with its field, and
//! none is taken, so that a call that is mended does not come behind those that stood behind it.

use std::{borrow::Cow, sync::Arc};

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, Query, State},
    http::StatusCode,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use fusebox_actors::import::{Import, Known};
use fusebox_state::{
    LaneId, Lanes, OpId, Target, UnixMillis, Words,
    store::{DeadMark, DeadReason, TokenKind, Traits},
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    api::Api,
    body::Admitted,
    http::Connected,
    problem::{Checked, Problem},
};
use crate::ingress::peer::Who;
use report::{ImportAnswer, ImportChecked, ImportDone, ImportReport, NAMED_MAX};

pub(crate) mod report;

/// How lines are imported.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Wanted {
    /// Also calls whose lane may have been written since.
    force: bool,
    /// Also calls that were accepted for another address.
    retarget: bool,
    /// Read the lines, and take none.
    check: bool,
    /// The number of the first line, for messages.
    first_line: usize,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { force: false, retarget: false, check: false, first_line: 1 }
    }
}

/// A line of an export. What it has besides, and what a later version adds, is passed over.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    backend: String,
    op_id: String,
    state: ExportedState,
    lane: String,
    target: Option<Target>,
    #[serde(default)]
    uid: u32,
    accepted_at: UnixMillis,
    expires_at: Option<UnixMillis>,
    traceparent: Option<String>,
    dead: Option<Dead>,
    body: Base64,
    digest: Option<Hex>,
    lanes: Option<LanesJson>,
    token: Option<Token>,
    traits: Option<TraitsJson>,
    #[serde(default)]
    sent: SentJson,
}

/// Whether it was sent.
#[derive(Default)]
enum SentJson {
    /// It is of a release that did not tell.
    #[default]
    Untold,
    No,
    Yes(Sent),
}

impl<'de> Deserialize<'de> for SentJson {
    fn deserialize<D: serde::Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(value)?.map_or(Self::No, Self::Yes))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ExportedState {
    Pending,
    Sending,
    Dead,
    Salvaged,
}

#[derive(Deserialize)]
struct Dead {
    why: String,
    at: UnixMillis,
    reason: Option<Reason>,
    #[serde(default)]
    attempts: u32,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reason {
    Rejected,
    Expired,
    Ambiguous,
    Undecodable,
    GaveUp,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Token {
    Absolute,
    Marker,
    None,
    OwnMarker,
}

#[derive(Deserialize)]
struct TraitsJson {
    whole: bool,
    timed: bool,
    gather: Option<Hex>,
    due: Option<UnixMillis>,
}

#[derive(Default, Deserialize)]
struct Sent {
    #[serde(default)]
    evidence: Base64,
    #[serde(default)]
    together: bool,
}

#[derive(Default)]
struct Base64(Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: serde::Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        // Borrowed: it may be as long as all other calls in flight together.
        #[derive(Deserialize)]
        struct Wrapped<'a> {
            #[serde(borrow)]
            base64: Cow<'a, str>,
        }
        let Wrapped { base64 } = Wrapped::deserialize(value)?;
        let bytes = STANDARD.decode(base64.as_bytes()).map_err(serde::de::Error::custom)?;
        Ok(Self(bytes))
    }
}

/// A number of 64 bits in hexadecimal digits.
#[derive(Clone, Copy)]
struct Hex(u64);

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: serde::Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        let text = String::deserialize(value)?;
        let wrong = |_| serde::de::Error::custom(format!("must be hexadecimal, got {text:?}"));
        u64::from_str_radix(&text, 16).map(Self).map_err(wrong)
    }
}

struct LanesJson(Lanes);

impl<'de> Deserialize<'de> for LanesJson {
    fn deserialize<D: serde::Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Any {
            All(String),
            Some(Vec<Hex>),
        }
        match Any::deserialize(value) {
            Ok(Any::All(word)) if word == "all" => Ok(Self(Lanes::All)),
            Ok(Any::Some(lanes)) => Ok(Self(Lanes::new(lanes.iter().map(|lane| LaneId(lane.0))))),
            _ => Err(serde::de::Error::custom("must be \"all\" or a list of hexadecimal numbers")),
        }
    }
}

/// What is wrong with a line: its field, and what.
type Wrong = (String, String);

/// Reads the fields of a line, which is one JSON object.
fn line_of(text: &str) -> Result<Line, Wrong> {
    let mut json = serde_json::Deserializer::from_str(text);
    let line = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = error.path().to_string();
        let field = if field == "." { "the line".to_owned() } else { field };
        (field, error.into_inner().to_string())
    })?;
    json.end().map_err(|error| ("the line".to_owned(), error.to_string()))?;
    Ok(line)
}

/// Reads a line for `backend`, whose calls are for `target` now.
fn import_of(text: &str, backend: &str, target: &Target, retarget: bool) -> Result<Read, Wrong> {
    let line = line_of(text)?;
    let wrong = |field: &str, why: String| Err((field.to_owned(), why));
    if !line.backend.is_empty() && line.backend != backend {
        return wrong("backend", format!("is {:?}, not {backend}", line.backend));
    }
    let op_id: OpId = match line.op_id.parse() {
        Ok(op_id) => op_id,
        Err(error) => return wrong("op_id", format!("{error}")),
    };
    let other = line.target.filter(|other| other != target);
    let is_moved = other.is_some();
    if let Some(other) = other.filter(|_| !retarget) {
        let why = format!("is {other}, but {backend} is {target}: --retarget sends the call there");
        return wrong("target", why);
    }
    if line.expires_at.is_some() {
        return wrong(
            "expires_at",
            "comes from a release that this release does not know".to_owned(),
        );
    }
    let known = match (line.lanes, line.token, line.digest, line.traits) {
        (Some(lanes), Some(token), Some(digest), Some(traits)) => Some(Known {
            lanes: lanes.0,
            digest: digest.0,
            token: token.kind(),
            traits: traits.traits(),
        }),
        _ => None,
    };
    // A call that was salvaged is a dead letter if it was one in the damaged store.
    let dead = match (line.state, line.dead) {
        (ExportedState::Dead, None) => return wrong("dead", "is missing".to_owned()),
        (_, dead) => dead.map(Dead::mark),
    };
    // Of a call that was salvaged, and of a dead letter of a release that did not tell, it is not known.
    let in_doubt = match (line.state, &line.sent) {
        (ExportedState::Sending | ExportedState::Salvaged, _)
        | (_, SentJson::Yes(_))
        | (ExportedState::Dead, SentJson::Untold) => true,
        (ExportedState::Pending | ExportedState::Dead, _) => false,
    };
    let sent = match line.sent {
        SentJson::Yes(sent) => sent,
        SentJson::No | SentJson::Untold => Sent::default(),
    };
    let import = Import {
        op_id,
        label: line.lane,
        is_moved,
        known,
        body: line.body.0.into(),
        accepted_at: line.accepted_at,
        uid: line.uid,
        traceparent: line.traceparent,
        in_doubt,
        evidence: sent.evidence.0.into(),
        in_group: sent.together,
        dead,
    };
    Ok(Read { import, salvaged: line.state == ExportedState::Salvaged })
}

struct Read {
    import: Import,
    salvaged: bool,
}

impl Token {
    fn kind(self) -> TokenKind {
        match self {
            Self::Absolute => TokenKind::Absolute,
            Self::Marker => TokenKind::Marker,
            Self::None => TokenKind::None,
            Self::OwnMarker => TokenKind::OwnMarker,
        }
    }
}

impl TraitsJson {
    fn traits(&self) -> Traits {
        match (self.due, &self.gather) {
            (Some(due), _) => Traits::residue(due),
            (None, Some(number)) => Traits::gathered(number.0),
            (None, None) => Traits::of(self.whole, self.timed),
        }
    }
}

impl Dead {
    fn mark(self) -> DeadMark {
        let reason = match self.reason {
            Some(Reason::Rejected) => DeadReason::Rejected,
            Some(Reason::Expired) => DeadReason::Expired,
            Some(Reason::Ambiguous) => DeadReason::Ambiguous,
            Some(Reason::Undecodable) => DeadReason::Undecodable,
            Some(Reason::GaveUp) | None => DeadReason::GaveUp,
        };
        DeadMark { reason, detail: Words::foreign(self.why), at: self.at, attempts: self.attempts }
    }
}

/// POST /admin/backends/{backend}/queue/import
pub(crate) async fn import(
    State(api): State<Arc<Api>>,
    Checked(Path(name)): Checked<Path<String>>,
    Checked(Query(wanted)): Checked<Query<Wanted>>,
    Extension(who): Extension<Who>,
    Extension(connected): Extension<Connected>,
    body: Body,
) -> Result<Json<ImportAnswer>, Problem> {
    let (backend, _) = api.backend(&name)?;
    let Wanted { force, retarget, check, first_line } = wanted;
    let mut place = Admitted::new(&connected.account);
    let body_max = connected.account.body_max();
    let body = place.read(body, body_max).await?;
    let reader = Arc::clone(&backend);
    // The place goes along: who asked may leave while the lines are being read.
    let read = tokio::task::spawn_blocking(move || {
        let target = reader.connector().target();
        let lines = read_all(&body, first_line, |line| {
            let read = import_of(line, reader.name(), &target, retarget)?;
            let checked = reader.check_import(&read.import);
            checked.map(|()| read).map_err(|why| ("body".to_owned(), why.message))
        });
        (lines, place)
    });
    // What was read of the body is what has its place from here on.
    let (lines, _place) = read.await.map_err(|error| Problem::internal(error.to_string()))?;
    let lines = lines.map_err(|problem| problem.of(&name))?;
    if check {
        let understood = lines.len();
        let checked = ImportChecked { backend: name, understood, body_max };
        return Ok(Json(ImportAnswer::Checked(checked)));
    }
    let count = lines.len();
    let told: Vec<(usize, OpId, String, bool)> = lines
        .iter()
        .map(|(number, read)| {
            let Read { import, salvaged } = read;
            (*number, import.op_id, import.label.clone(), *salvaged)
        })
        .collect();
    let imports = lines.into_iter().map(|(_, read)| read.import).collect();
    let report = ImportReport::of(told, backend.import(imports, force).await);
    let logged = serde_json::to_value(&report).unwrap_or_default();
    tracing::warn!(backend = name, uid = who.uid, lines = count, report = %logged, "calls were imported");
    Ok(Json(ImportAnswer::Imported(ImportDone { backend: name, report })))
}

/// Every line with its number, as `read` has read it; an error names the first that are not understood. Lines can be so
/// short that what is wrong with all of them would take many times the room of the body.
fn read_all(
    body: &[u8],
    first_line: usize,
    read: impl Fn(&str) -> Result<Read, Wrong>,
) -> Result<Vec<(usize, Read)>, Problem> {
    let text = std::str::from_utf8(body)
        .map_err(|error| Problem::malformed(format!("the lines are not UTF-8: {error}")))?;
    let (mut lines, mut named, mut more) = (Vec::new(), Vec::new(), 0_u64);
    for (number, line) in (first_line..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        match read(line) {
            Ok(read) if named.is_empty() => lines.push((number, read)),
            Ok(_) => {}
            Err((field, why)) if named.len() < NAMED_MAX => {
                // None is taken.
                lines = Vec::new();
                named.push(format!("line {number}, {field}: {why}"));
            }
            Err(_) => more += 1,
        }
    }
    if named.is_empty() {
        return Ok(lines);
    }
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    let detail = format!("nothing was imported; {}{more}", named.join("; "));
    Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "not_understood", detail))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn line() -> Value {
        json!({
            "backend": "redis", "op_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "sequence": 7, "state": "pending",
            "lane": "k", "target": "redis h:1/0", "uid": 5, "accepted_at": "2026-11-23T16:00:00.123Z",
            "expires_at": null, "traceparent": null, "dead": null, "digest": "00000000000000ff",
            "lanes": ["000000000000000a"], "token": "marker",
            "traits": { "whole": false, "timed": false, "gather": null, "due": null }, "sent": null,
            "call": ["INCR", "k"], "body": { "base64": "YQ==" },
        })
    }

    fn read(line: &Value) -> Result<Import, Wrong> {
        import_of(&line.to_string(), "redis", &"redis h:1/0".into(), false).map(|read| read.import)
    }

    fn with(field: &str, value: Value) -> Value {
        let mut line = line();
        line[field] = value;
        line
    }

    fn without(fields: &[&str]) -> Value {
        let mut line = line();
        for field in fields {
            line.as_object_mut().unwrap().remove(*field);
        }
        line
    }

    #[test]
    fn a_line_is_taken_with_all_that_is_known() {
        let import = read(&line()).unwrap();
        assert_eq!((import.label.as_str(), import.uid, &import.body[..]), ("k", 5, &b"a"[..]));
        assert!(!import.in_doubt && !import.in_group && import.dead.is_none());
        let known = import.known.unwrap();
        assert_eq!((known.digest, known.token), (255, TokenKind::Marker));
        assert_eq!(known.lanes, Lanes::One(LaneId(10)));
        assert!(read(&with("later", json!({ "more": 1 }))).is_ok(), "a later release's");
        let all = read(&with("lanes", json!("all"))).unwrap().known.unwrap();
        assert!(all.lanes.is_all());
        // An earlier release's: its connector is asked.
        let old = read(&without(&["digest", "lanes", "token", "traits", "sent"])).unwrap();
        assert!(old.known.is_none() && !old.in_doubt);
    }

    #[test]
    fn doubt_is_kept() {
        let sent = json!({ "at": "2026-11-23T16:00:00Z", "evidence": { "base64": "ZQ==" }, "together": true });
        let import = read(&with("sent", sent)).unwrap();
        assert!(import.in_doubt && import.in_group && &import.evidence[..] == b"e");
        for state in ["sending", "salvaged"] {
            assert!(read(&with("state", json!(state))).unwrap().in_doubt, "{state}");
        }
        let mark = json!({ "why": "no", "at": "2026-11-23T16:00:00Z", "reason": "rejected", "attempts": 3 });
        let mut salvaged = with("state", json!("salvaged"));
        salvaged["dead"] = mark.clone();
        let import = read(&salvaged).unwrap();
        let reason = import.dead.map(|mark| mark.reason);
        assert_eq!(reason, Some(DeadReason::Rejected), "it is not sent again of itself");
        let mut dead = with("state", json!("dead"));
        dead["dead"] = mark;
        let import = read(&dead).unwrap();
        let mark = import.dead.unwrap();
        assert_eq!(
            (mark.reason, mark.detail.whole(), mark.attempts),
            (DeadReason::Rejected, "no", 3)
        );
        assert!(!import.in_doubt, "it was proven not to be sent");
        dead.as_object_mut().unwrap().remove("sent");
        assert!(read(&dead).unwrap().in_doubt, "an earlier release did not tell");
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (line, field, why) in [
            (without(&["op_id"]), "the line", "op_id"),
            (with("op_id", json!("x")), "op_id", "x"),
            (with("state", json!("gone")), "state", "gone"),
            (with("body", json!({ "base64": "?" })), "body", "symbol"),
            (with("digest", json!("xyz")), "digest", "hexadecimal"),
            (with("lanes", json!("some")), "lanes", "all"),
            (with("backend", json!("other")), "backend", "other"),
            (with("target", json!("redis h:2/0")), "target", "--retarget"),
            (with("accepted_at", json!("soon")), "accepted_at", "soon"),
            (with("state", json!("dead")), "dead", "missing"),
            (with("expires_at", json!("2026-11-23T16:00:00Z")), "expires_at", "release"),
            (with("sent", json!(7)), "sent", "invalid type"),
        ] {
            let (at, said) = read(&line).unwrap_err();
            assert!(at.starts_with(field) && said.to_lowercase().contains(why), "{at}: {said}");
        }
        assert!(import_of("{} {}", "redis", &"t".into(), false).is_err());
        let other = with("target", json!("redis h:2/0")).to_string();
        assert!(import_of(&other, "redis", &"redis h:1/0".into(), true).is_ok());
    }

    #[test]
    fn of_many_lines_that_are_not_understood_the_first_are_named() {
        let read = |text: &[u8]| {
            let of_line = |line: &str| import_of(line, "redis", &"redis h:1/0".into(), false);
            read_all(text, 1, of_line).map(|lines| lines.len())
        };
        let text = format!("{}\n\n{}{}\n", line(), "x\n".repeat(1_000), line());
        let problem = read(text.as_bytes()).unwrap_err();
        let detail = problem.detail();
        assert!(detail.starts_with("nothing was imported; line 3, the line: "), "{detail}");
        assert_eq!(detail.matches("; line ").count(), NAMED_MAX);
        assert!(detail.contains("; line 102, ") && !detail.contains("; line 103, "), "{detail}");
        assert!(detail.ends_with("; and 900 more"), "{detail}");
        assert_eq!(read(format!("{}\n\n{}", line(), line()).as_bytes()).unwrap(), 2);
        assert_eq!(read(b"\xff").unwrap_err().status(), 400);
    }
}
