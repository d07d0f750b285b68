//! A single call and its answer, in words.

use std::time::Duration;

use fusebox_actors::{AckLevel, Source};
use serde_json::Value;

use super::{
    backend::Backend,
    call::Call,
    ledger::{Answer, Ended},
};

/// The line of a call that ended so.
pub(super) fn line(call: &Call, ended: &Ended) -> String {
    let told = match ended {
        Ended::Answered(answer) => answered(call, answer),
        Ended::Refused(why) | Ended::Unknown(why) => why.clone(),
        Ended::NoDaemon => "nobody listens at the socket".to_owned(),
    };
    format!("{:<10} {:<36} -> {told}", call.backend.name(), call.shown)
}

fn answered(call: &Call, answer: &Answer) -> String {
    let Answer { status, source, ack, age_ms, .. } = answer;
    let value = value(call, answer);
    let age = Duration::from_millis(*age_ms).as_secs_f64();
    let means = match (source.known(), ack) {
        (Some(Source::Live), _) => String::new(),
        (Some(Source::Queued), Some(AckLevel::Durable)) => {
            ", durable: synced to this disk".to_owned()
        }
        (Some(Source::Queued), _) => ": from the queued writes".to_owned(),
        (Some(Source::Empty), _) => ": an empty result".to_owned(),
        (Some(Source::Bypass), _) => ": the caller computes it".to_owned(),
        (Some(Source::Cache | Source::Stale) | None, _) => format!(": as it was {age:.1} s ago"),
    };
    let status = status.map_or_else(String::new, |status| format!("{status} "));
    format!("{status}{source}{value}{means}")
}

/// What of the value is worth a look.
fn value(call: &Call, answer: &Answer) -> String {
    let value = match call.backend {
        Backend::Keys => &answer.value,
        // Their writes are answered with times and sums.
        _ if call.is_write() => return String::new(),
        Backend::Rows => &answer.value,
        Backend::Documents => answer.value.get("data").unwrap_or(&Value::Null),
    };
    match value {
        Value::Null if answer.ack == Some(AckLevel::Durable) => String::new(),
        Value::Null => ", nil".to_owned(),
        value => format!(", {value}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(call: Call, source: Source, value: Value, expected: &str) {
        let is_queued = call.is_write() && source == Source::Queued;
        let ack = is_queued.then_some(AckLevel::Durable);
        let answer = Answer { status: Some(200), source: source.into(), ack, value, age_ms: 1_234 };
        let line = line(&call, &Ended::Answered(answer));
        assert_eq!(line.split_once("-> ").unwrap().1, expected);
    }

    #[test]
    fn a_call_is_shown_with_what_its_caller_was_told() {
        let get = || Call::get(Backend::Keys, "k");
        check(get(), Source::Live, json!("1"), "200 live, \"1\"");
        check(get(), Source::Bypass, json!(null), "200 bypass, nil: the caller computes it");
        let incr = Call::increment(Backend::Keys, "k").durable();
        check(incr, Source::Queued, json!(null), "200 queued, durable: synced to this disk");
        let rows = json!([{ "n": 1 }]);
        check(
            Call::select("n"),
            Source::Stale,
            rows,
            "200 stale, [{\"n\":1}]: as it was 1.2 s ago",
        );
        check(Call::insert(1..2), Source::Live, json!({ "written_rows": "1" }), "200 live");
        let document = json!({ "path": "d/a", "data": { "value": 2 }, "update_time": null });
        let get = Call::get(Backend::Documents, "d/a");
        let expected = "200 queued, {\"value\":2}: from the queued writes";
        check(get, Source::Queued, document, expected);
        let refused = line(&Call::select("n"), &Ended::Refused("503 read-only".into()));
        assert!(
            refused.starts_with("clickhouse SELECT n ") && refused.ends_with("-> 503 read-only")
        );
    }
}
