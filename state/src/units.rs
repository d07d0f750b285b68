//! Units that the rest of the crate speaks: time, identities, lanes and ratios.
//!
//! Nothing here reads a clock or draws a random number: a [`Moment`] and a random word are arguments
//! of the decisions that need them, so that a test drives both.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, UNIX_EPOCH},
};

use ulid::Ulid;

/// A point on the process's monotonic clock, in milliseconds since an arbitrary start.
///
/// Means nothing outside the process that made it; see [`UnixMillis`] for what outlives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// The moment `millis` milliseconds after the clock's start.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the clock's start.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The moment `duration` later; saturates.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }

    /// The moment `duration` earlier; saturates.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(millis(duration)))
    }

    /// How long after `earlier` this is; zero if it is not after.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// The end of the year 9999: what RFC 3339 can write.
const LATEST: u64 = 253_402_300_799_999;

/// Wall-clock time in milliseconds since the Unix epoch: what is written to disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(u64);

impl UnixMillis {
    /// The time `millis` milliseconds after the epoch.
    pub const fn new(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The time `duration` later; saturates.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }

    /// How long after `earlier` this is; zero if the clock was set back.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// RFC 3339 in UTC: `2026-11-23T16:00:00.123Z`.
impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = UNIX_EPOCH + Duration::from_millis(self.0.min(LATEST));
        humantime::format_rfc3339_millis(time).fmt(f)
    }
}

/// The text is no time of RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a time must be written as 2026-11-23T16:00:00.123Z, got {0:?}")]
pub struct TimeError(pub String);

impl FromStr for UnixMillis {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        let wrong = || TimeError(text.chars().take(64).collect());
        let time = humantime::parse_rfc3339(text).map_err(|_| wrong())?;
        let since = time.duration_since(UNIX_EPOCH).map_err(|_| wrong())?;
        Ok(Self(millis(since)))
    }
}

impl serde::Serialize for UnixMillis {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for UnixMillis {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Whole milliseconds of a duration, saturating at `u64::MAX`.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The name that a call keeps for ever: a ULID, 26 characters of Crockford base 32.
///
/// In two halves, the upper first: a `u128` would align what holds it to sixteen bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId([u64; 2]);

impl OpId {
    /// An id made at `at` with 80 of the `random` bits.
    pub fn new(at: UnixMillis, random: u128) -> Self {
        Self::from_u128(Ulid::from_parts(at.get(), random).0)
    }

    /// The id as the number that is stored.
    pub fn to_u128(self) -> u128 {
        let Self([upper, lower]) = self;
        u128::from(upper) << 64 | u128::from(lower)
    }

    /// The id that [`OpId::to_u128`] gave `value`.
    pub fn from_u128(value: u128) -> Self {
        let half = |value: u128| u64::try_from(value & u128::from(u64::MAX)).unwrap_or_default();
        Self([half(value >> 64), half(value)])
    }
}

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ulid(self.to_u128()).fmt(f)
    }
}

/// The text is not a ULID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("op_id must be a ULID of 26 characters, got {0:?}")]
pub struct OpIdError(pub String);

impl FromStr for OpId {
    type Err = OpIdError;

    fn from_str(text: &str) -> Result<Self, OpIdError> {
        let wrong = |_| OpIdError(text.chars().take(64).collect());
        Ulid::from_string(text).map(|ulid| Self::from_u128(ulid.0)).map_err(wrong)
    }
}

impl serde::Serialize for OpId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for OpId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A unit of ordering, as the 64-bit hash of its name (XXH3 of namespace, kind of lane and key).
///
/// Two lanes that collide merely wait for each other; no value is ever answered by hash alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub u64);

impl LaneId {
    /// The lane of `key` within `namespace` (a database number, a project).
    pub fn of(namespace: &[u8], key: &[u8]) -> Self {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        hasher.update(&(namespace.len() as u64).to_le_bytes());
        hasher.update(namespace);
        hasher.update(key);
        Self(hasher.digest())
    }
}

/// A digest of a call's body (XXH3): tells a repetition from another call, not an attacker's forgery.
pub fn digest(body: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(body)
}

/// A digest of the label of a call: calls to the same object have the same. Two objects may share one.
pub fn object_of(label: &str) -> u32 {
    u32::try_from(digest(label.as_bytes()) >> 32).unwrap_or_default()
}

/// The lanes that a call touches. Takes two words.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Lanes {
    /// None.
    None,
    /// Exactly one: the usual case, without an allocation.
    One(LaneId),
    /// Several.
    Many(Box<Several>),
    /// A barrier over every lane of the backend.
    All,
}

/// Several lanes, sorted and without repetition; at most [`Lanes::MAX`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Several(Box<[LaneId]>);

impl Lanes {
    /// More lanes than this become a barrier over all.
    pub const MAX: usize = 64;

