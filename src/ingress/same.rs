//! Comparing secrets.

/// Whether two secrets are the same. Compares without leaving early, so that time says nothing about how they
/// differ.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (x, y)| sum | (x ^ y)) == 0
}
