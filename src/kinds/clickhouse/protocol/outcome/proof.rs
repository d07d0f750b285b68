//! Whether an exception proves that a write wrote nothing.
//!
//! A server reads the rows of an insert, forms blocks of them, and hands each block to the table and to the views
//! that the table feeds; a block over several partitions becomes several parts. Whatever is thrown after the first
//! block was handed on proves nothing, whichever code it has: disk full, too many parts, a limit of time, memory
//! or quota, a row that cannot be parsed, a view that throws, a shard that refuses. There are three proofs:
//!
//! 1. **Thrown before the rows are read.** A code of [`BEFORE_ROWS`], in a message that does not say that it came
//!    later ([`LATER`]), with the head of the answer. Also the status by which a proxy asks who we are.
//! 2. **No block was handed on.** The answer's `X-ClickHouse-Summary` counts the rows of each block before the table
//!    sees the block, so `written_rows` of 0 is a proof, and 800 says nothing of what was kept. A 0 of servers before
//!    [`SUMMARY_SINCE`] is not trusted, as older ones counted afterwards; nor is that of an insert that the server
//!    may gather by itself (`async_insert`).
//! 3. **Thrown while the rows were parsed, and they all fit one block**, which is handed on only after its last row;
//!    or by the table as it took that block up: too many parts, too many partitions in it, or too few replicas for
//!    the quorum that the insert wants ([`lacks_replicas`]).
//!
//! If the summary of any server counts rows, a block was handed on: then 1 is no proof, nor is a row that cannot be
//! parsed. That the table refuses its only block still is one, because the block is counted before the table sees it.
//!
//! A statement that is not an insert proves nothing by 2 and 3; a name, a type or a syntax that is wrong is found
//! before it changes anything ([`SCHEMA`]). That holds for a statement that does one thing. One that does several
//! (`DROP TABLE a, b`) may have done the first of them when it finds that the second is wrong: only a wrong syntax is
//! found before that.

/// The first server whose summary is a proof: the oldest one on which that was tried (an exception after seven
/// of twelve blocks, in a view, by too many parts, by too many partitions).
pub(crate) const SUMMARY_SINCE: (u32, u32) = (26, 7);

/// What is thrown before an insert's rows are read: too many queries, overload, who we are and what we may do,
/// unknown tables, databases, columns, formats and settings, read-only users, engines that take no rows.
const BEFORE_ROWS: &[u32] = &[
    16, 48, 60, 73, 81, 115, 164, 192, 193, 194, 195, 202, 218, 291, 392, 452, 497, 516, 700, 720,
    745,
];
/// What is found before a statement changes anything.
const SCHEMA: &[u32] = &[
    10, 15, 35, 36, 37, 42, 43, 44, 46, 47, 50, 56, 57, 62, 63, 78, 79, 80, 82, 116, 119, 182, 184,
    223, 290, 344, 420, 450, 524,
];
/// What is thrown while rows are parsed.
const PARSING: &[u32] = &[
    6, 23, 25, 26, 27, 28, 32, 33, 38, 41, 43, 46, 47, 53, 62, 69, 70, 72, 117, 128, 130, 131, 321,
    349, 441, 467, 691,
];
/// Words by which a message says that rows had been read, or that another server speaks: of a statement that all
/// servers of a cluster carry out, one may have done it when another one fails.
const LATER: &[&str] = &[
    "while pushing to view",
    "while executing",
    "received from",
    "(at row ",
    "there was an error on [",
];
/// How a message begins that says that the statement cannot be read.
const SYNTAX: &[&str] = &[
    "syntax error: failed at position",
    "syntax error (multi-statements are not allowed): failed at position",
];
/// Those of them that say that a block had been handed on.
const HANDED_ON: &[&str] = &["while pushing to view", "received from"];

/// What of a write its exceptions are read by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writing {
    /// An insert of rows that the call brings.
    Rows {
        /// The server forms one block of them at most.
        one_block: bool,
        /// The server does not gather them by itself.
        at_once: bool,
    },
    /// Any other statement, which does one thing.
    Statement,
    /// Any other statement, which does several things one after the other, or may do so.
    Parts,
}

/// How the exception came.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Came {
    /// Behind an answer that had begun with HTTP 200.
    pub(crate) late: bool,
    /// Rows of the blocks that were handed on, as [`handed_on`] says.
    pub(crate) handed_on: Option<u64>,
}