    /// The set of `lanes`, as a barrier over all if there are more than [`Lanes::MAX`].
    pub fn new(lanes: impl IntoIterator<Item = LaneId>) -> Self {
        let mut lanes: Vec<LaneId> = lanes.into_iter().collect();
        lanes.sort_unstable();
        lanes.dedup();
        match lanes.as_slice() {
            [] => Self::None,
            [lane] => Self::One(*lane),
            more if more.len() > Self::MAX => Self::All,
            _ => Self::Many(Box::new(Several(lanes.into_boxed_slice()))),
        }
    }

    /// The lanes one by one; empty for a barrier over all.
    pub fn as_slice(&self) -> &[LaneId] {
        match self {
            Self::One(lane) => std::slice::from_ref(lane),
            Self::Many(lanes) => &lanes.0,
            Self::None | Self::All => &[],
        }
    }

    /// Whether this is a barrier over every lane.
    pub fn is_all(&self) -> bool {
        matches!(self, Self::All)
    }

    /// Whether the two have a lane in common.
    pub fn meets(&self, other: &Self) -> bool {
        self.is_all()
            || other.is_all()
            || self.as_slice().iter().any(|lane| other.as_slice().contains(lane))
    }
}

/// A number of bytes as people read it: `582 B`, `9.8 KiB`, `1 GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteCount(pub u64);

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u32, &str); 5] =
            [(10, "KiB"), (20, "MiB"), (30, "GiB"), (40, "TiB"), (50, "PiB")];
        let Self(bytes) = *self;
        if bytes < 1 << 10 {
            return write!(f, "{bytes} B");
        }
        // In tenths, rounded; what rounds to 1,024 of a unit is one of the next.
        let tenths = |bits: u32| (u128::from(bytes) * 10 + (1 << (bits - 1))) >> bits;
        let fits = |(bits, _): &(u32, &str)| tenths(*bits) < 10_240;
        let (bits, unit) = UNITS.into_iter().find(fits).unwrap_or((60, "EiB"));
        let tenths = tenths(bits);
        match tenths % 10 {
            0 => write!(f, "{} {unit}", tenths / 10),
            rest => write!(f, "{}.{rest} {unit}", tenths / 10),
        }
    }
}

/// A share between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, serde::Serialize)]
#[serde(transparent)]
pub struct Ratio(f64);

impl Ratio {
    /// Nothing.
    pub const ZERO: Self = Self(0.0);

    /// A ratio, or `None` outside `0.0..=1.0` and for NaN.
    pub fn new(value: f64) -> Option<Self> {
        (0.0..=1.0).contains(&value).then_some(Self(value))
    }

    /// The share as a number.
    pub const fn get(self) -> f64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_op_id_survives_text_and_number() {
        let id = OpId::new(UnixMillis::new(1_790_000_000_000), 7);
        assert_eq!(id.to_string().parse::<OpId>(), Ok(id));
        assert_eq!(OpId::from_u128(id.to_u128()), id);
        assert!("nonsense".parse::<OpId>().is_err());
    }

    #[test]
    fn a_time_is_written_and_read_as_rfc_3339() {
        let time = UnixMillis::new(1_790_000_000_123);
        assert_eq!(time.to_string(), "2026-09-21T14:13:20.123Z");
        assert_eq!(time.to_string().parse(), Ok(time));
        assert!("yesterday".parse::<UnixMillis>().is_err());
        assert_eq!(UnixMillis::new(u64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn lanes_are_sorted_unique_and_become_a_barrier_above_the_limit() {
        let lane = |n| LaneId(n);
        assert_eq!(Lanes::new([lane(3), lane(3)]), Lanes::One(lane(3)));
        assert_eq!(Lanes::new([lane(3), lane(1)]).as_slice(), &[lane(1), lane(3)]);
        assert!(Lanes::new((0..65).map(lane)).is_all());
    }

    #[test]
    fn a_lane_depends_on_its_namespace() {
        assert_ne!(LaneId::of(b"0", b"k"), LaneId::of(b"1", b"k"));
        assert_ne!(LaneId::of(b"a", b"bc"), LaneId::of(b"ab", b"c"));
    }

    #[test]
    fn a_number_of_bytes_is_in_the_unit_that_people_read() {
        for (bytes, told) in [
            (0, "0 B"),
            (582, "582 B"),
            (1_023, "1023 B"),
            (1_024, "1 KiB"),
            (6_000, "5.9 KiB"),
            (10_000, "9.8 KiB"),
            (1_048_575, "1 MiB"),
            (67_108_864, "64 MiB"),
            (1_073_741_824, "1 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(ByteCount(bytes).to_string(), told);
        }
    }

    #[test]
    fn a_ratio_is_between_zero_and_one() {
        assert!(Ratio::new(0.0).is_some() && Ratio::new(1.0).is_some());
        assert!(Ratio::new(1.01).is_none() && Ratio::new(f64::NAN).is_none());
    }
}
