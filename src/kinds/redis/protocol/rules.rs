//! Which commands are carried at all, and what kind of call each is.

use fusebox_actors::connector::Refused;

use super::commands::{Flags, Spec};

/// What kind of call a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Reads keys.
    Read,
    /// Runs a script or a function, which may touch the keys that it declares and no others.
    Script {
        /// It may only read.
        reads: bool,
    },
    /// Reads what is not a key.
    Look,
    /// Writes keys.
    Write,
    /// Reaches those who listen now; touches no key.
    Publish,
    /// A write that may touch anything, and is never queued for this reason.
    Barrier(&'static str),
}

/// The kind of `spec`'s calls.
pub(crate) fn kind(spec: &Spec) -> Kind {
    match &*spec.name {
        "publish" | "spublish" => Kind::Publish,
        "eval" | "evalsha" | "fcall" => Kind::Script { reads: false },
        "eval_ro" | "evalsha_ro" | "fcall_ro" => Kind::Script { reads: true },
        "flushall" | "flushdb" => Kind::Barrier("it removes every key"),
        "swapdb" => Kind::Barrier("it replaces every key"),
        "script|exists" | "function|list" | "function|dump" | "function|stats" => Kind::Look,
        name if name.starts_with("script") || name.starts_with("function") => {
            Kind::Barrier("it changes the server's scripts for all clients")
        }
        name if LOOKS.contains(&name) || name.ends_with("|help") => Kind::Look,
        _ if spec.flags.has(Flags::WRITE) => Kind::Write,
        _ if spec.flags.has(Flags::READONLY) => Kind::Read,
        _ => Kind::Barrier("it changes the server"),
    }
}

/// Whether `spec`'s calls need admin rights.
pub(crate) fn admin(spec: &Spec) -> bool {
    // The server does not mark all that is within these; MIGRATE sends keys to any server that its
    // caller names.
    const MORE: [&str; 9] = [
        "acl", "cluster", "config", "debug", "latency", "migrate", "module", "shutdown", "slowlog",
    ];
    let family = spec.name.split('|').next().unwrap_or_default();
    spec.flags.has(Flags::ADMIN) || MORE.contains(&family)
}

/// Commands without keys that change nothing, though the server does not mark them as reads.
const LOOKS: [&str; 56] = [
    "acl|cat",
    "acl|dryrun",
    "acl|genpass",
    "acl|getuser",
    "acl|list",
    "acl|log",
    "acl|users",
    "acl|whoami",
    "client|getname",
    "client|getredir",
    "client|id",
    "client|info",
    "client|list",
    "client|trackinginfo",
    "cluster|count-failure-reports",
    "cluster|countkeysinslot",
    "cluster|getkeysinslot",
    "cluster|info",
    "cluster|keyslot",
    "cluster|links",
    "cluster|myid",
    "cluster|nodes",
    "cluster|replicas",
    "cluster|shards",
    "cluster|slaves",
    "cluster|slots",
    "command",
    "command|count",
    "command|docs",
    "command|getkeys",
    "command|getkeysandflags",
    "command|info",
    "command|list",
    "config|get",
    "echo",
    "info",
    "lastsave",
    "latency|doctor",
    "latency|graph",
    "latency|histogram",
    "latency|history",
    "latency|latest",
    "memory|doctor",
    "memory|malloc-stats",
    "memory|stats",
    "module|list",
    "ping",
    "pubsub|channels",
    "pubsub|numpat",
    "pubsub|numsub",
    "pubsub|shardchannels",
    "pubsub|shardnumsub",
    "role",
    "slowlog|get",
    "slowlog|len",
    "time",
];

/// Refuses what cannot share a connection with other callers.
pub(crate) fn check(spec: &Spec, args: &[&[u8]]) -> Result<(), Refused> {
    let name = &*spec.name;
    let refuse = |code, why: &str| {
        let shown = name.replace('|', " ").to_ascii_uppercase();
        Err(Refused { code, message: format!("{shown} is refused: {why}"), malformed: false })
    };
    match name {
        "select" => {
            return refuse("unsupported_command", "the database is set in the configuration");
        }
        "multi" | "exec" | "discard" | "watch" | "unwatch" => {
            let why = "transactions need a connection of their own; a script (EVAL) is one call";
            return refuse("unsupported_command", why);
        }
        "subscribe" | "psubscribe" | "ssubscribe" | "unsubscribe" | "punsubscribe"
        | "sunsubscribe" | "monitor" => {
            return refuse("unsupported_command", "a subscription needs a connection of its own");
        }
        "auth" | "hello" | "reset" | "quit" | "readonly" | "readwrite" | "asking" | "sync"
        | "psync" | "replconf" | "restore-asking" | "client" | "client|reply"
        | "client|setname" | "client|setinfo" | "client|tracking" | "client|caching"
        | "client|no-evict" | "client|no-touch" | "script|debug" => {
            return refuse(
                "unsupported_command",
                "it changes the connection, which all callers share",
            );
        }
        _ => {}
    }
    if blocks(spec, args) {
        return refuse("unsupported_command", "it blocks a connection that all callers share");
    }
    Ok(())
}

/// Whether the call may wait for others: `XREAD` and its like do so only with their word for it.
pub(crate) fn blocks(spec: &Spec, args: &[&[u8]]) -> bool {
    if !spec.flags.has(Flags::BLOCKING) && !matches!(&*spec.name, "wait" | "waitaof") {
        return false;
    }
    if !matches!(&*spec.name, "xread" | "xreadgroup") {
        return true;
    }
    // What follows GROUP and COUNT is not an option, whatever its name.
    let mut words = args.iter().skip(1);
    while let Some(word) = words.next() {
        match word.to_ascii_uppercase().as_slice() {
            b"BLOCK" => return true,
            b"STREAMS" => return false,
            b"GROUP" => drop(words.by_ref().nth(1)),
            b"COUNT" => drop(words.next()),
            _ => {}
        }
    }
    false
}
