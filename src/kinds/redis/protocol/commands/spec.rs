//! What is known of one command, and how a row of the table says it.
//!
//! A row reads `name arity flags keys…`, each key specification `BEGIN:FIND` as the server describes
//! it: `i1` begins at argument 1, `kSTREAMS,1` after that word sought from argument 1; `r0,1,0` is a
//! range (last, step, limit), `n0,1,1` a count (its index, first key, step), `?` what is not known.

use std::fmt;

/// Flags of a command, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(u16);

impl Flags {
    pub(crate) const WRITE: Self = Self(1);
    pub(crate) const READONLY: Self = Self(2);
    pub(crate) const ADMIN: Self = Self(4);
    pub(crate) const BLOCKING: Self = Self(8);
    pub(crate) const PUBSUB: Self = Self(16);
    /// The same command gives different replies without a write in between.
    pub(crate) const RANDOM: Self = Self(32);
    /// Its first argument names a command of its own.
    pub(crate) const CONTAINER: Self = Self(64);
    /// No script may call it.
    pub(crate) const NO_SCRIPT: Self = Self(128);

    const NAMES: [(Self, &'static str); 8] = [
        (Self::WRITE, "write"),
        (Self::READONLY, "readonly"),
        (Self::ADMIN, "admin"),
        (Self::BLOCKING, "blocking"),
        (Self::PUBSUB, "pubsub"),
        (Self::RANDOM, "random"),
        (Self::CONTAINER, "container"),
        (Self::NO_SCRIPT, "noscript"),
    ];

    pub(crate) fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }

    pub(super) fn set(&mut self, flag: Self) {
        self.0 |= flag.0;
    }

    /// Adds the flag that the server calls `name`, if it is one of these.
    pub(super) fn set_by_name(&mut self, name: &str) {
        if let Some((flag, _)) = Self::NAMES.iter().find(|(_, known)| *known == name) {
            self.set(*flag);
        }
    }
}

/// The beginning of a key specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    Index(usize),
    Keyword(Box<str>, i32),
    Unknown,
}

/// How the keys are found from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Find {
    Range { last: i32, step: usize, limit: i32 },
    Count { index: usize, first: usize, step: usize },
    Unknown,
}

/// The positions of some of a command's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeySpec {
    pub(super) begin: Begin,
    pub(super) find: Find,
}

impl KeySpec {
    pub(super) const UNKNOWN: Self = Self { begin: Begin::Unknown, find: Find::Unknown };

    /// Appends the keys' positions in `args`; `None` if they are not known.
    fn positions(&self, args: &[&[u8]], out: &mut Vec<usize>) -> Option<()> {
        let first = match &self.begin {
            Begin::Index(index) => *index,
            Begin::Keyword(word, from) => {
                let is_word = |arg: &&[u8]| arg.eq_ignore_ascii_case(word.as_bytes());
                let found = match usize::try_from(*from) {
                    Ok(from) => args.iter().skip(from).position(is_word).map(|at| at + from),
                    Err(_) => args.iter().rposition(is_word),
                };
                // An optional word that is not there announces no keys.
                let Some(found) = found else { return Some(()) };
                found + 1
            }
            Begin::Unknown => return None,
        };
        let (first, last, step) = match self.find {
            Find::Range { last, step, .. } if last >= 0 => {
                (first, first + usize::try_from(last).ok()?, step)
            }
            Find::Range { last, step, limit } => {
                let behind = args.len().checked_sub(first)?;
                let behind = if limit > 1 { behind / usize::try_from(limit).ok()? } else { behind };
                (first, (first + behind).checked_add_signed(isize::try_from(last).ok()?)?, step)
            }
            Find::Count { index, first: skip, step } => {
                let count = std::str::from_utf8(args.get(first + index)?).ok()?;
                let count: usize = count.parse().ok().filter(|count| *count <= args.len())?;
                let Some(more) = count.checked_sub(1) else { return Some(()) };
                (first + skip, first + skip + more * step, step)
            }
            Find::Unknown => return None,
        };
        if last >= args.len() || step == 0 {
            return None;
        }
        out.extend((first..=last).step_by(step));
        Some(())
    }
}

/// What is known of one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    /// In lower case; a command within a container is `container|command`.
    pub(crate) name: Box<str>,
    /// The number of words that it takes, its name included; at least so many if negative.
    pub(crate) arity: i32,
    pub(crate) flags: Flags,
    pub(super) keys: Box<[KeySpec]>,
}

impl Spec {
    /// The positions of the keys in `args`; `None` if they are not known.
    pub(crate) fn keys(&self, args: &[&[u8]]) -> Option<Vec<usize>> {
        let mut positions = Vec::new();
        for spec in &self.keys {
            spec.positions(args, &mut positions)?;
        }
        Some(positions)
    }

    /// Whether `count` words are as many as it takes.
    pub(crate) fn takes(&self, count: usize) -> bool {
        let words = usize::try_from(self.arity.unsigned_abs()).unwrap_or(usize::MAX);
        if self.arity < 0 { count >= words } else { count == words }
    }

    /// Reads a row of the table.
    pub(super) fn parse(row: &str) -> Option<Self> {
        let mut words = row.split(' ');
        let mut spec = Self {
            name: words.next()?.into(),
            arity: words.next()?.parse().ok()?,
            flags: Flags::default(),
            keys: Box::default(),
        };
        words.next()?.split(',').for_each(|flag| spec.flags.set_by_name(flag));
        spec.keys = words.map(parse_keys).collect::<Option<_>>()?;
        Some(spec)
    }
}

fn parse_keys(word: &str) -> Option<KeySpec> {
    if word == "?" {
        return Some(KeySpec::UNKNOWN);
    }
    let (begin, find) = word.split_once(':')?;
    let begin = match begin.split_at_checked(1)? {
        ("i", index) => Begin::Index(index.parse().ok()?),
        ("k", rest) => {
            let (keyword, from) = rest.split_once(',')?;
            Begin::Keyword(keyword.into(), from.parse().ok()?)
        }
        _ => return None,
    };
    let (kind, numbers) = find.split_at_checked(1)?;
    let mut numbers = numbers.split(',');
    let (a, b, c) = (numbers.next()?, numbers.next()?, numbers.next()?);
    let find = match kind {
        "r" => Find::Range { last: a.parse().ok()?, step: b.parse().ok()?, limit: c.parse().ok()? },
        "n" => {
            Find::Count { index: a.parse().ok()?, first: b.parse().ok()?, step: c.parse().ok()? }
        }
        _ => return None,
    };
    Some(KeySpec { begin, find })
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.name, self.arity)?;
        let mut names = Flags::NAMES.iter().filter(|(flag, _)| self.flags.has(*flag));
        write!(f, "{}", names.next().map_or("-", |(_, name)| name))?;
        for (_, name) in names {
            write!(f, ",{name}")?;
        }
        for KeySpec { begin, find } in &self.keys {
            match begin {
                Begin::Index(index) => write!(f, " i{index}:")?,
                Begin::Keyword(word, from) => write!(f, " k{word},{from}:")?,
                Begin::Unknown => write!(f, " ")?,
            }
            match find {
                Find::Range { last, step, limit } => write!(f, "r{last},{step},{limit}")?,
                Find::Count { index, first, step } => write!(f, "n{index},{first},{step}")?,
                Find::Unknown => write!(f, "?")?,
            }
        }
        Ok(())
    }
}
