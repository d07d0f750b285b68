//! What a kind of backend is, to everything above it.
//!
//! A kind knows its usual settings, how its connector is made, and how a call and a reply look as JSON. Everything else
//! above the connectors deals in opaque bytes.

use std::{borrow::Cow, collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use axum::http::HeaderMap;
use bytes::Bytes;
use fusebox_actors::{Backend, connector::SharedConnector};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::Value;
use tokio::runtime::Handle;
use toml::Table;

use super::{former::Former, options::CallOptionsJson, twins::Twins};
use crate::{
    config::{BackendConfig, DoorSettings, Section},
    exact::Outgoing,
    ingress::door::WireDoor,
};

/// The largest body of which a call is shown as JSON, in bytes: in an export, and to admins who look at the queue.
pub(crate) const SHOWN_MAX: usize = 1 << 20;

/// Who the connections say they are: `fusebox:<instance>:<run>`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identity {
    /// The daemon's name, kept over restarts.
    pub(crate) instance: String,
    /// This run's name.
    pub(crate) run: String,
    /// The names that it had before they were found to be another's: connections with them are killed once.
    pub(crate) former: Arc<Former>,
    /// The folder of what outlives a run; `None` if nothing does.
    pub(crate) state_dir: Option<PathBuf>,
    /// The longest that an attempt of each backend may have had which an earlier run has left on the wire.
    pub(crate) timeouts: Arc<BTreeMap<String, Duration>>,
    /// Receives reports of other daemons with this name.
    pub(crate) twins: Arc<Twins>,
}

/// A call as JSON carried it: its wire form, and what was asked of it.
#[derive(Debug)]
pub(crate) struct JsonCall {
    /// The call in wire form.
    pub(crate) body: Bytes,
    /// The member `options`.
    pub(crate) options: CallOptionsJson,
}

/// A reply as `call/raw` answers it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RawReply {
    /// What the body is.
    pub(crate) content_type: Cow<'static, str>,
    /// The answer's bytes.
    pub(crate) body: Bytes,
}

/// What a wire door is made of.
pub(crate) struct DoorSpec {
    /// The door's settings, who is known by a secret among them.
    pub(crate) settings: Arc<DoorSettings>,
    /// What carries its calls.
    pub(crate) backend: Arc<Backend>,
    /// All backends of its kind.
    pub(crate) kin: Vec<Arc<Backend>>,
    /// The runtime for its tasks.
    pub(crate) runtime: Handle,
}

/// A kind of backend.
pub(crate) trait Kind: Section {
    /// A connector for a backend of this kind. Connects in the background, or at the first attempt.
    ///
    /// # Errors
    /// What cannot be used, such as a file of authorities that does not parse.
    fn connector(
        &self,
        backend: &BackendConfig,
        identity: &Identity,
    ) -> Result<SharedConnector, String>;

    /// Gives a connector of this kind what was changed of its kind's own settings at run time: what is declared to take
    /// a patch. Nothing is reconnected.
    fn retune(&self, connector: SharedConnector, own: &Table) {
        let (_, _) = (connector, own);
    }

    /// A wire door to a backend of this kind: as [`Section::has_door`] says, every kind that has one gives one.
    ///
    /// # Errors
    /// What prevents it.
    fn door(&self, spec: DoorSpec) -> Option<Result<Arc<dyn WireDoor>, String>> {
        drop(spec);
        None
    }

    /// The schema of a call's JSON, as [`Kind::call_from_json`] reads it; of a kind that does not say, that of its
    /// options.
    fn call_schema(&self, generator: &mut SchemaGenerator) -> Schema {
        let options = generator.subschema_for::<CallOptionsJson>();
        json_schema!({ "type": "object", "properties": { "options": options } })
    }

    /// A call from its JSON, and from the request's headers what no JSON should carry, such as a
    /// caller's own credentials.
    ///
    /// # Errors
    /// What is malformed, with its position.
    fn call_from_json(&self, json: &[u8], headers: &HeaderMap) -> Result<JsonCall, String>;

    /// A call from the `X-Fusebox-*` headers and the body of `call/raw`, in wire form.
    ///
    /// # Errors
    /// What is malformed, with its position.
    fn call_from_raw(&self, headers: &HeaderMap, body: Bytes) -> Result<Bytes, String> {
        let _ = headers;
        Ok(body)
    }

    /// A live query from its JSON, in the wire form that its connector's streams take.
    ///
    /// # Errors
    /// What is malformed, with its position.
    fn stream_from_json(&self, json: &[u8], headers: &HeaderMap) -> Result<Bytes, String> {
        let _ = (json, headers);
        Err(format!("the kind {} has no live queries", self.name()))
    }

    /// The largest body that `call/raw` takes, in bytes.
    fn raw_call_max(&self) -> u64;

    /// The most of such a body that is held in memory; what is longer is sent as it comes, once, and
    /// never queued. As [`Kind::raw_call_max`] if nothing is sent so.
    fn raw_held_max(&self) -> u64 {
        self.raw_call_max()
    }

    /// A reply in wire form, or the beginning of one, as `call/raw` answers it.
    fn reply_to_raw(&self, reply: &Bytes) -> RawReply {
        RawReply { content_type: "application/octet-stream".into(), body: reply.clone() }
    }

    /// A reply in wire form as JSON. What is JSON already goes out as the backend wrote it.
    fn reply_to_json<'a>(&self, reply: &'a Bytes) -> Outgoing<'a>;

    /// Whether `fusebox call` prints lists and objects as JSON, rather than an element a line.
    fn prints_json(&self) -> bool {
        true
    }

    /// A call in wire form as JSON, for admins who look at the queue.
    fn body_to_json(&self, body: &Bytes) -> Value;

    /// A call from the arguments of `fusebox call`, as the JSON of [`Kind::call_from_json`]. `data` reads
    /// what is piped in, to its end, and is asked only if the call takes any; `None` at a terminal.
    ///
    /// # Errors
    /// What the arguments should be.
    fn call_from_args(
        &self,
        args: &[Vec<u8>],
        data: &mut dyn FnMut() -> Result<Option<Vec<u8>>, String>,
    ) -> Result<Value, String>;
}

/// The schema of bytes in JSON that are no text: `{"base64":"…"}`.
pub(crate) fn in_base64() -> Schema {
    json_schema!({
        "type": "object",
        "properties": { "base64": { "type": "string" } },
        "required": ["base64"],
        "additionalProperties": false,
    })
}
