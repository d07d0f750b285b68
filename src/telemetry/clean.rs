//! What may be in the log: one line an event, of bounded length, without what a terminal would obey.

/// The longest line, its end not counted.
const LINE_MAX: usize = 8 << 10;
/// The longest text in a JSON object that would be longer than a line.
pub(super) const TEXT_MAX: usize = 1 << 10;

/// Whether a reader of lines, or a terminal, would take `letter` for more than a letter.
fn is_order(letter: char) -> bool {
    let turns = matches!(letter, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    letter.is_control() || turns
}

/// `event` without control characters (a newline in a value must not look like another event), cut
/// to a bounded length, with one newline at its end.
pub(super) fn clean(event: &[u8]) -> String {
    let text = String::from_utf8_lossy(event);
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let mut line = String::with_capacity(text.len().min(LINE_MAX) + 1);
    for letter in text.chars() {
        if line.len() >= LINE_MAX {
            line.push_str("… (cut)");
            break;
        }
        if is_order(letter) {
            line.extend(letter.escape_default());
        } else {
            line.push(letter);
        }
    }
    line.push('\n');
    line
}

/// The same of an object in JSON, which stays one: its texts are cut, and letters are escaped as JSON does.
pub(super) fn clean_json(event: &[u8]) -> String {
    let text = String::from_utf8_lossy(event);
    let text = text.trim_end_matches('\n');
    let cut = (text.len() > LINE_MAX).then(|| shortened(text));
    let mut line = String::with_capacity(text.len().min(LINE_MAX) + 1);
    for letter in cut.as_deref().unwrap_or(text).chars() {
        if is_order(letter) {
            line.extend(["\\u", &format!("{:04x}", u32::from(letter))]);
        } else {
            line.push(letter);
        }
    }
    line.push('\n');
    line
}

/// An object that is too long with its texts cut, and only the first of its fields if even that is not
/// enough.
fn shortened(text: &str) -> String {
    let Ok(serde_json::Value::Object(mut fields)) = serde_json::from_str(text) else {
        return serde_json::json!({ "message": "an event that is not an object" }).to_string();
    };
    for value in fields.values_mut() {
        let mut told = match value {
            serde_json::Value::String(text) => std::mem::take(text),
            serde_json::Value::Object(_) | serde_json::Value::Array(_) => value.to_string(),
            _ => continue,
        };
        if let Some((at, _)) = told.char_indices().nth(TEXT_MAX) {
            told.truncate(at);
            told.push_str("… (cut)");
        }
        *value = told.into();
    }
    let mut left = LINE_MAX * 2;
    fields.retain(|name, value| {
        let size = name.len() + value.as_str().map_or(32, str::len);
        let fits = size <= left;
        left = left.saturating_sub(size);
        fits
    });
    serde_json::Value::Object(fields).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_clean_line_of_bounded_length() {
        assert_eq!(clean(b"INFO key=a\nb\x1b[31m\n"), "INFO key=a\\nb\\u{1b}[31m\n");
        assert_eq!(clean("Größe \u{2028} ok\n".as_bytes()), "Größe \\u{2028} ok\n");
        let long = clean(&vec![b'x'; 100_000]);
        assert!(long.len() < LINE_MAX + 32 && long.ends_with("… (cut)\n"));
    }

    #[test]
    fn an_object_stays_one_however_long_it_is() {
        let event = "{\"k\":\"a\u{9b}b\u{2028}ü\"}\n";
        assert_eq!(clean_json(event.as_bytes()), "{\"k\":\"a\\u009bb\\u2028ü\"}\n");
        let long = "x\n".repeat(1 << 20);
        let event =
            serde_json::json!({ "level": "INFO", "key": long, "span": { "name": long }, "n": 3 });
        let line = clean_json(format!("{event}\n").as_bytes());
        assert!(line.len() < LINE_MAX && line.lines().count() == 1, "{}", line.len());
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&read["level"], &read["n"]), (&"INFO".into(), &3.into()));
        assert!(read["key"].as_str().unwrap().ends_with("… (cut)"));
        let many: serde_json::Map<_, _> =
            (0..10_000).map(|number| (number.to_string(), "x".repeat(900).into())).collect();
        let line = clean_json(serde_json::Value::Object(many).to_string().as_bytes());
        assert!(line.len() < 4 * LINE_MAX, "{}", line.len());
        assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok());
    }
}
