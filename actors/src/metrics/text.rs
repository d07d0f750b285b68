//! The two text formats of the page.
//!
//! It is written as `OpenMetrics` and, for who did not ask for that, turned into the older Prometheus
//! text format 0.0.4, in which a counter's name includes `_total`, there are no exemplars, and the words
//! for some types are others.

/// A format of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4: understood by every scraper.
    Prometheus,
    /// `OpenMetrics` text 1.0.0: with exemplars.
    OpenMetrics,
}

impl Format {
    /// What the page says of itself.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Turns `OpenMetrics` text into Prometheus text 0.0.4.
pub(super) fn to_prometheus(page: &str) -> String {
    let mut text = String::with_capacity(page.len() + page.len() / 16);
    let mut help = "";
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            // Written with the type, which says what the metric is called here.
            help = rest.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            let said = ["# HELP ", name, suffix, " ", help, "\n"];
            let typed = ["# TYPE ", name, suffix, " ", kind, "\n"];
            text.extend(said.into_iter().chain(typed));
        } else if !line.starts_with('#') {
            text.push_str(without_exemplar(line));
            text.push('\n');
        }
    }
    text
}

/// A sample without what follows its value.
fn without_exemplar(sample: &str) -> &str {
    if !sample.contains('#') {
        return sample;
    }
    // A `#` in a label's value is part of it.
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in sample.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            b'#' if !quoted => return sample.get(..at).unwrap_or(sample).trim_end(),
            _ => {}
        }
    }
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_becomes_prometheus_text() {
        let page = concat!(
            "# HELP f_calls Calls.\n# TYPE f_calls counter\nf_calls_total{a=\"b # {\\\" # \"} 3\n",
            "# HELP f_took_seconds Time.\n# TYPE f_took_seconds histogram\n",
            "# UNIT f_took_seconds seconds\nf_took_seconds_sum{a=\"b\"} 0.2\n",
            "f_took_seconds_bucket{le=\"0.1\",a=\"#\"} 1 # {trace_id=\"4b\"} 0.05 1700000000.5\n",
            "# HELP f_build Version.\n# TYPE f_build info\nf_build_info{version=\"1\"} 1\n",
            "# HELP f_depth Depth.\n# TYPE f_depth gauge\nf_depth 7\n# EOF\n",
        );
        let text = concat!(
            "# HELP f_calls_total Calls.\n# TYPE f_calls_total counter\n",
            "f_calls_total{a=\"b # {\\\" # \"} 3\n",
            "# HELP f_took_seconds Time.\n# TYPE f_took_seconds histogram\n",
            "f_took_seconds_sum{a=\"b\"} 0.2\nf_took_seconds_bucket{le=\"0.1\",a=\"#\"} 1\n",
            "# HELP f_build_info Version.\n# TYPE f_build_info gauge\nf_build_info{version=\"1\"} 1\n",
            "# HELP f_depth Depth.\n# TYPE f_depth gauge\nf_depth 7\n",
        );
        assert_eq!(to_prometheus(page), text);
    }
}
