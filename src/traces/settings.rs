//! What the environment says of traces.

use std::{path::PathBuf, time::Duration};

use super::sampler::Sampler;
use crate::config::Environment;

/// The transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP over HTTP, as protocol buffers.
    Http,
}

impl Protocol {
    /// The name by the specification.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http/protobuf",
        }
    }
}

/// How spans are gathered; the defaults are the specification's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Batching {
    /// Records that wait at most.
    pub(super) queue_max: usize,
    /// Spans of one export at most.
    pub(super) batch_max: usize,
    /// How long a span waits at most.
    pub(super) delay: Duration,
    /// How long an export may take: what the exporter's variable and the batching's both allow.
    pub(super) timeout: Duration,
}

/// The destination of traces, and which ones go there.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    /// The collector's address, as it was named.
    pub(super) endpoint: String,
    /// How to speak to it.
    pub(super) protocol: Protocol,
    /// An authority beside the system's.
    pub(super) certificate: Option<PathBuf>,
    /// Which calls are recorded from the start.
    pub(super) sampler: Sampler,
    /// How they are gathered.
    pub(super) batching: Batching,
    /// The service's name if the environment leaves it open.
    pub(super) service_name: Option<&'static str>,
}

impl Settings {
    /// Reads them, with what is wrong and was passed over. `None` if no collector is named, or traces
    /// are turned off.
    pub(super) fn of(env: &Environment) -> Option<(Self, Vec<String>)> {
        let mut warnings = Vec::new();
        let disabled =
            env.get("OTEL_SDK_DISABLED").is_some_and(|it| it.eq_ignore_ascii_case("true"));
        let endpoint = signal(env, "ENDPOINT")?.to_owned();
        match env.get("OTEL_TRACES_EXPORTER") {
            None | Some("otlp") => {}
            Some("none") => return None,
            Some(other) => {
                warnings.push(format!(
                    "OTEL_TRACES_EXPORTER must be otlp or none, got {other:?}: fusebox uses otlp"
                ));
            }
        }
        if disabled {
            return None;
        }
        let protocol = match signal(env, "PROTOCOL") {
            Some("grpc") => Protocol::Grpc,
            Some("http/protobuf") => Protocol::Http,
            Some(other) => {
                warnings.push(format!(
                    "OTEL_EXPORTER_OTLP_PROTOCOL must be grpc or http/protobuf, got {other:?}: fusebox uses \
                     http/protobuf"
                ));
                Protocol::Http
            }
            None => {
                if endpoint.trim_end_matches('/').ends_with(":4317") {
                    warnings.push(format!(
                        "fusebox uses http/protobuf for {endpoint}, but port 4317 is usually for gRPC: set \
                         OTEL_EXPORTER_OTLP_PROTOCOL=grpc"
                    ));
                }
                Protocol::Http
            }
        };
        let named = env.get("OTEL_SERVICE_NAME").is_some()
            || env.get("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|it| it.contains("service.name="));
        let settings = Self {
            endpoint,
            protocol,
            certificate: signal(env, "CERTIFICATE").map(PathBuf::from),
            sampler: sampler(env, &mut warnings),
            batching: batching(env, &mut warnings),
            service_name: (!named).then_some("fusebox"),
        };
        Some((settings, warnings))
    }
}

/// The variable of the traces' exporter, or else of all exporters.
fn signal<'a>(env: &'a Environment, name: &str) -> Option<&'a str> {
    env.get(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
        .or_else(|| env.get(&format!("OTEL_EXPORTER_OTLP_{name}")))
}

fn sampler(env: &Environment, warnings: &mut Vec<String>) -> Sampler {
    let Some(name) = env.get("OTEL_TRACES_SAMPLER") else { return Sampler::default() };
    match Sampler::named(name, env.get("OTEL_TRACES_SAMPLER_ARG")) {
        Some(Ok(sampler)) => sampler,
        Some(Err((sampler, why))) => {
            warnings.push(why);
            sampler
        }
        None => {
            warnings.push(format!(
                "OTEL_TRACES_SAMPLER must be always_on, always_off or traceidratio, or one of them after parentbased_, \
                 got {name:?}: fusebox uses parentbased_always_on"
            ));
            Sampler::default()
        }
    }
}

fn batching(env: &Environment, warnings: &mut Vec<String>) -> Batching {
    let mut read = |name: &str, usual: u64| match env.get(name).map(|text| (text, text.parse())) {
        None => usual,
        Some((_, Ok(number))) if (1..=3_600_000).contains(&number) => number,
        Some((text, _)) => {
            warnings.push(format!(
                "{name} must be a number from 1 to 3600000, got {text:?}: fusebox uses {usual}"
            ));
            usual
        }
    };
    let export = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];
    let export = export.into_iter().find(|name| env.get(name).is_some());
    let export = export.map_or(10_000, |name| read(name, 10_000));
    let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let queue_max = size(read("OTEL_BSP_MAX_QUEUE_SIZE", 2_048));
    Batching {
        queue_max,
        batch_max: size(read("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)).min(queue_max),
        delay: Duration::from_millis(read("OTEL_BSP_SCHEDULE_DELAY", 5_000)),
        timeout: Duration::from_millis(read("OTEL_BSP_EXPORT_TIMEOUT", 30_000).min(export)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");

    fn of(pairs: &[(&str, &str)]) -> Option<(Settings, Vec<String>)> {
        Settings::of(&Environment::of(pairs))
    }

    #[test]
    fn traces_are_off_unless_a_collector_is_named() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")]), None);
        assert_eq!(of(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]), None);
        let (settings, warnings) = of(&[ENDPOINT]).unwrap();
        assert_eq!((settings.protocol, settings.service_name), (Protocol::Http, Some("fusebox")));
        assert_eq!(settings.sampler, Sampler::default());
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    #[test]
    fn an_export_takes_ten_seconds_or_what_its_variables_allow() {
        let timeout = |pairs: &[(&str, &str)]| {
            let pairs = [&[ENDPOINT], pairs].concat();
            of(&pairs).unwrap().0.batching.timeout.as_millis()
        };
        assert_eq!(timeout(&[]), 10_000);
        assert_eq!(timeout(&[("OTEL_EXPORTER_OTLP_TIMEOUT", "700")]), 700);
        let both =
            [("OTEL_EXPORTER_OTLP_TIMEOUT", "700"), ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "900")];
        assert_eq!(timeout(&both), 900);
        let longer =
            [("OTEL_EXPORTER_OTLP_TIMEOUT", "60000"), ("OTEL_BSP_EXPORT_TIMEOUT", "20000")];
        assert_eq!(timeout(&longer), 20_000);
    }

    #[test]
    fn what_is_said_of_traces_goes_before_what_is_said_of_all() {
        let (settings, _) = of(&[
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://collector:4317"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine,a=b"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
        ])
        .unwrap();
        assert_eq!(settings.endpoint, "https://collector:4317");
        assert_eq!((settings.protocol, settings.service_name), (Protocol::Grpc, None));
        assert_eq!(settings.certificate, Some("/ca.pem".into()));
        assert_eq!((settings.batching.queue_max, settings.batching.batch_max), (100, 100));
    }

    #[test]
    fn what_is_wrong_is_named_and_passed_over() {
        let (settings, warnings) = of(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317/"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
        ])
        .unwrap();
        assert_eq!(settings.sampler, Sampler::default());
        let told = warnings.join("\n");
        for part in ["\"sometimes\"", "\"zipkin\"", "\"soon\"", "PROTOCOL=grpc"] {
            assert!(told.contains(part), "{told}");
        }
    }
}
