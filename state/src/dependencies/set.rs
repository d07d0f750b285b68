//! Sets of small numbers.

const BITS: usize = u64::BITS as usize;

/// A set of numbers below a limit that was given when it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Set(Box<[u64]>);

impl Set {
    /// An empty set of numbers below `limit`.
    pub(super) fn below(limit: usize) -> Self {
        Self(vec![0; limit.div_ceil(BITS)].into())
    }

    /// Those of the numbers below `limit` that `is_in`.
    pub(super) fn of(limit: usize, is_in: impl Fn(usize) -> bool) -> Self {
        let mut set = Self::below(limit);
        (0..limit).filter(|number| is_in(*number)).for_each(|number| set.insert(number));
        set
    }

    pub(super) fn insert(&mut self, number: usize) {
        if let Some(word) = self.0.get_mut(number / BITS) {
            *word |= 1 << (number % BITS);
        }
    }

    pub(super) fn contains(&self, number: usize) -> bool {
        self.0.get(number / BITS).is_some_and(|word| word & (1 << (number % BITS)) != 0)
    }

    /// Takes all of `other` in.
    pub(super) fn join(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word |= other;
        }
    }

    /// Whether they have a number in common.
    pub(super) fn meets(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(word, other)| word & other != 0)
    }

    /// What they have in common, in order.
    pub(super) fn common<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = usize> + 'a {
        self.0.iter().zip(&other.0).enumerate().flat_map(|(at, (word, other))| {
            let mut left = word & other;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros() as usize)?;
                left &= left - 1;
                Some(at * BITS + bit)
            })
        })
    }
}
