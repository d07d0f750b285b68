//! The commands that are planned without an allocation: those of one key, which follows the name.
//!
//! What follows from their words is the same as by the general way (`protocol/plan.rs`); a test compares the two for
//! each row. Everything else goes by the general way.

use fusebox_state::LaneId;

/// The longest name of the table.
const NAME_MAX: usize = 12;

/// What a quick command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Does {
    /// Reads; its reply may be cached.
    Reads,
    /// Reads what changes by itself.
    Looks,
    /// Leaves the same state however often it is applied.
    Sets,
    /// Whether it does depends on its words.
    May,
    /// Does not.
    Changes,
}

impl Does {
    /// Whether it writes nothing.
    pub(super) fn is_read(self) -> bool {
        matches!(self, Self::Reads | Self::Looks)
    }
}

/// A row of the table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// The command's name in upper case.
    pub(super) name: &'static str,
    /// The number of its words, its name included; at least so many if negative.
    arity: i8,
    pub(super) does: Does,
}

impl Row {
    pub(super) fn takes(&self, words: usize) -> bool {
        let arity = usize::from(self.arity.unsigned_abs());
        if self.arity < 0 { words >= arity } else { words == arity }
    }
}

const fn row(name: &'static str, arity: i8, does: Does) -> Row {
    Row { name, arity, does }
}

use Does::{Changes, Looks, May, Reads, Sets};

/// By length and then by name.
static ROWS: &[Row] = &[
    row("GET", 2, Reads),
    row("SET", -3, May),
    row("TTL", 2, Looks),
    row("DECR", 2, Changes),
    row("HDEL", -3, Sets),
    row("HGET", 3, Reads),
    row("HLEN", 2, Reads),
    row("HSET", -4, May),
    row("INCR", 2, Changes),
    row("LLEN", 2, Reads),
    row("LPOP", -2, Changes),
    row("PTTL", 2, Looks),
    row("RPOP", -2, Changes),
    row("SADD", -3, Sets),
    row("SPOP", -2, Changes),
    row("SREM", -3, Sets),
    row("TYPE", 2, Reads),
    row("XADD", -5, Changes),
    row("XLEN", 2, Reads),
    row("ZADD", -4, May),
    row("ZREM", -3, Sets),
    row("HKEYS", 2, Reads),
    row("HMGET", -3, Reads),
    row("HVALS", 2, Reads),
    row("LPUSH", -3, Changes),
    row("RPUSH", -3, Changes),
    row("SCARD", 2, Reads),
    row("SETEX", 4, May),
    row("SETNX", 3, Changes),
    row("ZCARD", 2, Reads),
    row("APPEND", 3, Changes),
    row("DECRBY", 3, Changes),
    row("EXPIRE", -3, May),
    row("GETBIT", 3, Reads),
    row("GETDEL", 2, Changes),
    row("GETSET", 3, Changes),
    row("INCRBY", 3, Changes),
    row("LINDEX", 3, Reads),
    row("LRANGE", 4, Reads),
    row("PSETEX", 4, May),
    row("SETBIT", 4, May),
    row("STRLEN", 2, Reads),
    row("ZCOUNT", 4, Reads),
    row("ZRANGE", -4, Reads),
    row("ZSCORE", 3, Reads),
    row("HEXISTS", 3, Reads),
    row("HGETALL", 2, Reads),
    row("HINCRBY", 4, Changes),
    row("PERSIST", 2, Sets),
    row("PEXPIRE", -3, May),
    row("ZINCRBY", 4, Changes),
    row("GETRANGE", 4, Reads),
    row("SMEMBERS", 2, Reads),
    row("ZREVRANGE", -4, Reads),
    row("SISMEMBER", 3, Reads),
    row("SMISMEMBER", -3, Reads),
    row("INCRBYFLOAT", 3, Changes),
];

/// Names by hash: each bucket holds one row, or none.
struct Table {
    buckets: [u8; BUCKETS],
    factor: u64,
}

const BUCKETS: usize = 1_024;
const NO_ROW: u8 = u8::MAX;

static TABLE: std::sync::LazyLock<Table> = std::sync::LazyLock::new(Table::make);

