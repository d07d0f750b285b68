//! A call's options as JSON carries them, or as headers do.

use std::{str::FromStr, time::Duration};

use axum::http::HeaderMap;
use fusebox_actors::{AckLevel, CallOptions, Priority};
use fusebox_state::OpId;
use schemars::JsonSchema;
use serde::Deserialize;

/// The member `options` of a call.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "CallOptions")]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CallOptionsJson {
    /// Give up after this long, such as `2s`.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<String>")]
    deadline: Option<Duration>,
    /// The greatest age of a cached answer, such as `10m`.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<String>")]
    max_stale: Option<Duration>,
    /// Calls of low priority are shed first.
    priority: Priority,
    /// What the reply to a write has to promise. With `durable`, a write may be queued that usually is not; with
    /// `applied`, none is queued.
    min_ack: Option<AckLevel>,
    /// The unique name of the call, a ULID. If the call is sent again under this name, fusebox can recognise it.
    op_id: Option<String>,
}

impl CallOptionsJson {
    /// The options as the core takes them.
    ///
    /// # Errors
    /// An `op_id` that is not a ULID, or a deadline of zero.
    pub(crate) fn checked(self) -> Result<CallOptions, String> {
        if self.deadline == Some(Duration::ZERO) {
            return Err("options.deadline must be more than 0s".into());
        }
        Ok(CallOptions {
            deadline: self.deadline,
            max_stale: self.max_stale,
            priority: self.priority,
            min_ack: self.min_ack,
            op_id: self
                .op_id
                .as_deref()
                .map(OpId::from_str)
                .transpose()
                .map_err(|e| e.to_string())?,
            dialect: 0,
            appended: None,
            awaits_place: false,
            has_stand_in: false,
            barred: None,
            is_audited: false,
            struck: None,
            made_for: None,
        })
    }

    /// The options in `X-Fusebox-*` headers.
    ///
    /// # Errors
    /// What is wrong with which header.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Result<Self, String> {
        if !headers.keys().any(|name| name.as_str().starts_with("x-fusebox-")) {
            return Ok(Self::default());
        }
        let text = |name: &str| match headers.get(name).map(|value| value.to_str()) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text.trim())),
            Some(Err(_)) => Err(format!("the header {name} is not text")),
        };
        let time = |name: &str| {
            let Some(text) = text(name)? else { return Ok(None) };
            humantime::parse_duration(text).map(Some).map_err(|error| {
                format!("{name} must be a duration such as 2s, got {text:?}: {error}")
            })
        };
        let word = |name: &str, words: &[&str]| match text(name)? {
            Some(text) if !words.contains(&text) => {
                Err(format!("{name} must be one of {}, got {text:?}", words.join(", ")))
            }
            text => Ok(text),
        };
        Ok(Self {
            deadline: time("x-fusebox-deadline")?,
            max_stale: time("x-fusebox-max-stale")?,
            priority: match word("x-fusebox-priority", &["low", "normal", "critical"])? {
                Some("low") => Priority::Low,
                Some("critical") => Priority::Critical,
                _ => Priority::Normal,
            },
            min_ack: word("x-fusebox-min-ack", &["applied", "durable"])?.map(|text| match text {
                "durable" => AckLevel::Durable,
                _ => AckLevel::Applied,
            }),
            op_id: text("x-fusebox-op-id")?.map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_from_json_and_from_headers_alike() {
        let json = r#"{"deadline":"2s","max_stale":"10m","priority":"low","min_ack":"durable",
            "op_id":"01ARZ3NDEKTSV4RRFFQ69G5FAV"}"#;
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-fusebox-deadline", "2s"),
            ("x-fusebox-max-stale", "10m"),
            ("x-fusebox-priority", "low"),
            ("x-fusebox-min-ack", "durable"),
            ("x-fusebox-op-id", "01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let from_json: CallOptionsJson = serde_json::from_str(json).unwrap();
        let from_headers = CallOptionsJson::from_headers(&headers).unwrap();
        assert_eq!(format!("{from_json:?}"), format!("{from_headers:?}"));
        let options = from_json.checked().unwrap();
        assert_eq!(options.deadline, Some(Duration::from_secs(2)));
        assert_eq!(options.min_ack, Some(AckLevel::Durable));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let json = |text: &str| {
            serde_json::from_str::<CallOptionsJson>(text)
                .map_err(|error| error.to_string())
                .and_then(CallOptionsJson::checked)
                .expect_err(text)
        };
        assert!(json(r#"{"dedline":"2s"}"#).starts_with("unknown field `dedline`"));
        assert!(json(r#"{"op_id":"x"}"#).contains("must be a ULID of 26 characters"));
        assert!(json(r#"{"deadline":"0s"}"#).contains("more than 0s"));
        let mut headers = HeaderMap::new();
        headers.insert("x-fusebox-priority", "high".parse().unwrap());
        assert_eq!(
            CallOptionsJson::from_headers(&headers).unwrap_err(),
            "x-fusebox-priority must be one of low, normal, critical, got \"high\""
        );
    }
}
