//! What the stand-in makes of a statement: the connector's own questions, word by word, an INSERT of rows,
//! and a SELECT of counts and sums. Everything else is an exception.

use serde_json::{Map, Value, json};

use super::table::{DATABASE, NAME, Row, Table, WINDOW};

/// What its version is said to be: one that knows every setting below.
pub(super) const VERSION: &str = "25.8.1.1";
/// The settings that a server of that version knows, of those that the connector asks for.
const SETTINGS: [&str; 7] = [
    "insert_deduplication_token",
    "insert_deduplicate",
    "async_insert",
    "distributed_foreground_insert",
    "deduplicate_blocks_in_dependent_materialized_views",
    "cancel_http_readonly_queries_on_client_close",
    "http_write_exception_in_output_format",
];

/// The table's.
const UUID: &str = "6a1e2f5c-0c1b-4b7e-9d3a-5f0e4c2b1a00";

/// What came with a statement, beside it.
#[derive(Clone, Debug, Default)]
pub(super) struct Given {
    pub(super) database: Option<String>,
    pub(super) format: Option<String>,
    pub(super) token: Option<String>,
}

/// A result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) format: String,
    pub(super) body: String,
    /// The rows that an INSERT brought.
    pub(super) written: Option<usize>,
}

/// A refusal in the server's form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exception {
    pub(super) code: u32,
    name: &'static str,
    what: String,
}

impl Exception {
    fn new(code: u32, name: &'static str, what: impl Into<String>) -> Self {
        Self { code, name, what: what.into() }
    }

    fn syntax(text: &str) -> Self {
        let begin: String = text.chars().take(80).collect();
        let what = format!("Syntax error: this is only a stand-in, and does not know: {begin}");
        Self::new(62, "SYNTAX_ERROR", what)
    }

    fn no_table(name: &str) -> Self {
        Self::new(60, "UNKNOWN_TABLE", format!("Unknown table expression identifier '{name}'"))
    }

    /// The body of its response.
    pub(super) fn text(&self) -> String {
        let Self { code, name, what } = self;
        format!("Code: {code}. DB::Exception: {what}. ({name}) (version {VERSION} (stand-in))\n")
    }

    /// The status of its response.
    pub(super) fn status(&self) -> u16 {
        if matches!(self.code, 47 | 60 | 73) { 404 } else { 400 }
    }
}

/// Runs the statement that `text` begins with; the rows of an INSERT follow it.
pub(super) fn run(text: &str, given: &Given, table: &mut Table) -> Result<Answer, Exception> {
    let first = text.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    match first.as_str() {
        "INSERT" => insert(text, given, table),
        "SELECT" => select(text, given, table),
        "KILL" if text.starts_with("KILL QUERY WHERE query_id") => Ok(lines(String::new())),
        "" => Err(Exception::new(62, "SYNTAX_ERROR", "Empty query")),
        _ => Err(Exception::syntax(text)),
    }
}

/// An answer to one of the connector's questions.
fn lines(body: String) -> Answer {
    Answer { format: "TabSeparated".to_owned(), body, written: None }
}

fn insert(text: &str, given: &Given, table: &mut Table) -> Result<Answer, Exception> {
    let syntax = || Exception::syntax(text);
    let (statement, data) = text.split_once('\n').unwrap_or((text, ""));
    let words: Vec<&str> = statement.split_whitespace().collect();
    let [_, into, name, format, rows] = words.as_slice() else { return Err(syntax()) };
    if !into.eq_ignore_ascii_case("INTO") || !format.eq_ignore_ascii_case("FORMAT") {
        return Err(syntax());
    }
    check_table(name, given)?;
    if *rows != "JSONEachRow" {
        return Err(Exception::new(73, "UNKNOWN_FORMAT", format!("Unknown format {rows}")));
    }
    let parsed: Result<Vec<Row>, _> =
        serde_json::Deserializer::from_str(data).into_iter().collect();
    let rows = parsed.map_err(|error| {
        Exception::new(117, "INCORRECT_DATA", format!("Cannot parse JSON object: {error}"))
    })?;
    table.insert(given.token.as_deref(), &rows);
    Ok(Answer { format: String::new(), body: String::new(), written: Some(rows.len()) })
}

fn check_table(name: &str, given: &Given) -> Result<(), Exception> {
    let (database, table) = match name.split_once('.') {
        Some((database, table)) => (database, table),
        None => (given.database.as_deref().unwrap_or(DATABASE), name),
    };
    if (database, table) == (DATABASE, NAME) { Ok(()) } else { Err(Exception::no_table(name)) }
}

fn select(text: &str, given: &Given, table: &Table) -> Result<Answer, Exception> {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (query, format) = match text.rsplit_once(" FORMAT ") {
        Some((query, format)) => (query, Some(format)),
        None => (text.trim_end_matches(';'), None),
    };
    if query.starts_with("SELECT concat('setting ', name) FROM system.settings") {
        return Ok(lines(settings(query)));
    }
    if let Some(answer) = of_table(query, table) {
        return Ok(lines(answer));
    }
    if query.starts_with("SELECT query_id, elapsed FROM system.processes") {
        // One statement is over before the next begins.
        return Ok(lines(String::new()));
    }
    let format = format.or(given.format.as_deref()).unwrap_or("TabSeparated");
    let columns = query.get("SELECT ".len()..).unwrap_or_default();
    let columns = match columns.split_once(" FROM ") {
        None if columns == "1" => vec![("1".to_owned(), "UInt8", 1)],
        None => return Err(Exception::syntax(&text)),
        Some((columns, name)) => {
            check_table(name, given)?;
            let columns = columns.split(',').map(|column| of_column(column.trim(), table));
            columns.collect::<Result<_, _>>()?
        }
    };
    shown(&columns, format)
}

