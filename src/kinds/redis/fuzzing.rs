//! Ways in for `fuzz/`: each takes any bytes and holds what must hold of them.

use bytes::BytesMut;

use super::{
    door::request::{Found, Requests},
    protocol::resp::{self, FrameFinder},
};

/// The requests that are found in `parts`, which come one after the other, each by its arguments; then, after what is no
/// request, why.
pub(crate) fn found(parts: &[&[u8]], known: bool) -> (Vec<Vec<Vec<u8>>>, Option<String>) {
    let (mut requests, mut buffer, mut found) = (Requests::default(), Vec::new(), Vec::new());
    for part in parts {
        buffer.extend_from_slice(part);
        loop {
            let length = match requests.next(&buffer, known) {
                Found::Nothing => {
                    assert!(requests.needs(&buffer) <= usize::MAX / 2, "it can be added to");
                    break;
                }
                Found::Request(length) => {
                    found.push(requests.args(&buffer).map(<[u8]>::to_vec).collect());
                    length
                }
                Found::Empty(length) => length,
                Found::Inline(length, request) => {
                    let args = resp::arguments(&request).unwrap();
                    found.push(args.into_iter().map(<[u8]>::to_vec).collect());
                    length
                }
                Found::Wrong(why) => return (found, Some(why)),
            };
            assert!((1..=buffer.len()).contains(&length), "something was taken");
            buffer.drain(..length);
        }
    }
    (found, None)
}

/// The first byte says how large the pieces are, and whether the client is known; the rest is what it sends. However
/// that is cut, the same requests are found.
///
/// # Panics
/// They are not.
pub fn requests(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else { return };
    let (known, size) = (how % 2 == 0, usize::from(how / 2) + 1);
    let whole = found(&[bytes], known);
    let parts: Vec<&[u8]> = bytes.chunks(size).collect();
    assert_eq!(found(&parts, known), whole);
}

/// The first byte says how large the pieces are, the rest is what a server sends. However that is cut, the same frames
/// are found.
///
/// # Panics
/// They are not.
pub fn replies(bytes: &[u8]) {
    let Some((size, bytes)) = bytes.split_first() else { return };
    let frames = |size: usize| {
        let (mut finder, mut inbox, mut frames) = (FrameFinder::default(), BytesMut::new(), vec![]);
        for part in bytes.chunks(size) {
            inbox.extend_from_slice(part);
            loop {
                match finder.next(&mut inbox) {
                    Ok(None) => break,
                    Ok(Some(frame)) => frames.push(frame),
                    Err(_) => return (frames, true),
                }
            }
        }
        (frames, false)
    };
    assert_eq!(frames(usize::from(*size) + 1), frames(usize::MAX));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_the_same_however_they_are_cut(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            near in "[$*%>_:,#(!=~|+0-9a'\"\\\\x\r\n -]{0,80}",
            size in any::<u8>(),
        ) {
            super::requests(&bytes);
            super::replies(&bytes);
            let near = [&[size], near.as_bytes()].concat();
            super::requests(&near);
            super::replies(&near);
        }
    }
}
