//! Reads what a command is: its lanes, whether it reads or writes, and what follows from that.

use bytes::{Bytes, BytesMut};
use fusebox_actors::connector::{Access, Outage, Plan, Read, Refused, Write};
use fusebox_state::{LaneId, Lanes};

use super::{
    cache,
    commands::{Commands, Spec},
    deadlines::{Deadlines, Written},
    effect,
    internal::{self, Form},
    resp,
    rules::{self, Kind},
    token, ttl,
};

/// The longest label that is worth making; more of it is not stored.
const LABEL_MAX: usize = 256;
/// The same of a transaction, which may have many keys.
const MULTI_LABEL_MAX: usize = 48;

/// What planning must know besides the command.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) commands: &'a Commands,
    /// The database's number, which is part of every lane.
    pub(crate) database: &'a [u8],
    pub(crate) on_miss_error: bool,
    /// Whether a script locks every lane rather than its declared keys.
    pub(crate) scripts_are_barriers: bool,
    /// Whether the server speaks RESP3 with us.
    pub(crate) resp3: bool,
    pub(crate) deadlines: &'a Deadlines,
}

impl Context<'_> {
    /// The lane of `key`.
    pub(crate) fn lane(&self, key: &[u8]) -> LaneId {
        LaneId::of(self.database, key)
    }
}

/// Reads what `body` is.
pub(crate) fn plan(body: Bytes, context: &Context<'_>) -> Result<Plan, Refused> {
    let plan = if internal::is_multi(&body) {
        transaction(&body, context)?
    } else {
        let args = resp::arguments(&body).map_err(|error| malformed(error.to_string()))?;
        command(&args, context)?
    };
    Ok(Plan { body, ..plan })
}

fn malformed(message: impl Into<String>) -> Refused {
    Refused { code: "malformed_command", message: message.into(), malformed: true }
}

/// What a transaction is, without its body: its commands together. It is queued if what each of them does is known.
///
/// It is never absolute, whatever its commands are: of `EXPIRE k 9` and `HSET k f v`, the first does nothing if there
/// is no `k`, and does something when both are applied again.
fn transaction(body: &[u8], context: &Context<'_>) -> Result<Plan, Refused> {
    let steps = match Form::of(body) {
        Some(Form::Multi(steps)) if !steps.is_empty() => steps,
        _ => return Err(malformed("it is not a transaction")),
    };
    let mut label = String::new();
    let (mut lanes, mut all, mut admin) = (Vec::new(), false, false);
    let mut replies = BytesMut::new();
    resp::write_head(&mut replies, '*', steps.len());
    let mut outage = Ok(true);
    let mut timed = false;
    for step in &steps {
        let plan = command(&step.args, context)?;
        if label.len() < MULTI_LABEL_MAX {
            label.extend([if label.is_empty() { "" } else { " " }, &plan.label]);
        } else if !label.ends_with('…') {
            label.push_str(" …");
        }
        lanes.extend_from_slice(plan.lanes.as_slice());
        all |= plan.lanes.is_all();
        admin |= plan.admin;
        outage = match (outage, plan.access) {
            (Err(why), _) => Err(why),
            (Ok(_), Access::Read(_)) => Err("a transaction that reads is not queued"),
            (Ok(_), Access::Write(_)) if step.args.len() > token::WORDS_MAX => {
                Err("one of its commands has more than 7,000 words, too many for a script")
            }
            (Ok(is_known), Access::Write(write)) => {
                timed |= write.timed;
                match write.outage {
                    Outage::ReplyKnown(reply) => {
                        replies.extend_from_slice(&reply);
                        Ok(is_known)
                    }
                    Outage::EffectKnown => Ok(false),
                    Outage::EffectUnknown => {
                        Err("fusebox does not know what one of its commands does")
                    }
                    Outage::Never(why) => Err(why),
                }
            }
        };
    }
    let outage = match outage {
        Ok(true) => Outage::ReplyKnown(replies.freeze()),
        Ok(false) => Outage::EffectKnown,
        Err(why) => Outage::Never(why),
    };
    let settled_reply = matches!(outage, Outage::ReplyKnown(_));
    let write = Write { timed, settled_reply, ..Write::new(outage) };
    let lanes = if all { Lanes::All } else { Lanes::new(lanes) };
    Ok(Plan { body: Bytes::new(), label, lanes, admin, access: Access::Write(write) })
}

