//! What a door does with a command.
//!
//! Each command has exactly one class; a test goes through the whole table.
//!
//! | class | commands |
//! | --- | --- |
//! | local | the connection's own: HELLO, AUTH, CLIENT SETNAME …, ECHO, QUIT, RESET, COMMAND |
//! | pinned | what belongs to one connection: transactions, blocking commands, subscriptions, MONITOR, other databases |
//! | refused | what no door can offer: replication, client-side caching |
//! | carried | everything else, over a connection that all clients share |

use crate::kinds::redis::protocol::{
    commands::{Flags, Spec},
    rules,
};

/// What a door does with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The door answers it, whatever the backend's state.
    Local(Local),
    /// It needs an upstream of its own for this client.
    Pinned(Pinned),
    /// It is not offered, for this reason.
    Refused(&'static str),
    /// It goes over the shared connection.
    Carried,
}

/// What the door answers by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Local {
    Hello,
    Auth,
    Select,
    SetName,
    GetName,
    SetInfo,
    Id,
    Info,
    /// It lists the door's clients.
    List,
    Reply,
    /// Answered with `+OK`: it would change how a server treats the connection.
    Ok,
    Echo,
    Quit,
    Reset,
}

/// Why a client needs an upstream of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pinned {
    Multi,
    Exec,
    Discard,
    Watch,
    Unwatch,
    /// It may wait for others.
    Blocks,
    Subscribes,
    Monitors,
}

impl Class {
    /// Whether it says how a client wants to be spoken to, or who it is: the door's connection to the server is
    /// another.
    pub(super) fn is_of_the_doors_connection(self) -> bool {
        use self::Local as L;
        match self {
            Self::Local(local) => !matches!(local, L::Select | L::Echo | L::Quit | L::Reset),
            Self::Pinned(Pinned::Subscribes | Pinned::Monitors) => true,
            _ => false,
        }
    }
}

/// Whether a call of that class may change data.
pub(super) fn writes(spec: &Spec, class: Class) -> bool {
    let writes = match rules::kind(spec) {
        // Others act on it, though no data change.
        _ if matches!(&*spec.name, "publish" | "spublish") => true,
        rules::Kind::Write | rules::Kind::Barrier(_) => true,
        rules::Kind::Script { reads } => !reads,
        _ => false,
    };
    matches!(class, Class::Pinned(Pinned::Blocks) | Class::Carried) && writes
}

/// What needs admin rights at a door. CONFIG GET and what reads a cluster's layout are asked by stock clients; FLUSHALL
/// and FLUSHDB are how cache frameworks clear.
pub(super) fn needs_admin(spec: &Spec) -> bool {
    const CLIENTS: [&str; 3] = ["client|list", "config|get", "lastsave"];
    const ADMINS: [&str; 5] =
        ["client|kill", "client|pause", "client|unpause", "monitor", "swapdb"];
    let name = &*spec.name;
    // Of CLUSTER, the server marks what changes something.
    let looks = CLIENTS.contains(&name)
        || name.starts_with("cluster|") && !spec.flags.has(Flags::ADMIN)
        || name.ends_with("|help");
    ADMINS.contains(&name) || rules::admin(spec) && !looks
}

/// Whether a command ends what keeps the server from reading on: a script or a pause. On a connection that others share
/// it would wait behind the very command that it is to release.
pub(super) fn releases(spec: &Spec) -> bool {
    matches!(&*spec.name, "script|kill" | "function|kill" | "client|unpause")
}

/// The class of what a connection says of itself, also if the table's server does not know it.
pub(super) fn of_connection(args: &[&[u8]]) -> Option<Class> {
    let [name, inner, ..] = args else { return None };
    if !name.eq_ignore_ascii_case(b"CLIENT") {
        return None;
    }
    match inner.to_ascii_lowercase().as_slice() {
        b"setinfo" => Some(Class::Local(Local::SetInfo)),
        b"no-touch" => Some(Class::Local(Local::Ok)),
        _ => None,
    }
}

