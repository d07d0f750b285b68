//! The metrics of wire doors, set from what the doors show of themselves when a page is made.

use std::{borrow::Cow, sync::atomic::Ordering, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::view::DoorStatus;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OneDoor {
    door: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ModeLabels {
    door: String,
    mode: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabels {
    door: String,
    reason: Cow<'static, str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CommandLabels {
    door: String,
    class: Cow<'static, str>,
    source: Cow<'static, str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DirectionLabels {
    door: String,
    direction: &'static str,
}

/// Every metric of doors, by its labels.
pub(super) struct DoorFamilies {
    connections: Family<ModeLabels, Gauge>,
    accepted: Family<OneDoor, Counter>,
    closed: Family<ReasonLabels, Counter>,
    commands: Family<CommandLabels, Counter>,
    refused: Family<ReasonLabels, Counter>,
    auth_failures: Family<OneDoor, Counter>,
    bytes: Family<DirectionLabels, Counter>,
    parked: Family<OneDoor, Gauge>,
    buffers: Family<DirectionLabels, Gauge>,
    overhead: Family<OneDoor, Histogram>,
}

/// Where a door puts its own times.
#[derive(Clone, Debug)]
pub struct DoorOverhead(Histogram);

impl DoorOverhead {
    /// A request took so long at the door itself.
    pub fn observe(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

/// Upper bounds in seconds: from a microsecond to the times at which something else is wrong.
const OVERHEADS: [f64; 12] =
    [1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 1e-2, 1e-1];

impl Default for DoorFamilies {
    fn default() -> Self {
        Self {
            connections: Family::default(),
            accepted: Family::default(),
            closed: Family::default(),
            commands: Family::default(),
            refused: Family::default(),
            auth_failures: Family::default(),
            bytes: Family::default(),
            parked: Family::default(),
            buffers: Family::default(),
            overhead: Family::new_with_constructor(|| Histogram::new(OVERHEADS)),
        }
    }
}

impl DoorFamilies {
    /// Declares them. prometheus-client appends `_total` to counters.
    pub(super) fn declare(&self, to: &mut Registry) {
        let help = "Open connections of a door by kind of connection to the backend";
        to.register("door_connections", help, self.connections.clone());
        let help = "Connections that a door accepted";
        to.register("door_accepted", help, self.accepted.clone());
        let help = "Connections of a door that have ended, by reason";
        to.register("door_closed", help, self.closed.clone());
        let help = "Requests at a door by class and source of the answer";
        to.register("door_commands", help, self.commands.clone());
        let help = "Connections and requests that a door refused, by reason";
        to.register("door_refused", help, self.refused.clone());
        let help = "Names and secrets that clients sent to a door and that no caller has";
        to.register("door_auth_failures", help, self.auth_failures.clone());
        let help = "Bytes from and to the clients of a door";
        to.register("door_bytes", help, self.bytes.clone());
        let help = "Requests of a door that wait for the backend";
        to.register("door_parked", help, self.parked.clone());
        let help = "Bytes of requests and of answers that a door holds";
        to.register("door_buffer_bytes", help, self.buffers.clone());
        let help =
            "The door's own time of one request in 64: until it is sent, and from its answer on";
        to.register("door_overhead_seconds", help, self.overhead.clone());
    }

    /// The times of a door, which it measures itself.
    pub(super) fn overhead(&self, address: &str) -> DoorOverhead {
        DoorOverhead(self.overhead.get_or_create_owned(&OneDoor { door: address.to_owned() }))
    }

    /// Sets those of a door.
    pub(super) fn set(&self, status: &DoorStatus) {
        let DoorStatus { address, view, .. } = status;
        let door = || address.clone();
        let open = view.connections;
        for (mode, count) in
            [("shared", open.shared), ("pinned", open.pinned), ("parked", open.parked)]
        {
            let labels = ModeLabels { door: door(), mode };
            gauge(&self.connections.get_or_create_owned(&labels), count);
        }
        let one = OneDoor { door: door() };
        count(&self.accepted.get_or_create_owned(&one), status.accepted);
        count(&self.auth_failures.get_or_create_owned(&one), view.auth_failures);
        for (reason, closed) in &view.closed {
            let labels = ReasonLabels { door: door(), reason: reason.clone() };
            count(&self.closed.get_or_create_owned(&labels), *closed);
        }
        for (reason, refused) in status.refused.iter().chain(&view.refused_commands) {
            let labels = ReasonLabels { door: door(), reason: reason.clone() };
            count(&self.refused.get_or_create_owned(&labels), *refused);
        }
        for commands in &view.commands {
            let (class, source) = (commands.class.clone(), commands.source.clone());
            let labels = CommandLabels { door: door(), class, source };
            count(&self.commands.get_or_create_owned(&labels), commands.count);
        }
        gauge(&self.parked.get_or_create_owned(&one), view.parked);
        for (direction, bytes) in [("in", view.buffered_in), ("out", view.buffered_out)] {
            let labels = DirectionLabels { door: door(), direction };
            gauge(&self.buffers.get_or_create_owned(&labels), bytes);
        }
        for (direction, bytes) in [("in", view.bytes_in), ("out", view.bytes_out)] {
            let labels = DirectionLabels { door: door(), direction };
            count(&self.bytes.get_or_create_owned(&labels), bytes);
        }
    }
}

fn gauge(gauge: &Gauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// Sets a counter to what its door has counted.
fn count(counter: &Counter, value: u64) {
    counter.inner().store(value, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::view::{DoorCommands, DoorConnections, DoorView, Rates, counts};

    fn status() -> DoorStatus {
        DoorStatus {
            address: "unix:/run/fusebox/redis.sock".into(),
            kind: "redis".into(),
            backend: "redis".into(),
            auth: "peer".into(),
            connections_open: 6,
            connections_max: 10,
            accepted: 9,
            refused: counts([("no_room", 2), ("no_right", 1)]),
            view: DoorView {
                connections: DoorConnections { shared: 3, pinned: 2, parked: 1 },
                closed: counts([("idle", 3)]),
                commands: vec![DoorCommands {
                    class: "read".into(),
                    source: "stale".into(),
                    count: 7,
                }],
                refused_commands: counts([("in_bytes", 4)]),
                auth_failures: 5,
                bytes_in: 100,
                bytes_out: 200,
                parked: 3,
                oldest_parked_ms: Some(1_500),
                buffered_in: 4_096,
                buffered_out: 512,
            },
            per_second: Rates::new(),
        }
    }

    fn page(doors: &[DoorStatus]) -> String {
        let families = DoorFamilies::default();
        let mut registry = Registry::with_prefix("fusebox");
        families.declare(&mut registry);
        for door in doors {
            families.set(door);
            families.overhead(&door.address).observe(Duration::from_micros(20));
        }
        let mut page = String::new();
        encode(&mut page, &registry).expect("a string takes it");
        page
    }

    #[test]
    fn a_page_shows_what_the_doors_show() {
        let page = page(&[status()]);
        let door = "door=\"unix:/run/fusebox/redis.sock\"";
        for (name, labels, value) in [
            ("connections", ",mode=\"shared\"", 3),
            ("connections", ",mode=\"pinned\"", 2),
            ("connections", ",mode=\"parked\"", 1),
            ("accepted_total", "", 9),
            ("closed_total", ",reason=\"idle\"", 3),
            ("commands_total", ",class=\"read\",source=\"stale\"", 7),
            ("refused_total", ",reason=\"no_room\"", 2),
            ("refused_total", ",reason=\"no_right\"", 1),
            ("refused_total", ",reason=\"in_bytes\"", 4),
            ("auth_failures_total", "", 5),
            ("parked", "", 3),
            ("buffer_bytes", ",direction=\"in\"", 4_096),
            ("buffer_bytes", ",direction=\"out\"", 512),
            ("overhead_seconds_count", "", 1),
            ("bytes_total", ",direction=\"in\"", 100),
            ("bytes_total", ",direction=\"out\"", 200),
        ] {
            let line = format!("fusebox_door_{name}{{{door}{labels}}} {value}\n");
            assert!(page.contains(&line), "{line}{page}");
        }
    }

    /// The name of the metric that a series is of.
    fn whole(series: &str) -> &str {
        let ends = ["_bucket", "_sum", "_count"];
        ends.iter().find_map(|end| series.strip_suffix(end)).unwrap_or(series)
    }

    #[test]
    fn the_table_of_metrics_has_every_one_of_doors() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/prometheus/README.md");
        let table = std::fs::read_to_string(path).expect("the table");
        let rows = table.lines().filter_map(|line| line.strip_prefix("| `fusebox_door_"));
        let rows: BTreeSet<&str> = rows.filter_map(|row| Some(row.split_once('`')?.0)).collect();
        let page = page(&[status()]);
        let series = page.lines().filter_map(|line| line.strip_prefix("fusebox_door_"));
        let shown: BTreeSet<&str> =
            series.filter_map(|series| Some(series.split_once('{')?.0)).map(whole).collect();
        assert_eq!(rows, shown);
    }
}