/// What a command is, without its body.
fn command(args: &[&[u8]], context: &Context<'_>) -> Result<Plan, Refused> {
    if internal::is_reserved(args) {
        return Err(unknown(args, context.commands));
    }
    let spec = context.commands.find(args).ok_or_else(|| unknown(args, context.commands))?;
    rules::check(&spec, args)?;
    if !spec.takes(args.len()) {
        return Err(wrong_arity(&spec, args.len()));
    }
    let places = spec.keys(args);
    let keys: Option<Vec<&[u8]>> = places
        .as_ref()
        .map(|places| places.iter().filter_map(|place| args.get(*place).copied()).collect());
    let (lanes, access) = match rules::kind(&spec) {
        Kind::Look => (Lanes::new([]), look()),
        Kind::Publish => {
            (Lanes::new([]), never("a message reaches only clients that are subscribed now"))
        }
        Kind::Barrier(why) => (Lanes::All, never(why)),
        Kind::Script { reads } => {
            let access = if reads {
                read(Vec::new(), None)
            } else {
                never("fusebox does not know what the script writes")
            };
            match &keys {
                Some(keys) if !context.scripts_are_barriers => (lanes(keys, context), access),
                _ => (Lanes::All, access),
            }
        }
        Kind::Read => match &keys {
            Some(keys) if keys.is_empty() => (Lanes::new([]), look()),
            Some(keys) => {
                let slots = cache::slots(&spec, args, keys, |key| context.lane(key));
                let miss = (!context.on_miss_error)
                    .then(|| cache::miss(&spec.name, args, context.resp3))
                    .flatten();
                (lanes(keys, context), read(slots, miss))
            }
            None => (Lanes::All, read(Vec::new(), None)),
        },
        Kind::Write => match &keys {
            Some(keys) if !keys.is_empty() => {
                let places = places.as_deref().unwrap_or_default();
                let written = Written { name: &spec.name, args, places };
                (lanes(keys, context), Access::Write(write(&spec, written, context)))
            }
            _ => (Lanes::All, never("its keys are not known")),
        },
    };
    let label = label(&spec, keys.as_deref().unwrap_or_default());
    let admin = rules::admin(&spec);
    Ok(Plan { body: Bytes::new(), label, lanes, admin, access })
}

fn lanes(keys: &[&[u8]], context: &Context<'_>) -> Lanes {
    match keys {
        [key] => Lanes::One(context.lane(key)),
        keys => Lanes::new(keys.iter().map(|key| context.lane(key))),
    }
}

fn read(slots: Vec<fusebox_actors::connector::Slot>, miss: Option<Bytes>) -> Access {
    Access::Read(Read { keyed: true, slots, miss })
}

fn write(spec: &Spec, written: Written<'_, '_>, context: &Context<'_>) -> Write {
    let timed = ttl::carried(written.name, written.args, 0).is_some()
        || context.deadlines.may_inherit(written);
    Write { timed, ..effect::write(spec, written.args) }
}

fn look() -> Access {
    Access::Read(Read { keyed: false, slots: Vec::new(), miss: None })
}

fn never(why: &'static str) -> Access {
    Access::Write(Write::new(Outage::Never(why)))
}

/// The keys as people read them, or the command's name if it has none.
fn label(spec: &Spec, keys: &[&[u8]]) -> String {
    let mut label = String::new();
    for key in keys {
        if label.len() >= LABEL_MAX {
            break;
        }
        if !label.is_empty() {
            label.push(' ');
        }
        label.push_str(&String::from_utf8_lossy(key.get(..LABEL_MAX).unwrap_or(key)));
    }
    if label.is_empty() { spec.name.replace('|', " ").to_ascii_uppercase() } else { label }
}

fn unknown(args: &[&[u8]], commands: &Commands) -> Refused {
    let name = args.first().copied().unwrap_or_default();
    let name = String::from_utf8_lossy(name.get(..64).unwrap_or(name)).to_ascii_uppercase();
    let message = if commands.has_learnt() {
        format!("the server knows no command {name:?}")
    } else {
        format!(
            "fusebox does not know {name:?}, and the server has not yet sent the list of its commands"
        )
    };
    Refused { code: "unknown_command", message, malformed: false }
}

