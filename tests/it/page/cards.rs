//! What the page says of each backend, and where.

use serde_json::{Value, json};

use super::{Browser, LONG, Stage};
use crate::support::poll::eventually;

/// How many elements of `selector` with a text that matches `text` are to be seen.
#[track_caller]
fn count(browser: &mut Browser, selector: &str, text: &str) -> Value {
    browser.tell("count", json!({ "selector": selector, "text": text }))
}

#[test]
fn faults_on_purpose_show_at_their_backend_for_as_long_as_they_are_set() {
    let stage = Stage::set();
    let mut browser = Browser::at(&stage.origin(), 1280, "light");
    browser.sees("#link-text", "^live");
    let order = json!({ "faults": [{ "kind": "error", "rate": 0.1 }], "for": "10m" });
    let (status, body) = stage.daemon.put("/admin/backends/redis/chaos", order);
    assert_eq!(status, 200, "{body}");
    let flags = "[data-backend=redis] .flags li";
    browser.sees(flags, "^faults on purpose until .*: error$");
    let (status, body) = stage.daemon.delete("/admin/backends/redis/chaos");
    assert_eq!(status, 200, "{body}");
    eventually("they are gone", LONG, || count(&mut browser, flags, "faults on purpose") == 0);
    browser.assert_well_behaved(&stage.origin(), |_| false);
}
