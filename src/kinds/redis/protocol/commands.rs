//! The commands that Redis knows: arity, flags, and where the keys are.
//!
//! The table `commands/table.txt` is generated from a real server's `COMMAND` (a test compares the two
//! and rewrites the file where `FUSEBOX_REWRITE_COMMAND_TABLE=1`), so that commands can be read while
//! no server is up. What a newer server or a module adds is learnt at connect ([`Commands::learn`]);
//! the built-in rows stand above what is learnt.
//!
//! A row reads `name arity flags keys…`, each key specification `BEGIN:FIND` as the server describes
//! it: `i1` begins at argument 1, `kSTREAMS,1` after that word sought from argument 1; `r0,1,0` is a
//! range (last, step, limit), `n0,1,1` a count (its index, first key, step), `?` what cannot be told.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwapOption;

mod live;

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

    fn set(&mut self, flag: Self) {
        self.0 |= flag.0;
    }

    fn set_by_name(&mut self, name: &str) {
        if let Some((flag, _)) = Self::NAMES.iter().find(|(_, known)| *known == name) {
            self.set(*flag);
        }
    }
}

/// Where a key specification begins.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Begin {
    Index(usize),
    Keyword(Box<str>, i32),
    Unknown,
}

/// How the keys are found from there.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Find {
    Range { last: i32, step: usize, limit: i32 },
    Count { index: usize, first: usize, step: usize },
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct KeySpec {
    begin: Begin,
    find: Find,
}

impl KeySpec {
    const UNKNOWN: Self = Self { begin: Begin::Unknown, find: Find::Unknown };

    /// Appends the keys' positions in `args`; `None` where they cannot be told.
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
    /// The number of words that it takes, its name included; at least so many where negative.
    pub(crate) arity: i32,
    pub(crate) flags: Flags,
    keys: Box<[KeySpec]>,
}

impl Spec {
    /// The positions of the keys in `args`; `None` where they cannot be told.
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

    fn parse(row: &str) -> Option<Self> {
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

type Table = HashMap<Box<str>, Arc<Spec>>;

static BUILT_IN: LazyLock<Table> = LazyLock::new(|| {
    let rows = include_str!("commands/table.txt").lines().filter(|row| !row.starts_with('#'));
    table(rows.filter_map(Spec::parse))
});

fn table(specs: impl Iterator<Item = Spec>) -> Table {
    specs.map(|spec| (spec.name.clone(), Arc::new(spec))).collect()
}

/// Whether `name`, in lower case, is a command of the server's own.
pub(crate) fn is_built_in(name: &str) -> bool {
    BUILT_IN.contains_key(name)
}

/// The longest name of a command, in bytes.
const NAME_MAX: usize = 64;

/// The built-in commands and what the server has added to them.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    learnt: ArcSwapOption<Table>,
    /// How often a server has told its commands.
    told: AtomicU64,
}

impl Commands {
    /// The command that `args` call; the container itself where its own command is not known.
    pub(crate) fn find(&self, args: &[&[u8]]) -> Option<Arc<Spec>> {
        let (mut room, mut inner_room) = ([0; NAME_MAX], [0; NAME_MAX]);
        let word = lowercase(args.first()?, &mut room)?;
        let learnt = self.learnt.load();
        let find = |name: &str| {
            BUILT_IN.get(name).or_else(|| learnt.as_ref().and_then(|table| table.get(name)))
        };
        let spec = find(word)?;
        if spec.flags.has(Flags::CONTAINER)
            && let Some(inner) = args.get(1).and_then(|arg| lowercase(arg, &mut inner_room))
            && let Some(inner) = find(&format!("{word}|{inner}"))
        {
            return Some(Arc::clone(inner));
        }
        Some(Arc::clone(spec))
    }

    /// Whether a server has told its commands.
    pub(crate) fn has_learnt(&self) -> bool {
        self.learnt.load().is_some()
    }

    /// Takes the commands of a server's reply to `COMMAND`.
    pub(crate) fn learn(&self, reply: &[u8]) {
        self.learnt.store(Some(Arc::new(table(live::specs(reply).into_iter()))));
        self.told.fetch_add(1, Ordering::Release);
    }