fn wrong_arity(spec: &Spec, count: usize) -> Refused {
    let name = spec.name.replace('|', " ").to_ascii_uppercase();
    let inner = 1 + spec.name.matches('|').count();
    let words = usize::try_from(spec.arity.unsigned_abs()).unwrap_or(usize::MAX);
    let least = if spec.arity < 0 { "at least " } else { "" };
    let takes = words.saturating_sub(inner);
    let plural = if takes == 1 { "argument" } else { "arguments" };
    let message = format!("{name} takes {least}{takes} {plural}, got {}", count - inner.min(count));
    Refused { code: "wrong_arity", message, malformed: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn try_plan(command: &str) -> Result<Plan, Refused> {
        plan_where(false, command)
    }

    fn plan_where(scripts_are_barriers: bool, command: &str) -> Result<Plan, Refused> {
        let (commands, deadlines) = (Commands::default(), Deadlines::new("0"));
        let context = Context {
            commands: &commands,
            database: b"0",
            on_miss_error: false,
            scripts_are_barriers,
            resp3: true,
            deadlines: &deadlines,
        };
        let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        plan(resp::command(&args), &context)
    }

    #[track_caller]
    fn planned(command: &str) -> Plan {
        try_plan(command).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    fn lanes_of(keys: &[&str]) -> Lanes {
        Lanes::new(keys.iter().map(|key| LaneId::of(b"0", key.as_bytes())))
    }

    #[test]
    fn lanes_are_the_keys() {
        assert_eq!(planned("GET k").lanes, lanes_of(&["k"]));
        assert_eq!(planned("MSET a 1 b 2").lanes, lanes_of(&["a", "b"]));
        assert_eq!(planned("RENAME a b").lanes, lanes_of(&["a", "b"]));
        assert_eq!(planned("PING").lanes, lanes_of(&[]));
        for command in ["FLUSHALL", "SWAPDB 0 1", "SORT k", "SCRIPT LOAD x", "EVAL s 5 k"] {
            let plan = planned(command);
            assert!(plan.lanes.is_all(), "{command}");
            let Access::Write(write) = plan.access else { panic!("{command} is a write") };
            assert!(matches!(write.outage, Outage::Never(_)) && !write.absolute, "{command}");
        }
        assert_eq!(planned("GET k").label, "k");
        assert_eq!(planned("CONFIG GET x").label, "CONFIG GET");
    }

    #[test]
    fn a_script_locks_the_keys_that_it_declares_or_every_key() {
        for (command, keys) in [
            ("EVAL s 1 k arg", &["k"][..]),
            ("EVAL s 0", &[]),
            ("EVALSHA f00 2 a b", &["a", "b"]),
            ("FCALL f 1 k", &["k"]),
            ("EVAL_RO s 1 k", &["k"]),
            ("FCALL_RO f 0", &[]),
        ] {
            let plan = planned(command);
            assert_eq!(plan.lanes, lanes_of(keys), "{command}");
            assert!(plan_where(true, command).unwrap().lanes.is_all(), "{command}");
            match plan.access {
                Access::Write(write) => {
                    assert!(matches!(write.outage, Outage::Never(_)) && !write.absolute);
                }
                Access::Read(read) => assert!(read.keyed && read.slots.is_empty(), "{command}"),
            }
        }
    }

    #[test]
    fn what_no_script_can_carry_is_never_queued() {
        let words = |name: &str, count| format!("{name} k{}", " v".repeat(count));
        let outage = |command: &str| match planned(command).access {
            Access::Write(write) => (write.outage, write.absolute),
            Access::Read(_) => panic!("{command} is a write"),
        };
        assert_eq!(outage(&words("LPUSH", 6_998)), (Outage::EffectUnknown, false));
        assert!(matches!(outage(&words("LPUSH", 6_999)), (Outage::Never(_), false)));
        assert_eq!(outage(&words("SADD", 8_001)), (Outage::EffectKnown, true));
        assert_eq!(planned(&words("LPUSH", 8_001)).lanes, lanes_of(&["k"]));
    }

    #[test]
    fn reads_and_writes_are_told_apart() {
        for (command, keyed) in
            [("GET k", true), ("SORT_RO k", true), ("DBSIZE", false), ("TIME", false)]
        {
            let Access::Read(read) = planned(command).access else { panic!("{command}") };
            assert_eq!(read.keyed, keyed, "{command}");
        }
        for command in
            ["SET k v", "PUBLISH c m", "SPUBLISH c m", "BGSAVE", "XREADGROUP GROUP g c STREAMS s >"]
        {
            assert!(matches!(planned(command).access, Access::Write(_)), "{command}");
        }
        assert!(matches!(planned("EVAL_RO s 1 k").access, Access::Read(_)));
        assert_eq!(planned("PUBLISH c m").lanes, lanes_of(&[]));
    }

    #[test]
    fn administration_needs_its_rights() {
        for command in [
            "CONFIG GET x",
            "CONFIG SET a b",
            "SHUTDOWN",
            "ACL LIST",
            "REPLICAOF NO ONE",
            "DEBUG SLEEP 1",
            "SAVE",
            "CLIENT KILL x",
            "CLUSTER INFO",
            "SLOWLOG GET",
            "MODULE LIST",
            "SLAVEOF a 1",
            "FAILOVER",
        ] {
            assert!(planned(command).admin, "{command}");
        }
        for command in ["GET k", "SET k v", "FLUSHALL", "INFO", "PING", "EVAL s 0"] {
            assert!(!planned(command).admin, "{command}");
        }
    }

    #[test]
    fn what_cannot_share_a_connection_is_refused() {
        for command in [
            "SELECT 1",
            "MULTI",
            "EXEC",
            "DISCARD",
            "WATCH k",
            "SUBSCRIBE c",
            "MONITOR",
            "AUTH x",
            "HELLO 3",
            "RESET",
            "QUIT",
            "CLIENT REPLY OFF",
            "CLIENT SETNAME x",
            "CLIENT TRACKING ON",
            "BLPOP k 0",
            "BLMOVE a b LEFT LEFT 0",
            "WAIT 1 1",
            "XREAD BLOCK 0 STREAMS s 0",
            "BZPOPMIN k 0",
            "PSYNC a b",
            "xreadgroup group g c block 5 streams s >",
            "BRPOPLPUSH a b 0",
            "BLMPOP 0 1 k LEFT",
        ] {
            let refused = try_plan(command).unwrap_err();
            assert_eq!(
                (refused.code, refused.malformed),
                ("unsupported_command", false),
                "{command}"
            );
        }
        assert!(
            try_plan("SELECT 1")
                .unwrap_err()
                .message
                .contains("the database is set in the configuration")
        );
        assert!(try_plan("XREAD COUNT 1 STREAMS block 0").is_ok());
    }

    #[test]
    fn a_transaction_is_its_commands_together() {
        let of = |words: &str| match planned(words).access {
            Access::Write(write) => {
                assert!(!write.absolute && !write.whole, "{words}");
                (write.outage, write.timed)
            }
            Access::Read(_) => panic!("{words} is a write"),
        };
        let known = "FUSEBOX.MULTI 3 0 SET k v 5 0 SET j v EX 9";
        assert_eq!(planned(known).lanes, lanes_of(&["k", "j"]));
        assert_eq!(planned(known).label, "k j");
        let ok = Outage::ReplyKnown(Bytes::from_static(b"*2\r\n+OK\r\n+OK\r\n"));
        assert_eq!(of(known), (ok, true));
        let effect = "FUSEBOX.MULTI 3 0 SET k v 2 0 DEL j";
        assert_eq!(of(effect), (Outage::EffectKnown, false));
        for never in [
            "FUSEBOX.MULTI 3 0 SET k v 2 0 GET k",
            "FUSEBOX.MULTI 2 0 INCR k 3 0 SET k v",
            "FUSEBOX.MULTI 3 0 PUBLISH c m",
        ] {
            assert!(matches!(of(never).0, Outage::Never(_)), "{never}");
        }
        let many: Vec<String> = (0..65).map(|n| format!("3 0 SET k{n} v")).collect();
        let many = planned(&format!("FUSEBOX.MULTI {}", many.join(" ")));
        assert!(many.lanes.is_all());
        assert_eq!(many.label, "k0 k1 k2 k3 k4 k5 k6 k7 k8 k9 k10 k11 k12 k13 k14 …");
        for (wrong, code) in [
            ("FUSEBOX.MULTI", "malformed_command"),
            ("FUSEBOX.MULTI 2 0 SET", "malformed_command"),
            ("FUSEBOX.MULTI 2 0 SET k", "wrong_arity"),
            ("FUSEBOX.MULTI 2 0 SELECT 1", "unsupported_command"),
            ("FUSEBOX.MULTI 3 0 FUSEBOX.DEADLINE 5 k", "unknown_command"),
            ("FUSEBOX.MULTI 1 0 FUSEBOX.MULTI", "unknown_command"),
        ] {
            assert_eq!(try_plan(wrong).unwrap_err().code, code, "{wrong}");
        }
    }

    #[test]
    fn a_wrong_call_is_told_what_is_right() {
        let refused = try_plan("GET a b").unwrap_err();
        assert_eq!(refused.message, "GET takes 1 argument, got 2");
        assert!(refused.malformed);
        assert_eq!(try_plan("SET a").unwrap_err().message, "SET takes at least 2 arguments, got 1");
        assert_eq!(
            try_plan("OBJECT ENCODING").unwrap_err().message,
            "OBJECT ENCODING takes 1 argument, got 0"
        );
        for command in ["NOSUCH", "FUSEBOX.DEADLINE 5 k", "fusebox.until 1 5 k SET k v"] {
            assert_eq!(try_plan(command).unwrap_err().code, "unknown_command", "{command}");
        }
    }

    #[test]
    fn a_write_that_carries_a_deadline_is_timed() {
        let timed = |command: &str| match planned(command).access {
            Access::Write(write) => write.timed,
            Access::Read(_) => panic!("{command} is a write"),
        };
        for command in
            ["SET k v EX 5", "SETEX k 5 v", "EXPIRE k 5 NX", "PEXPIREAT k 5", "GETEX k PX 5"]
        {
            assert!(timed(command), "{command}");
        }
        for command in ["SET k v", "SET k v KEEPTTL", "PERSIST k", "GETEX k", "HSET h f v", "DEL k"]
        {
            assert!(!timed(command), "{command}");
        }
    }
}