/// The class of `spec`'s call with `args`.
pub(super) fn of(spec: &Spec, args: &[&[u8]]) -> Class {
    use self::{Local as L, Pinned as P};
    match &*spec.name {
        "hello" => Class::Local(L::Hello),
        "auth" => Class::Local(L::Auth),
        "select" => Class::Local(L::Select),
        "client|setname" => Class::Local(L::SetName),
        "client|getname" => Class::Local(L::GetName),
        "client|setinfo" => Class::Local(L::SetInfo),
        "client|id" => Class::Local(L::Id),
        "client|info" => Class::Local(L::Info),
        "client|list" => Class::Local(L::List),
        "client|reply" => Class::Local(L::Reply),
        "client|no-evict" | "client|no-touch" | "readonly" | "readwrite" => Class::Local(L::Ok),
        "echo" => Class::Local(L::Echo),
        "quit" => Class::Local(L::Quit),
        "reset" => Class::Local(L::Reset),
        "multi" => Class::Pinned(P::Multi),
        "exec" => Class::Pinned(P::Exec),
        "discard" => Class::Pinned(P::Discard),
        "watch" => Class::Pinned(P::Watch),
        "unwatch" => Class::Pinned(P::Unwatch),
        "monitor" => Class::Pinned(P::Monitors),
        "subscribe" | "psubscribe" | "ssubscribe" | "unsubscribe" | "punsubscribe"
        | "sunsubscribe" => Class::Pinned(P::Subscribes),
        "sync" | "psync" | "replconf" => Class::Refused("a door is not a replication source"),
        "asking" | "restore-asking" => Class::Refused("a door is not part of a cluster"),
        "client|tracking" | "client|caching" | "client|getredir" | "client|trackinginfo" => {
            Class::Refused("client-side caching")
        }
        "script|debug" => Class::Refused("a script is debugged on the server itself"),
        _ if rules::blocks(spec, args) => Class::Pinned(P::Blocks),
        _ => Class::Carried,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::redis::protocol::{commands, plan::Context, resp};

    fn class(command: &str) -> Class {
        let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        of(&commands::Commands::default().find(&args).expect(command), &args)
    }

    #[test]
    fn every_command_of_the_table_that_is_carried_can_be_planned() {
        let (all, deadlines) = (
            commands::Commands::default(),
            crate::kinds::redis::protocol::deadlines::Deadlines::new("0"),
        );
        let context = Context {
            commands: &all,
            database: b"0",
            on_miss_error: false,
            scripts_are_barriers: false,
            resp3: true,
            deadlines: &deadlines,
        };
        let mut carried = 0;
        for row in include_str!("../protocol/commands/table.txt").lines() {
            let Some(name) = row.split(' ').next().filter(|name| !name.starts_with('#')) else {
                continue;
            };
            let args: Vec<&[u8]> = name.split('|').map(str::as_bytes).collect();
            let Some(spec) = all.find(&args) else { continue };
            if of(&spec, &args) != Class::Carried {
                continue;
            }
            carried += 1;
            let words = usize::try_from(spec.arity.unsigned_abs()).unwrap().max(args.len());
            let mut args = args;
            args.resize(words, b"1");
            let planned = crate::kinds::redis::protocol::plan::plan(resp::command(&args), &context);
            // A container without its command is refused by everybody.
            if !matches!(name, "client" | "object" | "xinfo" | "memory") {
                assert!(planned.is_ok(), "{name}: {:?}", planned.err());
            }
        }
        assert!(carried > 250, "{carried}");
    }

    #[test]
    fn what_belongs_to_a_connection_is_pinned() {
        for command in ["BLPOP k 0", "XREAD BLOCK 0 STREAMS s 0", "WAIT 1 1", "BZPOPMIN k 0"] {
            assert_eq!(class(command), Class::Pinned(Pinned::Blocks), "{command}");
        }
        assert_eq!(class("XREAD COUNT 1 STREAMS s 0"), Class::Carried);
        assert_eq!(class("MULTI"), Class::Pinned(Pinned::Multi));
        assert_eq!(class("SUBSCRIBE c"), Class::Pinned(Pinned::Subscribes));
        for command in ["GET k", "EVAL s 0", "PUBLISH c m", "INFO", "CONFIG GET x", "FLUSHALL"] {
            assert_eq!(class(command), Class::Carried, "{command}");
        }
    }

    #[test]
    fn clients_may_ask_what_stock_clients_ask() {
        let admin = |command: &str| {
            let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
            needs_admin(&commands::Commands::default().find(&args).expect(command))
        };
        for command in ["CONFIG GET x", "CLUSTER INFO", "FLUSHALL", "FLUSHDB", "GET k", "INFO"] {
            assert!(!admin(command), "{command}");
        }
        let reads = [
            "INFO",
            "MYID",
            "NODES",
            "SHARDS",
            "SLOTS",
            "KEYSLOT k",
            "COUNTKEYSINSLOT 1",
            "GETKEYSINSLOT 1 1",
            "LINKS",
            "HELP",
        ];
        for read in reads {
            assert!(!admin(&format!("CLUSTER {read}")), "{read}");
        }
        for change in
            ["ADDSLOTS 1", "MEET a 1", "RESET", "FAILOVER", "SETSLOT 1 NODE x", "FORGET x"]
        {
            assert!(admin(&format!("CLUSTER {change}")), "{change}");
        }
        for command in ["CONFIG SET a b", "CLIENT KILL x", "MONITOR", "SHUTDOWN", "SWAPDB 0 1"] {
            assert!(admin(command), "{command}");
        }
    }
}
