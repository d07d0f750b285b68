//! JSON in which every number keeps its own text, on its way in and on its way out.
//!
//! `serde_json::Value` holds a number in 64 bits. It rounds what does not fit (`12345678901234567890123`) and
//! rewrites others (`1e3` becomes `1000.0`), and nobody notices afterwards. So a value that goes on to a
//! backend is never a `Value` on its way in. It is read in two steps:
//!
//! - `serde_json` finds the end of each member and validates it ([`RawValue`]), without recursion and without
//!   building anything;
//! - [`Json`] takes a member apart if its parts matter. It borrows the text.
//!
//! A backend's JSON goes out as [`Outgoing`]: validated once, embedded as it is, and never taken apart.
//!
//! Three things are refused rather than guessed at: text that is not Unicode (a lone surrogate such as
//! `\ud800`), an object that names a member twice (readers of JSON disagree on which one counts), and more
//! than [`DEPTH_MAX`] levels, which bounds the recursion here and in whatever walks the tree.

use std::{borrow::Cow, collections::BTreeSet, fmt};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

/// The most arrays and objects within one another; `serde_json`'s own limit.
pub(crate) const DEPTH_MAX: usize = 128;
/// How much of a value an error quotes, in characters.
const QUOTED: usize = 80;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number, as it was written.
    Number(&'a str),
    /// A string, its escapes resolved.
    Text(Cow<'a, str>),
    /// An array.
    Array(Vec<Self>),
    /// An object, in the order in which it was written; no name occurs twice.
    Object(Vec<(Cow<'a, str>, Self)>),
}

impl<'a> Json<'a> {
    /// The value that `bytes` are.
    ///
    /// # Errors
    /// What is wrong: not JSON, not Unicode, a member named twice, or nested too deep.
    pub(crate) fn of_bytes(bytes: &'a [u8]) -> Result<Self, String> {
        let raw: &RawValue = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        Self::of(raw)
    }

    /// The value that a validated text is.
    ///
    /// # Errors
    /// Not Unicode, a member named twice, or nested too deep.
    pub(crate) fn of(raw: &'a RawValue) -> Result<Self, String> {
        Reader { rest: raw.get() }.value(DEPTH_MAX)
    }
}

/// The string that a JSON string is, without its quotes and escapes.
///
/// # Errors
/// It is not Unicode text.
pub(crate) fn unescaped(token: &str) -> Result<Cow<'_, str>, String> {
    if let Some(plain) = token.get(1..token.len().saturating_sub(1))
        && !plain.contains('\\')
    {
        return Ok(Cow::Borrowed(plain));
    }
    serde_json::from_str(token).map(Cow::Owned).map_err(|error| {
        // Its line and column count from the token's beginning, which nobody sees.
        let error = error.to_string();
        let why = error.split(" at line ").next().unwrap_or_default();
        format!("{} is not Unicode text: {why}", quoted(token))
    })
}

/// A value as an error names it: cut if it is long.
pub(crate) fn quoted(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => Cow::Owned(format!("{}…", text.get(..end).unwrap_or_default())),
        None => Cow::Borrowed(text),
    }
}

/// Takes a validated text apart. What a valid text cannot hold ends with an error all the same.
struct Reader<'a> {
    rest: &'a str,
}

const DAMAGED: &str = "the JSON ends too early";

impl<'a> Reader<'a> {
    fn value(&mut self, depth: usize) -> Result<Json<'a>, String> {
        match self.peek() {
            Some(b'{') => self.object(deeper(depth)?),
            Some(b'[') => self.array(deeper(depth)?),
            Some(b'"') => unescaped(self.string()?).map(Json::Text),
            Some(_) => Ok(match self.word()? {
                "null" => Json::Null,
                "true" => Json::Bool(true),
                "false" => Json::Bool(false),
                number => Json::Number(number),
            }),
            None => Err(DAMAGED.to_owned()),
        }
    }

    fn array(&mut self, depth: usize) -> Result<Json<'a>, String> {
        let mut items = Vec::new();
        self.skip(1);
        while self.peek() != Some(b']') {
            items.push(self.value(depth).map_err(|why| format!("[{}]: {why}", items.len()))?);
            self.comma();
        }
        self.skip(1);
        Ok(Json::Array(items))
    }

    fn object(&mut self, depth: usize) -> Result<Json<'a>, String> {
        let mut members = Vec::new();
        self.skip(1);
        while self.peek() != Some(b'}') {
            let name = unescaped(self.string()?)?;
            if self.peek() == Some(b':') {
                self.skip(1);
            }
            let value = self.value(depth).map_err(|why| format!("{}: {why}", quoted(&name)))?;
            members.push((name, value));
            self.comma();
        }
        self.skip(1);
        let names: BTreeSet<&str> = members.iter().map(|(name, _)| name.as_ref()).collect();
        if names.len() < members.len() {
            return Err(twice(&members));
        }
        Ok(Json::Object(members))
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
        self.rest.bytes().next()
    }

    fn comma(&mut self) {
        if self.peek() == Some(b',') {
            self.skip(1);
        }
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or_default();
    }

    fn take(&mut self, bytes: usize) -> Result<&'a str, String> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(DAMAGED)?;
        self.rest = rest;
        Ok(taken)
    }

    /// A string with its quotes.
    fn string(&mut self) -> Result<&'a str, String> {
        let mut escaped = false;
        let end = self.rest.bytes().skip(1).position(|byte| {
            let closes = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            closes
        });
        self.take(end.ok_or(DAMAGED)? + 2)
    }

    /// A number, or one of JSON's three words.
    fn word(&mut self) -> Result<&'a str, String> {
        let ends = |byte: u8| matches!(byte, b',' | b']' | b'}' | b' ' | b'\t' | b'\n' | b'\r');
        let end = self.rest.bytes().position(ends).unwrap_or(self.rest.len());
        self.take(end.max(1))
    }
}

