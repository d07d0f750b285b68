//! A way in for `fuzz/`, which takes any bytes and holds what must hold of them.

use bytes::Bytes;

use super::{
    protocol::{
        decoded::{self, Coding, MOST, Packing},
        http_form::{HttpRequest, RequestHead},
        opaque, sql, stated,
    },
    settings::ClickHouseSettings,
};

/// The first byte says how the rest is packed, which is a statement.
///
/// # Panics
/// More of it is read than may be, what is read of its beginning is not a beginning, or it is not planned as it is
/// classified.
pub fn statements(bytes: &[u8]) {
    let Some((how, body)) = bytes.split_first() else { return };
    let coding = usize::from(how % 8).checked_sub(1).and_then(|at| Coding::ALL.get(at));
    let packing = Packing { coding: coding.map(|(_, coding)| *coding), blocks: how & 8 > 0 };
    let is_packed = packing != Packing::default();
    if is_packed {
        let whole = decoded::beginning(packing, body);
        assert!(whole.bytes.len() <= MOST, "{} bytes are read", whole.bytes.len());
        let half = decoded::beginning(packing, body.get(..body.len() / 2).unwrap_or_default());
        // What is damaged may be read as far as it goes, not otherwise.
        let common = half.bytes.len().min(whole.bytes.len());
        assert_eq!(half.bytes.get(..common), whole.bytes.get(..common));
    }
    let unpacked = is_packed.then(|| stated::unpacked("", packing, (body, true))).flatten();
    let head = RequestHead {
        method: if how & 16 > 0 { "GET" } else { "POST" }.into(),
        target: "/".into(),
        is_query: true,
        is_plain: !is_packed,
        packing: is_packed.then_some(packing),
        unpacked,
        is_whole: true,
        is_clear: true,
        ..RequestHead::default()
    };
    let request = HttpRequest { head, body: Bytes::copy_from_slice(body) };
    let settings = ClickHouseSettings::new("http://h/d".parse().unwrap(), "i", "r");
    let form = request.to_bytes();
    let again = HttpRequest::of(&form).unwrap().unwrap();
    assert_eq!(opaque::operation(&again), opaque::operation(&request));
    let plan = opaque::plan(form, Ok(request), |_, _| false, None, &settings).unwrap();
    assert!(plan.label.len() <= 256 || !plan.label.is_empty());
    // No statement has a number sign outside of quotes, and behind one a space makes a comment.
    if let Some(text) = std::str::from_utf8(body).ok().filter(|text| !text.contains('#')) {
        // Folding changes no statement's meaning, so not its kind either, and once folded it stays.
        let folded = sql::folded(text);
        assert_eq!(sql::folded(&folded), folded);
        // A quote that does not end makes it no statement, and its beginning is all that is folded.
        let operation = sql::read(text).operation();
        assert!(operation == "unknown" || sql::read(&folded).operation() == operation);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_a_fuzzer_begins_with_holds() {
        for text in
            ["SELECT 1", "INSERT INTO t VALUES (1)", "/* a */ select 'b -- c'", "\u{1f}\u{8b}"]
        {
            for how in 0..32 {
                super::statements(&[&[how], text.as_bytes()].concat());
            }
        }
    }
}
