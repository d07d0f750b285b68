//! Ids of streams. One who knows an id may follow the stream, so that none can be guessed.

use std::hash::{BuildHasher, RandomState};

/// An id of 128 bits: `SipHash`, keyed by the operating system's random numbers.
pub(super) fn new() -> String {
    let key = RandomState::new();
    format!("{:016x}{:016x}", key.hash_one(0_u8), key.hash_one(1_u8))
}

#[cfg(test)]
mod tests {
    use super::new;

    #[test]
    fn no_id_is_given_twice() {
        assert_ne!(new(), new());
        assert_eq!(new().len(), 32);
    }
}
