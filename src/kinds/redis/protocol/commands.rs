//! The commands that Redis knows: arity, flags, and the positions of the keys.
//!
//! The table `commands/table.txt` is generated from a real server's `COMMAND` (a test compares the two
//! and rewrites the file if `FUSEBOX_REWRITE_COMMAND_TABLE=1`), so that commands can be read while
//! no server is up. What a newer server or a module adds is learnt at connect ([`Commands::learn`]);
//! the built-in rows override what is learnt.

use std::{
    collections::HashMap,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwapOption;

mod live;
mod spec;

pub(crate) use spec::{Flags, Spec};

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
    /// How often a server has listed its commands.
    told: AtomicU64,
}

impl Commands {
    /// The command that `args` call; the container itself if its own command is not known.
    pub(crate) fn find(&self, args: &[&[u8]]) -> Option<Arc<Spec>> {
        let (mut room, mut inner_room) = ([0; NAME_MAX], [0; NAME_MAX]);
        let word = lowercase(args.first()?, &mut room)?;
        let learnt = self.learnt.load();
        let find = |name: &str| {
            BUILT_IN.get(name).or_else(|| learnt.as_ref().and_then(|table| table.get(name)))
        };
        // `config|get` is how the table names CONFIG GET, and no command that a server knows.
        let spec = find(word).filter(|_| !word.contains('|'))?;
        if spec.flags.has(Flags::CONTAINER)
            && let Some(inner) = args.get(1).and_then(|arg| lowercase(arg, &mut inner_room))
            && let Some(inner) = find(&format!("{word}|{inner}"))
        {
            return Some(Arc::clone(inner));
        }
        Some(Arc::clone(spec))
    }

    /// The names of all commands of the server, as it has listed them last; the built-in ones before that. A command
    /// within a container is `container|command`.
    pub(crate) fn names(&self) -> Vec<Box<str>> {
        let learnt = self.learnt.load();
        let table = learnt.as_deref().unwrap_or(&BUILT_IN);
        table.keys().cloned().collect()
    }

    /// Whether a server has listed its commands.
    pub(crate) fn has_learnt(&self) -> bool {
        self.learnt.load().is_some()
    }

    /// Takes the commands of a server's reply to `COMMAND`.
    pub(crate) fn learn(&self, reply: &[u8]) {
        self.learnt.store(Some(Arc::new(table(live::specs(reply).into_iter()))));
        self.told.fetch_add(1, Ordering::Release);
    }

    /// How often a server has listed its commands: what was read by another number may read otherwise now.
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
    fn the_name_of_a_subcommand_in_the_table_is_no_command() {
        let known = |args: &[&[u8]]| Commands::default().find(args).map(|spec| spec.name.clone());
        assert_eq!(known(&[b"CONFIG", b"GET", b"x"]).as_deref(), Some("config|get"));
        assert_eq!(known(&[b"CONFIG|GET", b"x"]), None);
        assert_eq!(known(&[b"CONFIG", b"GET|x"]).as_deref(), Some("config"));
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

    /// `FUSEBOX_REWRITE_COMMAND_TABLE=1` rewrites the file from the server that is installed.
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
