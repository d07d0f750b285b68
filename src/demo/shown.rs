//! A single call and what its caller was told, in words.

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
    let means = match (source.as_str(), ack.as_str()) {
        ("live", _) => String::new(),
        ("queued", "durable") => ", durable: synced to this disk".to_owned(),
        ("queued", _) => ": from the writes that wait".to_owned(),
        ("empty", _) => ": nothing, in the right form".to_owned(),
        ("bypass", _) => ": the caller computes it".to_owned(),
        _ => format!(": as it was {:.1} s ago", age_ms / 1_000.0),
    };
    format!("{status} {source}{value}{means}")
}

/// What of the value is worth a look.
fn value(call: &Call, answer: &Answer) -> String {
    let value = match call.backend {
        Backend::Redis => &answer.value,
        // Their writes are answered with times and sums.
        _ if call.is_write() => return String::new(),
        Backend::ClickHouse => &answer.value,
        Backend::Firestore => answer.value.get("data").unwrap_or(&Value::Null),
    };
    match value {
        Value::Null if answer.ack == "durable" => String::new(),
        Value::Null => ", nil".to_owned(),
        value => format!(", {value}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(call: Call, source: &str, value: Value, expected: &str) {
        let ack = if call.is_write() && source == "queued" { "durable" } else { "" };
        let answer =
            Answer { status: 200, source: source.into(), ack: ack.into(), value, age_ms: 1_234.0 };
        let line = line(&call, &Ended::Answered(answer));
        assert_eq!(line.split_once("-> ").unwrap().1, expected);
    }

    #[test]
    fn a_call_is_shown_with_what_its_caller_was_told() {
        let get = || Call::get(Backend::Redis, "k");
        check(get(), "live", json!("1"), "200 live, \"1\"");
        check(get(), "bypass", json!(null), "200 bypass, nil: the caller computes it");
        let incr = Call::increment(Backend::Redis, "k").durable();
        check(incr, "queued", json!(null), "200 queued, durable: synced to this disk");
        let rows = json!([{ "n": 1 }]);
        check(Call::select("n"), "stale", rows, "200 stale, [{\"n\":1}]: as it was 1.2 s ago");
        check(Call::insert(1..2), "live", json!({ "written_rows": "1" }), "200 live");
        let document = json!({ "path": "d/a", "data": { "value": 2 }, "update_time": null });
        let get = Call::get(Backend::Firestore, "d/a");
        let expected = "200 queued, {\"value\":2}: from the writes that wait";
        check(get, "queued", document, expected);
        let refused = line(&Call::select("n"), &Ended::Refused("503 read-only".into()));
        assert!(
            refused.starts_with("clickhouse SELECT n ") && refused.ends_with("-> 503 read-only")
        );
    }
}
