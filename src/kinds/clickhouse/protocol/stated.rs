//! Which statement a request has, as far as that is clear.

use super::{
    decoded::{self, MOST, Packing},
    http_form::{HttpRequest, Unpacked},
    sql::{self, Statement, Verb},
    wire::Call,
};

/// What is known of the statement in a compressed body, which is behind the parameter `query`.
pub(crate) fn unpacked(
    query: &str,
    packing: Packing,
    (body, is_whole): (&[u8], bool),
) -> Option<Unpacked> {
    if body.is_empty() {
        return None;
    }
    let decoded = decoded::beginning(packing, body);
    let (text, is_text) = text_of(&decoded.bytes);
    let before = joined(query, "");
    if let Verb::Insert(insert) = sql::read(&joined(query, text)).verb {
        let end = insert.head.saturating_sub(before.len());
        let text = text.get(..end).unwrap_or(text).to_owned();
        return Some(Unpacked { text, is_all: false });
    }
    let is_all = is_text && is_whole && decoded.is_all;
    Some(Unpacked { text: if is_all { text.to_owned() } else { String::new() }, is_all })
}

/// The statement, if it is known: all of it, or at least that it is an INSERT; and its text. `None` also if parameters
/// are not text: their bytes may be anything to the server.
pub(super) fn statement(request: &HttpRequest) -> Option<(Statement, String)> {
    let HttpRequest { head, body } = request;
    if !head.is_clear {
        return None;
    }
    let (text, is_all) = if head.is_plain {
        let beginning = body.get(..decoded::MOST).unwrap_or(body);
        // What follows an INSERT may be bytes.
        let (text, is_text) = text_of(beginning);
        let is_all = is_text && head.is_whole && beginning.len() == body.len();
        (joined(&head.query, text), is_all)
    } else if let Some(unpacked) = &head.unpacked {
        (joined(&head.query, &unpacked.text), unpacked.is_all)
    } else {
        (head.query.clone(), head.is_whole && body.is_empty())
    };
    if text.trim_ascii().is_empty() {
        return None;
    }
    let statement = sql::read(&text);
    (is_all || matches!(statement.verb, Verb::Insert(_))).then_some((statement, text))
}

/// The statement without its rows.
pub(super) fn without_rows(text: &str, end: usize) -> String {
    text.get(..end).unwrap_or(text).trim_ascii().to_owned()
}

/// Whether the statement of a body that is kept as it is is the one in its header.
pub(super) fn is_sound(call: &Call) -> bool {
    let Some(raw) = &call.header.raw else { return true };
    let text = if raw.packing == Packing::default() {
        let beginning = call.data.get(..MOST).unwrap_or(&call.data);
        joined(&raw.query, text_of(beginning).0)
    } else {
        let unpacked = unpacked(&raw.query, raw.packing, (&call.data, true));
        joined(&raw.query, unpacked.map_or(String::new(), |it| it.text).as_str())
    };
    let Verb::Insert(insert) = sql::read(&text).verb else { return false };
    without_rows(&text, insert.head) == call.header.query
}

/// The text at the beginning of some bytes, and whether they are nothing else.
pub(super) fn text_of(bytes: &[u8]) -> (&str, bool) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text, true),
        Err(error) => {
            let text = bytes.get(..error.valid_up_to()).unwrap_or_default();
            (std::str::from_utf8(text).unwrap_or_default(), false)
        }
    }
}

/// The statement of a parameter `query` and a body: the server does the same.
pub(super) fn joined(query: &str, body: &str) -> String {
    format!("{query}\n{body}")
}
