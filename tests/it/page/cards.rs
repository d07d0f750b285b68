//! What the page says of each backend, and where.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Browser, LONG, Stage};
use crate::support::outage::begin_outage;
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

#[test]
fn a_cause_is_named_at_its_backend_and_in_the_timeline_and_nowhere_else() {
    let mut stage = Stage::set();
    let mut browser = Browser::at(&stage.origin(), 1280, "light");
    browser.sees("#link-text", "^live");
    begin_outage(&mut stage.redis, &stage.daemon);
    browser.sees("#broken li", "redis is OPEN\\. Half-opens in ");
    browser.sees("#system-state", "^(DEGRADED|CRITICAL|EMERGENCY)$");
    browser.sees("#timeline tr", "system.*HEALTHY → .*backend redis is down \\(OPEN\\)");
    let cause = "failed.*last errors: ";
    for (place, times) in [(".cause", 1), ("#timeline tr", 1), ("#system", 0)] {
        assert_eq!(count(&mut browser, place, cause), times, "{place}");
    }
    // Neither is it said twice that it is down.
    let top = browser.text("#system");
    assert!(top.matches("redis").count() == 1 && !top.contains("is down"), "{top}");
    browser.assert_well_behaved(&stage.origin(), |_| false);
}

#[test]
fn both_charts_are_as_high_and_show_their_scale() {
    const SCALE: &str = "[data-backend=redis] .chart .scale";
    let mut stage = Stage::set();
    let mut browser = Browser::at(&stage.origin(), 1280, "light");
    browser.sees("#link-text", "^live");
    // The page looks at the response times every five seconds, and needs two looks.
    eventually("the response times have a scale", Duration::from_secs(30), || {
        stage.daemon.redis(&["GET", "k"]).assert_live();
        count(&mut browser, SCALE, "^(under )?[0-9.]+\\sm?s\\s+0$") == 1
    });
    begin_outage(&mut stage.redis, &stage.daemon);
    for key in ["a", "b", "c"] {
        stage.daemon.redis(&["SET", key, "v"]).assert_queued();
    }
    browser.sees(SCALE, "^3\\s+0$");
    for (width, scheme) in [(1280, "light"), (320, "dark")] {
        browser.look(width, scheme);
        let how = json!({ "selector": "[data-backend=redis] .chart svg" });
        let heights = browser.tell("heights", how);
        let [first, second] = heights.as_array().unwrap().as_slice() else { panic!("{heights}") };
        assert!(first == second && first.as_f64() > Some(40.0), "{heights}");
        assert_eq!(browser.count(SCALE), 2);
        browser.assert_accessible(&format!("charts, {width} px, {scheme}"));
    }
    browser.assert_well_behaved(&stage.origin(), |_| false);
}