/// Whether it is proven that nothing was written. `code` is 0 if no ClickHouse speaks. What cannot be read (`None`) may
/// say anything.
pub(super) fn wrote_nothing(
    code: u32,
    message: Option<&str>,
    status: u16,
    writing: Writing,
    came: Came,
) -> bool {
    if came.late {
        return false;
    }
    if code == 0 {
        return message.is_some() && matches!(status, 401 | 403 | 405 | 407 | 411 | 414);
    }
    let is_read = message.is_some();
    let message = message.unwrap_or_default().to_ascii_lowercase();
    let says = |words: &[&str]| !is_read || words.iter().any(|word| message.contains(word));
    let is_handed_on = came.handed_on.is_some_and(|rows| rows > 0);
    let is_early = !is_handed_on && !says(LATER);
    let is_syntax = code == 62 && SYNTAX.iter().any(|words| message.contains(words));
    let is_of_row = PARSING.contains(&code) && !is_handed_on;
    match writing {
        Writing::Rows { one_block, at_once } => {
            is_early && (is_syntax || BEFORE_ROWS.contains(&code))
                || at_once && came.handed_on == Some(0)
                || one_block && (is_of_row || refuses_block(code, &message)) && !says(HANDED_ON)
        }
        Writing::Statement => {
            is_early && (is_syntax || BEFORE_ROWS.contains(&code) || SCHEMA.contains(&code))
        }
        Writing::Parts => is_early && is_syntax,
    }
}

/// Whether a table refuses a block as it takes it up: too many parts, too many partitions in it, or too few replicas.
fn refuses_block(code: u32, message: &str) -> bool {
    code == 252 || lacks_replicas(code, message)
}

/// Whether a table refuses an insert with `insert_quorum` before it takes a block up: too few replicas are alive, or an
/// earlier insert has not reached its quorum yet. `message` is in lower case.
fn lacks_replicas(code: u32, message: &str) -> bool {
    // 286 is also what ends one that met another in the middle.
    code == 285
        || code == 286 && message.contains("quorum for previous write has not been satisfied yet")
}

/// The `written_rows` of a summary such as `{"read_rows":"0","written_rows":"800"}`.
pub(crate) fn written_rows(summary: &str) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Summary {
        written_rows: String,
    }
    serde_json::from_str::<Summary>(summary).ok()?.written_rows.parse().ok()
}