fn deeper(depth: usize) -> Result<usize, String> {
    depth.checked_sub(1).ok_or_else(|| format!("JSON nests at most {DEPTH_MAX} deep"))
}

/// What is said of a name that occurs twice.
fn named_twice(name: &str) -> String {
    format!("`{}` appears twice", quoted(name))
}

fn twice(members: &[(Cow<'_, str>, Json<'_>)]) -> String {
    let mut seen = BTreeSet::new();
    let repeated = members.iter().find(|(name, _)| !seen.insert(name.as_ref()));
    named_twice(repeated.map_or("", |(name, _)| name))
}

/// The members of an object, each in its own text; no name occurs twice.
#[derive(Debug, Default)]
pub(crate) struct Members<'a>(pub(crate) Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfMembers;

        impl<'de> Visitor<'de> for OfMembers {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut members, mut seen) = (Vec::new(), BTreeSet::new());
                while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(named_twice(&name)));
                    }
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(OfMembers)
    }
}

/// A reply's JSON.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Outgoing<'a> {
    /// Made here, of what is not JSON.
    Made(Value),
    /// The backend's own document.
    Own(&'a RawValue),
    /// The backend's own rows, which become the elements of an array.
    Rows(Vec<&'a RawValue>),
}

impl<'a> Outgoing<'a> {
    /// The one JSON document that `bytes` are; `None` if they are none.
    pub(crate) fn document(bytes: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().map(Self::Own)
    }

    /// The JSON documents that follow one another in `bytes`; `None` if anything else is among them.
    pub(crate) fn rows(bytes: &'a [u8]) -> Option<Self> {
        let rows = serde_json::Deserializer::from_slice(bytes).into_iter();
        rows.collect::<Result<_, _>>().ok().map(Self::Rows)
    }
}

/// A valid JSON text on one line. Within its strings every line break is escaped, so those that are left
/// are between its tokens and mean nothing.
pub(crate) fn on_one_line(json: &str) -> Cow<'_, str> {
    if json.contains(['\n', '\r']) {
        return Cow::Owned(json.replace(['\n', '\r'], ""));
    }
    Cow::Borrowed(json)
}