type Column = (String, &'static str, u64);

fn of_column(text: &str, table: &Table) -> Result<Column, Exception> {
    let (expression, name) = text.split_once(" AS ").unwrap_or((text, text));
    let rows = table.rows();
    let value = match expression {
        "count()" => u64::try_from(rows.len()).unwrap_or(u64::MAX),
        "sum(id)" => rows.iter().fold(0, |sum: u64, row| sum.wrapping_add(row.id)),
        "sum(amount)" => rows.iter().fold(0, |sum: u64, row| sum.wrapping_add(row.amount)),
        _ => return Err(Exception::syntax(text)),
    };
    Ok((name.to_owned(), "UInt64", value))
}

fn shown(columns: &[Column], format: &str) -> Result<Answer, Exception> {
    let row: Map<String, Value> =
        columns.iter().map(|(name, _, value)| (name.clone(), json!(value))).collect();
    let body = match format {
        "TabSeparated" => {
            let values: Vec<String> =
                columns.iter().map(|(_, _, value)| value.to_string()).collect();
            values.join("\t") + "\n"
        }
        "JSONEachRow" => format!("{}\n", Value::Object(row)),
        "JSON" => {
            let meta: Vec<Value> = columns
                .iter()
                .map(|(name, kind, _)| json!({ "name": name, "type": kind }))
                .collect();
            format!("{}\n", json!({ "meta": meta, "data": [row], "rows": 1 }))
        }
        _ => {
            return Err(Exception::new(73, "UNKNOWN_FORMAT", format!("Unknown format {format}")));
        }
    };
    Ok(Answer { format: format.to_owned(), body, written: None })
}

/// Which of the settings that are asked for are known, and who asks.
fn settings(question: &str) -> String {
    let known = SETTINGS.iter().filter(|name| question.contains(&format!("'{name}'")));
    let known: Vec<String> = known.map(|name| format!("setting {name}")).collect();
    format!("{}\nversion {VERSION}\nreadonly 0\n", known.join("\n"))
}

/// What the connector asks of the table that an insert reaches: what it is, what it remembers, and how many blocks
/// it has got.
fn of_table(question: &str, table: &Table) -> Option<String> {
    let is_ours = question.contains(&format!("('{DATABASE}', '{NAME}')"));
    let row = |row: Value| Some(if is_ours { format!("{row}\n") } else { String::new() });
    if question.starts_with("SELECT database, name, toString(uuid)") {
        let full = format!(
            "MergeTree ORDER BY id SETTINGS non_replicated_deduplication_window = {WINDOW}"
        );
        return row(json!([DATABASE, NAME, UUID, "MergeTree", full, "1", "", [], []]));
    }
    if question.starts_with("SELECT database, table, toString(max(max_block_number))") {
        return row(json!([DATABASE, NAME, table.blocks().to_string(), 1]));
    }
    let defaults = "plain\tnon_replicated_deduplication_window\t0\n";
    question.starts_with("SELECT 'plain', name").then(|| defaults.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(table: &mut Table, text: &str) -> Result<String, u32> {
        run(text, &Given::default(), table).map(|answer| answer.body).map_err(|error| error.code)
    }

    #[test]
    fn rows_are_counted_and_summed_in_the_format_that_is_asked_for() {
        let mut table = Table::default();
        let rows = "INSERT INTO visits FORMAT JSONEachRow\n{\"id\":1,\"amount\":2}\n{\"id\":2,\"amount\":3}\n";
        assert_eq!(say(&mut table, rows), Ok(String::new()));
        for (query, expected) in [
            ("SELECT 1", "1\n"),
            ("SELECT count() FROM visits", "2\n"),
            ("SELECT count() AS n, sum(amount) FROM default.visits", "2\t5\n"),
            ("SELECT count() AS n FROM visits FORMAT JSONEachRow", "{\"n\":2}\n"),
            (
                "SELECT count() AS n FROM visits FORMAT JSON",
                "{\"data\":[{\"n\":2}],\"meta\":[{\"name\":\"n\",\"type\":\"UInt64\"}],\"rows\":1}\n",
            ),
        ] {
            assert_eq!(say(&mut table, query).as_deref(), Ok(expected), "{query}");
        }
    }

    #[test]
    fn what_it_does_not_know_it_refuses_and_changes_nothing() {
        let mut table = Table::default();
        for (text, code) in [
            ("", 62),
            ("SELECT", 62),
            ("SELECT max(id) FROM visits", 62),
            ("SELECT count() FROM visit", 60),
            ("SELECT count() FROM other.visits", 60),
            ("SELECT count() FROM visits FORMAT Native", 73),
            ("DROP TABLE visits", 62),
            ("INSERT INTO visits VALUES (1, 2)", 62),
            ("INSERT INTO other FORMAT JSONEachRow\n{\"id\":1}", 60),
            ("INSERT INTO visits FORMAT CSV\n1,2", 73),
            ("INSERT INTO visits FORMAT JSONEachRow\n{\"id\":1}\n{\"id\":\"x\"}", 117),
            ("INSERT INTO visits FORMAT JSONEachRow\n{\"id\":1,\"other\":1}", 117),
        ] {
            assert_eq!(say(&mut table, text), Err(code), "{text}");
        }
        assert_eq!(table.rows(), []);
        let error = run("DROP", &Given::default(), &mut table).unwrap_err();
        assert!(error.text().starts_with("Code: 62. DB::Exception: Syntax error: "));
        assert!(error.text().ends_with("(SYNTAX_ERROR) (version 25.8.1.1 (stand-in))\n"));
    }
}