/// Rows of the blocks that were handed on, by this summary. That there were none is believed only of a server whose
/// summary is a proof ([`SUMMARY_SINCE`]).
pub(crate) fn handed_on(summary: &str, is_proof: bool) -> Option<u64> {
    written_rows(summary).filter(|rows| *rows > 0 || is_proof)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Writing = Writing::Rows { one_block: true, at_once: true };
    const MANY: Writing = Writing::Rows { one_block: false, at_once: true };

    fn proven(code: u32, message: &str, writing: Writing) -> bool {
        wrote_nothing(code, Some(message), 500, writing, Came::default())
    }

    #[test]
    fn of_all_codes_only_those_thrown_before_the_rows_prove_anything_by_themselves() {
        for code in 1..=1_100 {
            assert_eq!(proven(code, "", MANY), BEFORE_ROWS.contains(&code), "{code}");
            for later in LATER {
                let message = format!("x: {later} y");
                assert!(!proven(code, &message, MANY), "{code}: {message}");
                assert!(!proven(code, &message.to_uppercase(), MANY), "{code}: {message}");
            }
            let one =
                BEFORE_ROWS.contains(&code) || PARSING.contains(&code) || matches!(code, 252 | 285);
            assert_eq!(proven(code, "", ONE), one, "{code} of one block");
            let statement = BEFORE_ROWS.contains(&code) || SCHEMA.contains(&code);
            assert_eq!(proven(code, "", Writing::Statement), statement, "{code} of a statement");
            assert!(!proven(code, "", Writing::Parts), "{code} of a statement of several parts");
        }
        // The codes of SPEC §12 that proved nothing for an insert of several parts.
        for code in [201, 225, 241, 242, 243, 159, 364, 394, 395, 439, 749, 762, 1001, 1019] {
            assert!(!proven(code, "", MANY) && !proven(code, "", ONE), "{code}");
        }
        assert!(!proven(252, "", MANY) && proven(252, "Too many parts (1)", ONE));
        assert!(!proven(252, "Too many parts (1): while pushing to view default.v", ONE));
    }

    #[test]
    fn a_statement_that_does_several_things_is_proven_undone_only_by_its_syntax() {
        let missing = "Table d.b does not exist. (UNKNOWN_TABLE)";
        assert!(proven(60, missing, Writing::Statement) && !proven(60, missing, Writing::Parts));
        let of_cluster =
            format!("There was an error on [h:9000]: Code: 60. DB::Exception: {missing}");
        assert!(!proven(60, &of_cluster, Writing::Statement), "another host may have done it");
        for unread in [
            "Syntax error: failed at position 6 (TABLE)",
            "Syntax error (Multi-statements are not allowed): failed at position 9 (end of query)",
        ] {
            assert!(proven(62, unread, Writing::Parts) && proven(62, unread, MANY), "{unread}");
        }
        assert!(!proven(62, "Syntax error (data type): failed at position 1", Writing::Parts));
    }

    #[test]
    fn a_quorum_that_cannot_be_met_is_found_before_a_block_is_taken_up() {
        let few = "Number of alive replicas (1) is less than requested quorum (2/2).";
        let earlier = "Quorum for previous write has not been satisfied yet. Status: x";
        for (code, text) in [(285, few), (286, earlier)] {
            assert!(proven(code, text, ONE) && !proven(code, text, MANY), "{code}");
            assert!(!proven(code, &format!("{text}: while pushing to view default.v"), ONE));
        }
        assert!(!proven(286, "Another quorum insert has been already started", ONE));
        assert!(!proven(319, "Unknown quorum status", ONE));
    }

    #[test]
    fn a_row_that_cannot_be_parsed_proves_something_only_for_one_block() {
        let text =
            "Cannot parse input: (at row 801) : While executing ParallelParsingBlockInputFormat.";
        assert!(proven(27, text, ONE) && !proven(27, text, MANY));
        let view = "Cannot parse text: while pushing to view default.v";
        assert!(!proven(27, view, ONE));
        assert!(proven(62, "Syntax error: failed at position 1", MANY));
        assert!(!proven(62, "Cannot parse expression of type Int64 here: a b", MANY));
    }

    #[test]
    fn a_summary_of_no_rows_is_a_proof_and_one_of_some_is_none() {
        let came = |handed_on| Came { late: false, handed_on };
        let proven = |rows, writing| wrote_nothing(243, Some(""), 500, writing, came(rows));
        assert!(proven(Some(0), MANY));
        assert!(
            !proven(Some(100), MANY) && !proven(None, MANY) && !proven(Some(0), Writing::Statement)
        );
        for code in [16, 27, 60] {
            let of = |rows| wrote_nothing(code, Some(""), 500, ONE, came(rows));
            assert!(of(None) && of(Some(0)) && !of(Some(100)), "{code}: a block was handed on");
        }
        // The only block is counted before the table sees it.
        assert!(wrote_nothing(252, Some(""), 500, ONE, came(Some(100))));
        let schema = |rows| wrote_nothing(47, Some(""), 500, Writing::Statement, came(rows));
        assert!(schema(None) && !schema(Some(100)));
        let gathered = Writing::Rows { one_block: true, at_once: false };
        assert!(!proven(Some(0), gathered), "the server may write them later");
        let late = Came { late: true, handed_on: Some(0) };
        assert!(!wrote_nothing(60, Some(""), 200, MANY, late));
        assert_eq!(written_rows(r#"{"read_rows":"8","written_rows":"7","x":"y"}"#), Some(7));
        assert_eq!(written_rows("{}"), None);
    }

    #[test]
    fn that_rows_were_handed_on_is_believed_of_every_server() {
        let (none, some) = (r#"{"written_rows":"0"}"#, r#"{"written_rows":"7"}"#);
        assert_eq!((handed_on(none, true), handed_on(some, true)), (Some(0), Some(7)));
        assert_eq!((handed_on(none, false), handed_on(some, false)), (None, Some(7)));
    }

    #[test]
    fn words_that_are_not_read_prove_nothing() {
        for code in 0..=1_100 {
            for writing in [ONE, MANY, Writing::Statement, Writing::Parts] {
                assert!(!wrote_nothing(code, None, 403, writing, Came::default()), "{code}");
            }
        }
    }

    #[test]
    fn a_proxy_proves_nothing_but_that_it_did_not_let_us_in() {
        for (status, proof) in [(401, true), (403, true), (407, true), (414, true)]
            .into_iter()
            .chain([400, 413, 429, 500, 502, 503, 504].map(|status| (status, false)))
        {
            assert_eq!(wrote_nothing(0, Some(""), status, ONE, Came::default()), proof, "{status}");
        }
    }
}