/// A valid JSON text over several lines, two spaces a level (up to [`DEPTH_MAX`] levels), as `serde_json`
/// writes it. Nothing but white space is changed, and nothing recurses.
pub(crate) fn over_lines(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let mut reader = Reader { rest: json };
    let mut depth = 0_usize;
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth.min(DEPTH_MAX)));
    };
    while let Some(byte) = reader.peek() {
        let token = match byte {
            b'"' => reader.string(),
            b'{' | b'[' | b'}' | b']' | b',' | b':' => reader.take(1),
            _ => reader.word(),
        };
        let Ok(token) = token else { break };
        if matches!(byte, b'}' | b']') {
            depth = depth.saturating_sub(1);
            if !out.ends_with(['{', '[']) {
                line(&mut out, depth);
            }
        }
        out.push_str(token);
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if !matches!(reader.peek(), Some(b'}' | b']')) {
                    line(&mut out, depth);
                }
            }
            b',' => line(&mut out, depth),
            b':' => out.push(' '),
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What `Json` holds, as `serde_json` would read it.
    fn rounded(json: &Json<'_>) -> Value {
        match json {
            Json::Null => Value::Null,
            Json::Bool(flag) => (*flag).into(),
            Json::Number(text) => serde_json::from_str(text).unwrap(),
            Json::Text(text) => text.as_ref().into(),
            Json::Array(items) => items.iter().map(rounded).collect(),
            Json::Object(members) => Value::Object(
                members.iter().map(|(name, value)| (name.to_string(), rounded(value))).collect(),
            ),
        }
    }

    #[test]
    fn numbers_keep_their_text() {
        let text = b" { \"a\" : [ 1e3 ,-0, 12345678901234567890123\n, 0.10 ] ,\"b\":-1.5E-7} ";
        let read = Json::of_bytes(text).unwrap();
        let numbers = ["1e3", "-0", "12345678901234567890123", "0.10"].map(Json::Number);
        let wanted = [("a", Json::Array(numbers.to_vec())), ("b", Json::Number("-1.5E-7"))];
        assert_eq!(read, Json::Object(wanted.map(|(name, json)| (name.into(), json)).to_vec()));
    }

    #[test]
    fn what_has_no_one_meaning_is_refused_by_its_place() {
        for (text, why) in [
            (r#"{"a":{"b":1,"c":2,"b":3}}"#, "a: `b` appears twice"),
            (r#"{"a":1,"\u0061":2}"#, "`a` appears twice"),
            (r#"[0,"\ud800"]"#, r#"[1]: "\ud800" is not Unicode text"#),
            (r#"{"\udc00x":1}"#, r#""\udc00x" is not Unicode text"#),
            (r#"{"a":01}"#, "invalid number"),
            ("{\"a\":\"\n\"}", "control character"),
            ("{} {}", "trailing characters"),
            ("", "EOF"),
        ] {
            let error = Json::of_bytes(text.as_bytes()).unwrap_err();
            assert!(error.starts_with(why) || error.contains(why), "{text}: {error}");
        }
        assert!(Json::of_bytes(b"\"\xff\"").unwrap_err().contains("unicode"));
    }

    #[test]
    fn no_depth_overflows_the_stack() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(Json::of_bytes(nested(DEPTH_MAX).as_bytes()).is_ok());
        for depth in [DEPTH_MAX + 1, 200_000] {
            let error = Json::of_bytes(nested(depth).as_bytes()).unwrap_err();
            assert!(error.ends_with("JSON nests at most 128 deep"), "{error}");
        }
    }

    #[test]
    fn members_are_read_once_each() {
        let read: Members<'_> = serde_json::from_str(r#"{"b": 1e3, "a": [ -0 ]}"#).unwrap();
        let texts: Vec<_> = read.0.iter().map(|(name, raw)| (name.as_str(), raw.get())).collect();
        assert_eq!(texts, [("b", "1e3"), ("a", "[ -0 ]")]);
        let error = serde_json::from_str::<Members<'_>>(r#"{"a":1,"a":2}"#).unwrap_err();
        assert!(error.to_string().starts_with("`a` appears twice"), "{error}");
    }

    #[test]
    fn a_backends_json_goes_out_as_it_is() {
        let text = |json: Option<Outgoing<'_>>| json.map(|it| serde_json::to_string(&it).unwrap());
        let document = b" {\"d\":\n\t100.10, \"d\":1e3}\n";
        assert_eq!(text(Outgoing::document(document)).unwrap(), "{\"d\":\n\t100.10, \"d\":1e3}");
        let rows = b"{\"a\":0.10}\n{\"a\":12345678901234567890123}\n";
        assert_eq!(
            text(Outgoing::rows(rows)).unwrap(),
            r#"[{"a":0.10},{"a":12345678901234567890123}]"#
        );
        assert_eq!(text(Outgoing::rows(b"")).unwrap(), "[]");
        for wrong in [&b"{\"a\":1}{"[..], b"{\"a\":\"\xff\"}", b"", b"{\"a\":1} x"] {
            assert!(text(Outgoing::document(wrong)).is_none());
            assert!(wrong.is_empty() || text(Outgoing::rows(wrong)).is_none());
        }
    }

    #[test]
    fn lines_are_broken_between_tokens_alone() {
        let json = "{ \"a b\\\"{\" :\r\n[1e3,\n{},[ ],-0.10 ],\t\"c\":\"x\\ny\"}";
        assert_eq!(on_one_line(json), "{ \"a b\\\"{\" :[1e3,{},[ ],-0.10 ],\t\"c\":\"x\\ny\"}");
        let lines = "{\n  \"a b\\\"{\": [\n    1e3,\n    {},\n    [],\n    -0.10\n  ],\n  \
                     \"c\": \"x\\ny\"\n}";
        assert_eq!(over_lines(json), lines);
        let deep = "[".repeat(5_000) + &"]".repeat(5_000);
        assert!(matches!(on_one_line(&deep), Cow::Borrowed(_)));
        // Indented as its depth asks, it would be 50 MB.
        assert!(over_lines(&deep).len() < 4 << 20);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..5)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn all_else_is_read_as_serde_json_reads_it(json in any_json(), pretty: bool) {
            let text = if pretty { format!("{json:#}") } else { json.to_string() };
            prop_assert_eq!(rounded(&Json::of_bytes(text.as_bytes()).unwrap()), json);
        }

        #[test]
        fn lines_are_as_serde_json_breaks_them(json in any_json(), pretty: bool) {
            let text = if pretty { format!("{json:#}") } else { json.to_string() };
            prop_assert_eq!(over_lines(&text), format!("{json:#}"));
            prop_assert!(!on_one_line(&text).contains('\n'));
            prop_assert_eq!(serde_json::from_str::<Value>(&on_one_line(&text)).unwrap(), json);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), text in "[\\[\\]{}\":,\\\\ud8c0-9 a.e-]{0,48}") {
            for bytes in [bytes.as_slice(), text.as_bytes()] {
                if let Ok(json) = Json::of_bytes(bytes) {
                    let same: Value = serde_json::from_slice(bytes).unwrap_or(Value::Null);
                    // serde_json alone refuses a number that no double holds.
                    prop_assert!(same.is_null() || same == rounded(&json));
                }
            }
        }
    }
}
