//! Which statement a request or a call has, as far as that is clear.
//!
//! What a server reads begins with the parameter `query`, and goes on with the body. So no statement is known before the
//! body is, but for an INSERT whose rows have begun.

use super::{
    decoded::{self, MOST, PACKED_MOST, Packing},
    http_form::{HttpRequest, Unpacked},
    sql::{self, Insert, Rows, Statement, Verb},
    wire::{Call, Header},
};

/// The beginning of a call's data in which its rows begin, nearly always.
const SHORT: usize = 256;

/// What a server reads a statement from, as far as it is here.
struct Source<'a> {
    text: String,
    /// The place behind the text: its end, or a mark for what is no text.
    sound: usize,
    /// What is no text, and what is behind it.
    behind: &'a [u8],
    /// Whether that is all of it.
    is_whole: bool,
}

impl<'a> Source<'a> {
    /// A parameter `query`, and a body or the beginning of one.
    fn of(query: &str, body: &'a [u8], is_whole: bool) -> Self {
        let begin = text_of(body).0;
        let mut behind = body.get(begin.len()..).unwrap_or_default();
        let flaw = std::str::from_utf8(behind).err();
        if !is_whole && flaw.is_some_and(|flaw| flaw.error_len().is_none()) {
            // A character whose end is still to come.
            behind = &[];
        }
        let mut text = joined(query, begin);
        let sound = text.len();
        if !behind.is_empty() {
            // It is a part of no keyword.
            text.push(char::REPLACEMENT_CHARACTER);
        }
        Self { text, sound, behind, is_whole }
    }

    /// The statement, if it is known: all of it, or at least that it is an INSERT and its rows have begun.
    fn statement(&self) -> Option<Statement> {
        if self.is_whole && self.behind.is_empty() {
            return Some(sql::read(&self.text));
        }
        let is_sound =
            |it: &Statement| matches!(&it.verb, Verb::Insert(insert) if insert.head <= self.sound);
        let found = sql::read_beginning(&self.text).filter(is_sound);
        if found.is_some() || self.behind.is_empty() {
            return found;
        }
        // What is no text may be a part of a comment before the rows: a number of theirs may look like its beginning.
        let mut text = self.text.get(..self.sound).unwrap_or_default().to_owned();
        text.push_str(&String::from_utf8_lossy(self.behind));
        if self.is_whole {
            return Some(sql::read(&text)).filter(is_sound);
        }
        // The end may be a part of a character.
        text.truncate(text.trim_end_matches(char::REPLACEMENT_CHARACTER).len());
        sql::read_beginning(&text).filter(is_sound)
    }
}

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
    let read = Source::of(query, &decoded.bytes, is_whole && decoded.is_all);
    let (begin, statement) = (joined(query, "").len(), read.statement());
    let is_known = statement.is_some();
    let end = match statement.map(|statement| statement.verb) {
        Some(Verb::Insert(insert)) => insert.head,
        Some(_) => read.text.len(),
        None => begin,
    };
    // The rows of an INSERT may begin before that.
    let text = read.text.get(begin..end).unwrap_or_default().to_owned();
    Some(Unpacked { text, is_known })
}

/// Whether the statement may be known once more of a packed body is here. Such a body is then unpacked again.
pub(crate) fn is_to_be_found(request: &HttpRequest) -> bool {
    let head = &request.head;
    let is_unknown = head.unpacked.as_ref().is_some_and(|unpacked| !unpacked.is_known);
    is_unknown && !head.is_whole && request.body.len() < PACKED_MOST
}

/// The statement, if it is known: all of it, or at least that it is an INSERT; and its text. `None` also if parameters
/// are not text: their bytes may be anything to the server.
pub(super) fn statement(request: &HttpRequest) -> Option<(Statement, String)> {
    let HttpRequest { head, body } = request;
    if !head.is_clear {
        return None;
    }
    let text = if head.is_plain {
        let beginning = body.get(..MOST).unwrap_or(body);
        Source::of(&head.query, beginning, head.is_whole && beginning.len() == body.len())
    } else if let Some(unpacked) = &head.unpacked {
        Source::of(&head.query, unpacked.text.as_bytes(), unpacked.is_known)
    } else {
        Source::of(&head.query, &[], head.is_whole && body.is_empty())
    };
    if text.text.trim_ascii().is_empty() {
        return None;
    }
    text.statement().map(|statement| (statement, text.text))
}

/// The statement of a call. Its data follows the statement on the next line, and a server reads on there.
pub(crate) fn of_call(call: &Call) -> Statement {
    let Call { header, data } = call;
    let alone = sql::read(&header.query);
    let Verb::Insert(Insert { rows, table, .. }) = &alone.verb else { return alone };
    // Of a body that is kept as it is, the statement is looked for in it.
    let has_data = !data.is_empty() && header.raw.is_none() && *rows != Rows::Selected;
    let is_begun = || *rows == Rows::Inline && sql::read_beginning(&header.query).is_some();
    if !has_data || is_begun() {
        return alone;
    }
    let query = sent(header, &alone);
    let mut texts = [SHORT, MOST].into_iter().map(|most| {
        let beginning = data.get(..most).unwrap_or(data);
        Source::of(&query, beginning, beginning.len() == data.len())
    });
    let found = texts.find_map(|text| text.statement());
    match found {
        Some(Statement { verb: Verb::Insert(found), .. })
            if found.rows != Rows::Selected && found.table == *table =>
        {
            alone
        }
        // Its data makes another insert of it.
        Some(Statement { verb: Verb::Insert(_), .. }) | None => sql::unknown(&query),
        Some(found) => found,
    }
}

/// The statement of a call as it is sent: with the format of the rows that follow it.
pub(crate) fn sent(header: &Header, statement: &Statement) -> String {
    let mut query = header.query.clone();
    if let (Verb::Insert(Insert { rows: Rows::FollowUnnamed, .. }), Some(format)) =
        (&statement.verb, &header.format)
    {
        query.truncate(query.trim_ascii_end().trim_end_matches(';').len());
        // On a line of its own: the statement may end in a comment.
        query.push_str("\nFORMAT ");
        query.push_str(format);
    }
    query
}

/// The statement without its rows.
pub(super) fn without_rows(text: &str, end: usize) -> String {
    text.get(..end).unwrap_or(text).trim_ascii().to_owned()
}

/// Whether the statement of a body that is kept as it is is the one in its header.
pub(super) fn is_sound(call: &Call) -> bool {
    let Some(raw) = &call.header.raw else { return true };
    let found;
    let text = if raw.packing == Packing::default() {
        let beginning = call.data.get(..MOST).unwrap_or(&call.data);
        Source::of(&raw.query, beginning, beginning.len() == call.data.len())
    } else {
        let unpacked = unpacked(&raw.query, raw.packing, (&call.data, true));
        found = unpacked.unwrap_or(Unpacked { text: String::new(), is_known: true });
        Source::of(&raw.query, found.text.as_bytes(), found.is_known)
    };
    let verb = text.statement().map(|statement| statement.verb);
    let Some(Verb::Insert(insert)) = verb else { return false };
    without_rows(&text.text, insert.head) == call.header.query
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
