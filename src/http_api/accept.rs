//! Which format of the metrics a scraper asks for, by its `Accept` header (RFC 9110 §12.5.1).

use axum::http::{HeaderMap, header};
use fusebox_actors::metrics::Format;

const OPEN_METRICS: &str = "application/openmetrics-text";
const PLAIN: &str = "text/plain";

/// `OpenMetrics` if it is asked for by name, in the version that is spoken here, and no less than the
/// Prometheus text; that one for everybody else.
pub(crate) fn metrics_format(headers: &HeaderMap) -> Format {
    let (mut open_metrics, mut plain) = (0.0, 0.0);
    for value in headers.get_all(header::ACCEPT) {
        let Ok(value) = value.to_str() else { continue };
        for range in value.split(',') {
            let Some((kind, weight)) = weighed(range) else { continue };
            let best = if kind == OPEN_METRICS { &mut open_metrics } else { &mut plain };
            *best = weight.max(*best);
        }
    }
    if open_metrics > 0.0 && open_metrics >= plain {
        Format::OpenMetrics
    } else {
        Format::Prometheus
    }
}

/// A media range that names one of the two formats, and its weight; `None` for any other, and for a
/// version of `OpenMetrics` that is not spoken here.
fn weighed(range: &str) -> Option<(&'static str, f32)> {
    let mut parts = range.split(';').map(str::trim);
    let kind = parts.next()?;
    let kind = [OPEN_METRICS, PLAIN].into_iter().find(|name| name.eq_ignore_ascii_case(kind))?;
    let mut weight = 1.0;
    for part in parts {
        let Some((name, value)) = part.split_once('=') else { continue };
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim().trim_matches('"'));
        match name.as_str() {
            "q" => weight = value.parse().ok().filter(|q| (0.0..=1.0).contains(q))?,
            "version" if kind == OPEN_METRICS && value != "1.0.0" => return None,
            _ => {}
        }
    }
    Some((kind, weight))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn asks(accept: &[&str], format: Format) {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(header::ACCEPT, value.parse().unwrap());
        }
        assert_eq!(metrics_format(&headers), format, "{accept:?}");
    }

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it() {
        for accept in [
            // Prometheus 2.42, and 3.
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;\
             q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
             application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;\
             escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            "application/openmetrics-text",
            "Application/OpenMetrics-Text ; Version = \"1.0.0\" ; q=0.1",
        ] {
            asks(&[accept], Format::OpenMetrics);
        }
        asks(&["text/html", "application/openmetrics-text; version=1.0.0"], Format::OpenMetrics);
    }

    #[test]
    fn everybody_else_gets_the_text_that_every_scraper_reads() {
        asks(&[], Format::Prometheus);
        for accept in [
            "",
            "*/*",
            "text/plain",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=high",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;version=1.0.0;q=0.4,text/plain;version=0.0.4;q=0.5",
            "application/openmetrics-texts",
        ] {
            asks(&[accept], Format::Prometheus);
        }
    }
}
