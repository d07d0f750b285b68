//! What callers send cannot be taken for a value.
//!
//! The raw log is read by looking for the magic number, and bodies are the callers' own bytes: a body may hold whole
//! values of this store, with right checksums, by chance (a copy of a store) or on purpose. So a payload that contains
//! the magic number is masked: the envelope has the flag `MASKED`, a mask of two bytes follows the commit's number, and
//! each byte of the payload is combined with those of the mask in turn, by an exclusive or. The mask is one with which
//! the magic number is nowhere in the payload. There is one: each place in the payload rules out one mask at most, and
//! there are fewer places than masks.
//!
//! What was written before payloads were masked is protected by the way in which the log is read: the search goes on
//! behind a whole value, not within it (`raw/part.rs`). That alone would not do: of a value that a later one has
//! overwritten in part, the rest is still in the log.

/// First bytes of every value.
pub(in crate::store) const MAGIC: [u8; 4] = [0xF5, b'b', b'x', 0x1A];
/// Bytes of a mask.
pub(super) const MASK: usize = 2;

/// Each byte combined with those of the mask in turn: what masks, and what takes the mask away.
pub(super) fn combined(payload: &[u8], mask: [u8; MASK]) -> impl Iterator<Item = u8> {
    payload.iter().zip(mask.into_iter().cycle()).map(|(byte, mask)| byte ^ mask)
}

/// A mask with which the magic number is nowhere in the mask and the payload behind it.
pub(super) fn mask_for(payload: &[u8]) -> Option<[u8; MASK]> {
    let [m0, m1, m2, m3] = MAGIC;
    // At each place one mask at most would make it.
    let mut excluded: Vec<[u8; MASK]> = Vec::new();
    for (at, place) in payload.windows(MAGIC.len()).enumerate() {
        let &[b0, b1, b2, b3] = place else { continue };
        let (first, second) = (b0 ^ m0, b1 ^ m1);
        if (first, second) == (b2 ^ m2, b3 ^ m3) {
            excluded.push(if at % 2 == 0 { [first, second] } else { [second, first] });
        }
    }
    excluded.sort_unstable();
    let all = (1..=u16::MAX).map(u16::to_be_bytes);
    // It must not begin in the mask itself either.
    let mut fitting = all.filter(|[first, second]| ![first, second].contains(&&m0));
    fitting.find(|mask| excluded.binary_search(mask).is_err())
}

#[cfg(test)]
mod tests {
    use memchr::memmem;
    use proptest::prelude::*;

    use super::super::*;

    /// A chunk with this data, and whether the magic number is anywhere in it but at its beginning.
    fn chunk_of(data: &[u8]) -> (Vec<u8>, bool) {
        let record = ChunkRecord { seq: 7, index: 3, data };
        let value = seal(Kind::Chunk, &record, data.len() + 24).unwrap().stamp(5);
        let has_another = memmem::find(&value[1..], &MAGIC).is_some();
        (value, has_another)
    }

    #[test]
    fn the_magic_number_in_a_payload_is_masked() {
        let mut data = seal_as_newer(b"what a caller sends");
        data.extend_from_slice(&MAGIC.repeat(900));
        let (value, has_another) = chunk_of(&data);
        assert!(!has_another);
        let sealed = open(Kind::Chunk, &value).unwrap();
        assert_eq!((sealed.commit, sealed.length), (5, value.len()));
        assert_eq!(sealed.read::<ChunkRecord<'_>>().unwrap().data, data);
        assert_eq!(seal_again(&value, FORMAT).unwrap().stamp(5), value);
        let first = seal_again(&value, FIRST).unwrap().stamp(0);
        assert_eq!(peel(&first).unwrap().payload, sealed.payload, "it knows no masks");
        assert_eq!(seal_again(&first, FORMAT).unwrap().stamp(5), value);
    }

    #[test]
    fn a_full_chunk_that_rules_out_as_many_masks_as_it_can_is_masked() {
        let mut data = MAGIC.to_vec();
        for mask in 1..=u16::MAX {
            let [first, second] = mask.to_be_bytes();
            let place = [MAGIC[0] ^ first, MAGIC[1] ^ second, MAGIC[2] ^ first, MAGIC[3] ^ second];
            if data.len() + place.len() > CHUNK_BODY {
                break;
            }
            data.extend_from_slice(&place);
        }
        let (value, has_another) = chunk_of(&data);
        assert!(!has_another && value.len() <= VALUE_MAX);
        let sealed = open(Kind::Chunk, &value).unwrap();
        assert_eq!(sealed.read::<ChunkRecord<'_>>().unwrap().data, data);
    }

    #[test]
    fn what_was_written_without_a_mask_and_has_no_room_for_one_can_be_sealed_again() {
        let mut payload = vec![0; OVERHEAD];
        payload.extend_from_slice(&MAGIC.repeat((VALUE_MAX - OVERHEAD) / MAGIC.len()));
        let plain = draft(Kind::Chunk, FORMAT, payload).unwrap();
        assert!(masked(plain.clone()).is_none());
        let value = plain.stamp(5);
        assert_eq!(seal_again(&value, FORMAT).unwrap().stamp(5), value);
    }

    proptest! {
        #[test]
        fn whatever_a_caller_sends_comes_back_and_is_never_taken_for_a_value(
            pieces in prop::collection::vec(
                prop_oneof![
                    Just(MAGIC.to_vec()),
                    prop::collection::vec(prop::sample::select(MAGIC.to_vec()), 1..9),
                    prop::collection::vec(any::<u8>(), 0..40),
                    (any::<u8>(), any::<u8>()).prop_map(|(first, second)| {
                        vec![MAGIC[0] ^ first, MAGIC[1] ^ second, MAGIC[2] ^ first, MAGIC[3] ^ second]
                    }),
                ],
                0..60,
            ),
        ) {
            let data = pieces.concat();
            let (value, has_another) = chunk_of(&data);
            prop_assert!(!has_another);
            let sealed = open(Kind::Chunk, &value).unwrap();
            prop_assert_eq!(sealed.read::<ChunkRecord<'_>>().unwrap().data, data);
        }
    }
}