    /// How often a server has told its commands: what was read by another number may read otherwise now.
    pub(crate) fn edition(&self) -> u64 {
        self.told.load(Ordering::Acquire)
    }
}

/// A name in lower case; `None` for what cannot be a command's name.
fn lowercase<'r>(word: &[u8], room: &'r mut [u8; NAME_MAX]) -> Option<&'r str> {
    let room = room.get_mut(..word.len())?;
    room.copy_from_slice(word);
    room.make_ascii_lowercase();
    std::str::from_utf8(room).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::redis::testing::Server;

    #[track_caller]
    fn keys(command: &str) -> Option<Vec<usize>> {
        let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        Commands::default().find(&args).expect("a known command").keys(&args)
    }

    #[test]
    fn keys_are_where_the_specification_says() {
        assert_eq!(keys("GET k"), Some(vec![1]));
        assert_eq!(keys("mset a 1 b 2"), Some(vec![1, 3]));
        assert_eq!(keys("DEL a b c"), Some(vec![1, 2, 3]));
        assert_eq!(keys("EVAL s 2 a b arg"), Some(vec![3, 4]));
        assert_eq!(keys("EVAL s 0"), Some(vec![]));
        assert_eq!(keys("EVAL s 9 a"), None);
        assert_eq!(keys("EVAL s x a"), None);
        assert_eq!(keys("XREAD COUNT 1 STREAMS a b 0 0"), Some(vec![4, 5]));
        assert_eq!(keys("ZUNIONSTORE d 2 a b WEIGHTS 1 2"), Some(vec![1, 3, 4]));
        assert_eq!(keys("GEORADIUS g 1 1 1 m STORE d"), Some(vec![1, 7]));
        assert_eq!(keys("GEORADIUS g 1 1 1 m"), Some(vec![1]));
        assert_eq!(keys("OBJECT ENCODING k"), Some(vec![2]));
        assert_eq!(keys("PING"), Some(vec![]));
        assert_eq!(keys("BITOP AND d a b"), Some(vec![2, 3, 4]));
        assert_eq!(keys("SORT k"), None);
        assert_eq!(keys("MIGRATE h 1 k 0 5"), None);
        assert_eq!(keys("COPY a b"), Some(vec![1, 2]));
        assert_eq!(keys("ZUNIONSTORE d 0"), Some(vec![1]));
    }

    #[test]
    fn arity_counts_the_name() {
        let spec = |name: &[u8]| Commands::default().find(&[name]).unwrap();
        assert!(spec(b"get").takes(2) && !spec(b"get").takes(3));
        assert!(spec(b"SET").takes(3) && spec(b"SET").takes(9) && !spec(b"SET").takes(2));
    }

    #[test]
    fn every_row_is_read_as_it_was_written() {
        let rows = include_str!("commands/table.txt").lines().filter(|row| !row.starts_with('#'));
        let mut count = 0;
        for row in rows {
            assert_eq!(Spec::parse(row).map(|spec| spec.to_string()).as_deref(), Some(row));
            count += 1;
        }
        assert!(count > 300, "{count} rows");
    }

    /// `FUSEBOX_REWRITE_COMMAND_TABLE=1` writes the file anew from the server that is installed.
    #[tokio::test]
    async fn the_table_matches_a_real_server() {
        let server = Server::start().await;
        let reply = server.ask(&["COMMAND"]).await;
        let mut rows: Vec<String> = live::specs(&reply).iter().map(Spec::to_string).collect();
        rows.sort_unstable();
        let head = format!("# COMMAND of Redis {}", server.version().await);
        let text = format!("{head}\n{}\n", rows.join("\n"));
        if std::env::var_os("FUSEBOX_REWRITE_COMMAND_TABLE").is_some() {
            let file =
                concat!(env!("CARGO_MANIFEST_DIR"), "/src/kinds/redis/protocol/commands/table.txt");
            std::fs::write(file, &text).unwrap();
            return;
        }
        let built_in = include_str!("commands/table.txt");
        if built_in.starts_with(&head) {
            assert_eq!(built_in, text, "rewrite the table, see this test's doc");
            return;
        }
        // Another version than the table's: what both know must agree in what decides a call's fate.
        for spec in live::specs(&reply) {
            let Some(known) = BUILT_IN.get(&spec.name) else { continue };
            for flag in [Flags::WRITE, Flags::READONLY] {
                assert_eq!(known.flags.has(flag), spec.flags.has(flag), "{}", spec.name);
            }
        }
    }

    #[tokio::test]
    async fn a_server_adds_commands_and_changes_none() {
        let commands = Commands::default();
        assert!(!commands.has_learnt() && commands.find(&[b"x.new"]).is_none());
        commands.learn(b"*2\r\n*6\r\n+x.new\r\n:-3\r\n*2\r\n+write\r\n+denyoom\r\n:1\r\n:-1\r\n:2\r\n*6\r\n+get\r\n:9\r\n*0\r\n:0\r\n:0\r\n:0\r\n");
        let args: [&[u8]; 5] = [b"X.NEW", b"a", b"1", b"b", b"2"];
        let spec = commands.find(&args).unwrap();
        assert!(spec.flags.has(Flags::WRITE));
        assert_eq!(spec.keys(&args), Some(vec![1, 3]));
        assert_eq!(commands.find(&[b"get"]).unwrap().arity, 2);
    }
}
