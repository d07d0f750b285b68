//! What followers receive, as JSON.
//!
//! | event | data |
//! | --- | --- |
//! | `snapshot` | `{"documents":[…],"stale":…,"source":"live"\|"stale"\|"empty","read_time":…}`, and `since` and `reason` if it is stale |
//! | `change` | `{"added":[…],"modified":[…],"removed":["path"…],"source":"live","read_time":…}`: also says that what was stale is so no longer |
//! | `stale` | `{"since":…,"reason":…}`; at the end of a stream `{"since":…,"ended":true,"code":…,"message":…}` |

use std::time::SystemTime;

use bytes::Bytes;
use fusebox_actors::connector::StreamEvent;
use prost_types::Timestamp;
use serde_json::{Value as Json, json};

/// Why a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cause {
    /// The server's code, such as `INVALID_ARGUMENT`, or one of fusebox's.
    pub(super) code: &'static str,
    pub(super) message: String,
}

/// What a snapshot is made of, so that it is put together without a lock.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) documents: Vec<Bytes>,
    /// Since when it is stale, and why.
    pub(super) stale: Option<(SystemTime, String)>,
    /// Whether it represents documents that are not known, or not kept any more.
    pub(super) empty: bool,
    pub(super) read_time: Option<Timestamp>,
}

impl Snapshot {
    /// The event.
    pub(super) fn event(self) -> StreamEvent {
        let source = match (self.empty, &self.stale) {
            (true, _) => "empty",
            (false, Some(_)) => "stale",
            (false, None) => "live",
        };
        let mut rest = json!({
            "stale": self.stale.is_some(),
            "source": source,
            "read_time": time(self.read_time),
        });
        if let (Some((since, why)), Some(rest)) = (self.stale, rest.as_object_mut()) {
            rest.insert("since".into(), wall(since));
            rest.insert("reason".into(), why.into());
        }
        event("snapshot", &[("documents", &self.documents)], &rest)
    }
}

/// How the state has changed; `removed` are paths.
pub(super) fn change(
    added: &[Bytes],
    modified: &[Bytes],
    removed: &[String],
    read_time: Option<Timestamp>,
) -> StreamEvent {
    let rest = json!({ "removed": removed, "source": "live", "read_time": time(read_time) });
    event("change", &[("added", added), ("modified", modified)], &rest)
}

/// What is known is of the past.
pub(super) fn stale(since: SystemTime, why: &str) -> StreamEvent {
    event("stale", &[], &json!({ "since": wall(since), "reason": why }))
}

/// What is known is of the past, and the stream ends.
pub(super) fn ended(since: SystemTime, cause: &Cause) -> StreamEvent {
    let Cause { code, message } = cause;
    let rest = json!({ "since": wall(since), "ended": true, "code": code, "message": message });
    event("stale", &[], &rest)
}

/// An object of arrays of ready JSON, and the members of `rest`.
fn event(event: &'static str, lists: &[(&str, &[Bytes])], rest: &Json) -> StreamEvent {
    let size: usize = lists.iter().flat_map(|(_, list)| *list).map(|json| json.len() + 1).sum();
    let mut data = Vec::with_capacity(size + 256);
    data.push(b'{');
    for (name, list) in lists {
        data.extend_from_slice(format!("\"{name}\":[").as_bytes());
        for (index, json) in list.iter().enumerate() {
            if index > 0 {
                data.push(b',');
            }
            data.extend_from_slice(json);
        }
        data.extend_from_slice(b"],");
    }
    let rest = rest.to_string();
    data.extend_from_slice(rest.strip_prefix('{').unwrap_or(&rest).as_bytes());
    StreamEvent { event, data: data.into() }
}

fn time(time: Option<Timestamp>) -> Json {
    time.map_or(Json::Null, |time| json!(time.to_string()))
}

fn wall(time: SystemTime) -> Json {
    json!(Timestamp::from(time).to_string())
}
