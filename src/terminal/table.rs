//! Tables, times and numbers for people.

use std::time::Duration;

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use serde_json::Value;

/// Rows under heads: framed and coloured on a terminal, else columns two spaces apart.
pub(crate) fn table(heads: &[&str], rows: &[Vec<String>], terminal: bool) -> String {
    if terminal { framed(heads, rows) } else { plain(heads, rows) }
}

/// The width of the terminal; `None` if there is none.
pub(crate) fn terminal_width() -> Option<usize> {
    Table::new().width().map(usize::from)
}

fn framed(heads: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(heads.iter().map(|head| Cell::new(head).add_attribute(Attribute::Bold)));
    for row in rows {
        table.add_row(row.iter().map(|text| match colour(text) {
            Some(colour) => Cell::new(text).fg(colour),
            None => Cell::new(text),
        }));
    }
    format!("{table}\n")
}

/// The colour of a state's word.
fn colour(text: &str) -> Option<Color> {
    match text.split_whitespace().next()? {
        "CLOSED" | "HEALTHY" => Some(Color::Green),
        "HALF_OPEN" | "OPENING" | "DEGRADED" => Some(Color::Yellow),
        "OPEN" | "OFFLINE" | "CRITICAL" | "EMERGENCY" => Some(Color::Red),
        _ => None,
    }
}

fn plain(heads: &[&str], rows: &[Vec<String>]) -> String {
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    let mut widths: Vec<usize> = heads.iter().map(|head| head.chars().count()).collect();
    for row in rows {
        for (width, text) in widths.iter_mut().zip(row) {
            *width = (*width).max(text.chars().count());
        }
    }
    let mut out = String::new();
    for row in std::iter::once(&heads).chain(rows) {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(text, width)| format!("{text:<width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// The text at a path of keys, such as `breaker.state`, fit to be shown; empty if there is none.
pub(crate) fn text(value: &Value, path: &str) -> String {
    let found = path.split('.').try_fold(value, |value, key| value.get(key));
    match found {
        Some(Value::String(text)) => tame(text),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

/// `text` on one line and without what a terminal would obey: a reason or a message of a backend is
/// whatever somebody made it.
pub(crate) fn tame(text: &str) -> String {
    let mut tame = String::with_capacity(text.len());
    for letter in text.chars() {
        if is_order(letter) {
            tame.extend(letter.escape_default());
        } else {
            tame.push(letter);
        }
    }
    tame
}

/// Whether a terminal or a reader of lines would take `letter` for more than a letter.
fn is_order(letter: char) -> bool {
    let turns = matches!(letter, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    letter.is_control() || turns
}

/// A duration of milliseconds in its two greatest units: `3m 2s`.
pub(crate) fn ago(millis: u64) -> String {
    let whole = if millis < 1_000 { millis } else { millis / 1_000 * 1_000 };
    let text = humantime::format_duration(Duration::from_millis(whole)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A number as people write it: `12,345`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_in_a_pipe_is_plain_columns() {
        let rows = vec![
            vec!["redis".into(), "CLOSED".into(), "12".into()],
            vec!["sessions".into(), "OPEN".into(), String::new()],
        ];
        assert_eq!(
            table(&["BACKEND", "STATE", "CALLS"], &rows, false),
            "BACKEND   STATE   CALLS\nredis     CLOSED  12\nsessions  OPEN\n"
        );
        assert!(table(&["BACKEND"], &rows, true).contains('│'));
    }

    #[test]
    fn what_is_shown_gives_a_terminal_no_orders() {
        let value = json!({ "a": "x\n\u{1b}[2Jy\u{9b}\u{202e}z ü" });
        assert_eq!(text(&value, "a"), "x\\n\\u{1b}[2Jy\\u{9b}\\u{202e}z ü");
    }

    #[test]
    fn values_are_found_and_times_are_written() {
        let value = json!({ "a": { "c": "x" } });
        assert_eq!(text(&value, "a.c"), "x");
        assert_eq!(text(&value, "a.z"), "");
        assert_eq!(
            (ago(182_900), ago(20), ago(90_061_000)),
            ("3m 2s".into(), "20ms".into(), "1day 1h".into())
        );
    }

    #[test]
    fn thousands_are_set_apart() {
        for (number, expected) in
            [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345_678, "12,345,678")]
        {
            assert_eq!(thousands(number), expected);
        }
    }
}