impl Table {
    /// A table in which no two rows share a bucket: factors are tried until one is found.
    fn make() -> Self {
        let mut factor = 0x9E37_79B9_7F4A_7C15_u64;
        loop {
            let mut buckets = [NO_ROW; BUCKETS];
            let fits = ROWS.iter().enumerate().all(|(number, row)| {
                let at = bucket(word(row.name.as_bytes()), factor);
                let Some(bucket) = buckets.get_mut(at) else { return false };
                let is_free = *bucket == NO_ROW;
                *bucket = u8::try_from(number).unwrap_or(NO_ROW);
                is_free
            });
            if fits {
                return Self { buckets, factor };
            }
            factor = factor.wrapping_mul(0xD134_2543_DE82_EF95).wrapping_add(2);
        }
    }
}

/// A name of up to [`NAME_MAX`] bytes as a number, in upper case.
fn word(name: &[u8]) -> u128 {
    name.iter().fold(0, |word, byte| word << 8 | u128::from(byte.to_ascii_uppercase()))
}

#[expect(clippy::cast_possible_truncation, reason = "a hash: any bits of it will do")]
fn bucket(word: u128, factor: u64) -> usize {
    let folded = (word as u64) ^ ((word >> 64) as u64).wrapping_mul(0xA24B_AED4_963E_E407);
    (folded.wrapping_mul(factor) >> 48) as usize % BUCKETS
}

/// The row of a command's name, however it is written.
pub(super) fn find(name: &[u8]) -> Option<&'static Row> {
    if name.len() > NAME_MAX {
        return None;
    }
    let table = &*TABLE;
    let number = *table.buckets.get(bucket(word(name), table.factor))?;
    let row = ROWS.get(usize::from(number))?;
    row.name.as_bytes().eq_ignore_ascii_case(name).then_some(row)
}

/// The lane of a key in a database.
pub(super) fn lane(database: &str, key: &[u8]) -> LaneId {
    LaneId::of(database.as_bytes(), key)
}

#[cfg(test)]
mod tests {
    use fusebox_actors::connector::Access;

    use super::*;
    use crate::kinds::redis::protocol::{
        commands::Commands,
        deadlines::Deadlines,
        plan::{self, Context},
        resp,
    };

    #[test]
    fn each_row_says_what_the_general_way_says() {
        let (commands, deadlines) = (Commands::default(), Deadlines::new("0"));
        let context = Context {
            commands: &commands,
            database: b"0",
            on_miss_error: false,
            scripts_are_barriers: false,
            resp3: true,
            deadlines: &deadlines,
        };
        for row in ROWS {
            assert_eq!(find(row.name.to_ascii_lowercase().as_bytes()), Some(row), "{}", row.name);
            let words = usize::from(row.arity.unsigned_abs());
            let args: Vec<&[u8]> =
                [row.name.as_bytes(), b"k"].into_iter().chain([&b"1"[..]; 8]).take(words).collect();
            let spec = commands.find(&args).unwrap();
            assert_eq!(spec.arity, i32::from(row.arity), "{}", row.name);
            let plan = plan::plan(resp::command(&args), &context).unwrap();
            assert_eq!(plan.lanes.as_slice(), [lane("0", b"k")], "{}", row.name);
            let does = match plan.access {
                Access::Read(read) if read.slots.is_empty() => Does::Looks,
                Access::Read(read) => {
                    assert_eq!(read.slots[0].key, plan.body, "{}", row.name);
                    Does::Reads
                }
                Access::Write(write) if row.does == Does::May => {
                    drop(write);
                    Does::May
                }
                Access::Write(write) if write.absolute => Does::Sets,
                Access::Write(_) => Does::Changes,
            };
            assert_eq!(does, row.does, "{}", row.name);
        }
    }

    #[test]
    fn what_is_not_in_the_table_is_not_found() {
        for name in ["", "G", "MGET", "EVAL", "BLPOP", "GETX", "INCRBYFLOATS", "DEL"] {
            assert_eq!(find(name.as_bytes()), None, "{name}");
        }
    }
}
