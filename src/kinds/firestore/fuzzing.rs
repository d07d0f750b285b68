//! A way in for `fuzz/`, which takes any bytes and holds what must hold of them.

use bytes::Bytes;

use super::{
    door::framing::{self, Framing},
    protocol::{
        names::Root,
        plan,
        stock::{self, Understood},
        wire::Question,
    },
};

/// The first byte says how large the pieces are, the rest is what a client sends. However that is cut, the same messages
/// are found; and each is understood or not, as each of the requests that can be.
///
/// # Panics
/// They are not.
pub fn messages(bytes: &[u8]) {
    let Some((size, bytes)) = bytes.split_first() else { return };
    let followed = |size: usize| {
        let mut framing = Framing::default();
        let fed = bytes.chunks(size).try_for_each(|piece| framing.feed(piece));
        fed.map(|()| (framing.whole(), framing.is_between()))
    };
    let whole = followed(bytes.len().max(1));
    assert_eq!(followed(usize::from(*size) + 1), whole);
    let bytes = Bytes::copy_from_slice(bytes);
    let Some(messages) = framing::messages(&bytes) else { return };
    if let Ok(found) = whole {
        assert_eq!(found, (messages.len() as u64, true));
    }
    assert_eq!(framing::framed(&messages), bytes);
    let root = Root::new("p", "(default)");
    for message in &messages {
        let understood = [
            stock::get(message, &root, ""),
            stock::get_one(message, &root, ""),
            stock::commit(message, &root, ""),
            stock::delete(message, &root, ""),
            stock::query(Question::Query, message, &root, ""),
            stock::query(Question::Aggregation, message, &root, ""),
        ];
        for Understood { body, form } in understood.into_iter().flatten() {
            // Whether it is refused or not: it is read again.
            drop(plan::plan(body, b"n"));
            drop(form.reply(messages.clone(), &root));
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_a_fuzzer_begins_with_holds() {
        for size in [0, 4, 255] {
            super::messages(&[size]);
            super::messages(&[size, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1, 1]);
            super::messages(&[size, 1, 0xff, 0xff, 0xff, 0xff]);
        }
    }
}
