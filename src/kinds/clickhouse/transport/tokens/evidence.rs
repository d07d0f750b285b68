//! What is noted beside the first sending of a write, and what it proves later.
//!
//! ```text
//!  1 │ connector 8 │ flags │ version's length, version │ tables │ each: identity 16, window 8, seconds 8, number 8
//! ```
//! Numbers are little-endian. Another version of it, a byte too few or too many, or more than [`EVIDENCE_MAX`] bytes,
//! is no evidence, and no evidence is no proof.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::reach::{Reach, Reached};

const VERSION: u8 = 1;
/// The most that is noted, in bytes.
const EVIDENCE_MAX: usize = 1_024;
/// The query log could be read.
const LOG: u8 = 1;
/// The tables are noted.
const TABLES: u8 = 2;

/// What was noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Evidence {
    /// The connector that noted it; it alone knows all sendings since.
    pub(super) connector: u64,
    /// Whether the query log could be read.
    pub(super) log: bool,
    /// The server's version: another may tell blocks otherwise.
    pub(super) version: String,
    /// What the write reaches; `None` if a repetition would not be recognised.
    pub(super) tables: Option<Vec<Reached>>,
}

impl Evidence {
    /// Its bytes; empty if they are too many, or would be of no use.
    pub(super) fn to_bytes(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_u8(VERSION);
        bytes.put_u64_le(self.connector);
        let tables = if self.tables.is_some() { TABLES } else { 0 };
        bytes.put_u8(tables | if self.log { LOG } else { 0 });
        bytes.put_u8(u8::try_from(self.version.len()).unwrap_or(u8::MAX));
        bytes.put_slice(self.version.as_bytes().get(..255).unwrap_or(self.version.as_bytes()));
        for table in self.tables.iter().flatten() {
            bytes.put_u128_le(table.identity);
            bytes.put_u64_le(table.window);
            bytes.put_u64_le(table.seconds);
            bytes.put_u64_le(table.number);
        }
        let useful = self.log || self.tables.is_some();
        if useful && bytes.len() <= EVIDENCE_MAX { bytes.freeze() } else { Bytes::new() }
    }

    /// What `bytes` say; `None` if they are none of this version.
    pub(super) fn of(bytes: &Bytes) -> Option<Self> {
        let mut rest = bytes.clone();
        if rest.try_get_u8().ok()? != VERSION {
            return None;
        }
        let connector = rest.try_get_u64_le().ok()?;
        let flags = rest.try_get_u8().ok()?;
        let len = usize::from(rest.try_get_u8().ok()?);
        if rest.len() < len {
            return None;
        }
        let version = String::from_utf8(rest.split_to(len).to_vec()).ok()?;
        let mut tables = Vec::new();
        while !rest.is_empty() {
            tables.push(Reached {
                identity: rest.try_get_u128_le().ok()?,
                window: rest.try_get_u64_le().ok()?,
                seconds: rest.try_get_u64_le().ok()?,
                number: rest.try_get_u64_le().ok()?,
                covers: true,
                direct: false,
            });
        }
        let tables = (flags & TABLES != 0).then_some(tables);
        Some(Self { connector, log: flags & LOG != 0, version, tables })
    }

    /// Why it is not proven that the server, which says `now` and is of `version`, recognises what was sent
    /// `age` ago and may come again up to `patience` from now. `None` if it is proven.
    ///
    /// A quarter of each window is kept for what comes before the repetition does.
    pub(super) fn lacks(
        &self,
        now: &Reach,
        version: &str,
        age: Option<Duration>,
        patience: Duration,
    ) -> Option<String> {
        let now = match now {
            Reach::Tables(now) => now,
            Reach::Lacks(why) => return Some(why.clone()),
            Reach::NoTable => return Some("there is no such table".to_owned()),
        };
        let Some(then) = &self.tables else {
            return Some(
                "a repetition would not have been recognised when it was first sent".to_owned(),
            );
        };
        if version != self.version {
            return Some(format!("the server was {} then and is {version} now", self.version));
        }
        let ids = |tables: &[Reached]| -> Vec<u128> {
            tables.iter().map(|table| table.identity).collect()
        };
        if ids(then) != ids(now) {
            return Some("it reaches other tables than when it was first sent".to_owned());
        }
        then.iter().zip(now).find_map(|(then, now)| missing(then, now, age, patience))
    }
}

fn missing(
    then: &Reached,
    now: &Reached,
    age: Option<Duration>,
    patience: Duration,
) -> Option<String> {
    let window = then.window.min(now.window);
    let Some(since) = now.number.checked_sub(then.number) else {
        return Some("a table has fewer blocks than when it was first sent".to_owned());
    };
    if then.number > 0 && !now.covers {
        return Some("parts of a table were dropped since it was first sent".to_owned());
    }
    if since >= window - window / 4 {
        return Some(format!(
            "a table remembers {window} blocks and has got up to {since} since it was first sent"
        ));
    }
    let seconds = match (then.seconds, now.seconds) {
        (0, 0) => return None,
        (0, seconds) | (seconds, 0) => seconds,
        (one, other) => one.min(other),
    };
    let lasts = |age: Duration| age.saturating_add(patience) < Duration::from_secs(seconds);
    if age.is_some_and(lasts) {
        return None;
    }
    Some(format!("a table remembers blocks for {seconds} s, and it was first sent before that"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(identity: u128, window: u64, number: u64) -> Reached {
        let (covers, direct) = (true, false);
        Reached { identity, window, seconds: 0, number, covers, direct }
    }

    fn noted(tables: Vec<Reached>) -> Evidence {
        Evidence { connector: 7, log: true, version: "26.7.2.1".into(), tables: Some(tables) }
    }

    /// Whether `then` proves that the server recognises, with `now`.
    fn proves(then: Reached, now: Reached) -> bool {
        let age = Some(Duration::from_secs(5));
        let now = Reach::Tables(vec![now]);
        noted(vec![then]).lacks(&now, "26.7.2.1", age, Duration::from_secs(3)).is_none()
    }

    #[test]
    fn evidence_survives_its_bytes_and_nothing_else_is_evidence() {
        let evidence = noted(vec![table(1, 100, 7), Reached { seconds: 3_600, ..table(2, 5, 0) }]);
        let bytes = evidence.to_bytes();
        assert_eq!(Evidence::of(&bytes), Some(evidence.clone()));
        for cut in 1..bytes.len() {
            let cut_short = Evidence::of(&bytes.slice(..cut));
            assert!(cut_short.is_none_or(|read| read.tables != evidence.tables), "{cut}");
        }
        assert_eq!(Evidence::of(&Bytes::new()), None);
        assert_eq!(Evidence::of(&Bytes::from_static(b"\x02")), None);
        let many = noted((0..40).map(|n| table(n, 1, 1)).collect());
        assert!(many.to_bytes().is_empty(), "what does not fit is no evidence");
        let nothing = Evidence { log: false, tables: None, ..evidence };
        assert!(nothing.to_bytes().is_empty());
    }

    #[test]
    fn what_came_since_must_fit_the_smaller_window_with_room_to_spare() {
        for (then, now, since, proof) in [
            (100, 100, 0, true),
            (100, 100, 74, true),
            (100, 100, 75, false),
            (10, 10, 25, false),
            (100, 10, 25, false),
            (10, 100, 25, false),
            (1, 1, 0, true),
            (1, 1, 1, false),
            (0, 0, 0, false),
        ] {
            let (then, now) = (table(1, then, 5), table(1, now, 5 + since));
            assert_eq!(proves(then.clone(), now.clone()), proof, "{then:?} {now:?}");
        }
    }

    #[test]
    fn another_table_a_number_that_fell_and_dropped_parts_prove_nothing() {
        assert!(!proves(table(1, 100, 5), table(2, 100, 5)));
        assert!(!proves(table(1, 100, 5), table(1, 100, 4)));
        assert!(!proves(table(1, 100, 5), Reached { covers: false, ..table(1, 100, 6) }));
        assert!(proves(table(1, 100, 0), Reached { covers: false, ..table(1, 100, 1) }));
        let then = noted(vec![table(1, 100, 5)]);
        let age = Some(Duration::ZERO);
        let lacks = |now: &Reach, version: &str| then.lacks(now, version, age, Duration::ZERO);
        let more = Reach::Tables(vec![table(1, 100, 5), table(2, 100, 0)]);
        assert!(lacks(&more, "26.7.2.1").is_some(), "a view was added");
        let same = Reach::Tables(vec![table(1, 100, 5)]);
        assert!(lacks(&same, "26.7.2.1").is_none());
        assert!(lacks(&same, "26.8.1.1").is_some(), "another server");
        assert!(lacks(&Reach::NoTable, "26.7.2.1").is_some());
        assert!(lacks(&Reach::Lacks("x".into()), "26.7.2.1").is_some());
    }

    #[test]
    fn a_window_of_time_ends() {
        let timed = |seconds| Reach::Tables(vec![Reached { seconds, ..table(1, 100, 5) }]);
        let then = noted(vec![Reached { seconds: 60, ..table(1, 100, 5) }]);
        let patience = Duration::from_secs(10);
        let proves = |seconds, age: Option<u64>| {
            then.lacks(&timed(seconds), "26.7.2.1", age.map(Duration::from_secs), patience)
                .is_none()
        };
        assert!(proves(60, Some(49)) && !proves(60, Some(50)) && !proves(60, Some(100)));
        assert!(!proves(30, Some(20)), "the smaller of both");
        assert!(!proves(60, None), "when it was sent is not known");
    }
}
