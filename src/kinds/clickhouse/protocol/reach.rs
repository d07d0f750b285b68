//! Words of a statement that reach another server: see [`elsewhere`](super::elsewhere); and words of an insert's rows
//! that read at the server: see [`storable`](super::storable).

use super::lexer::{Lexer, Token, Unread};

/// Table functions, engines, places of backups and sources of dictionaries, in small letters.
const NAMES: &[&str] = &[
    "arrowflight",
    "azure",
    "azureblobstorage",
    "azurequeue",
    "cassandra",
    "clickhouse",
    "cluster",
    "clusterallreplicas",
    "cosn",
    "datalakecatalog",
    "distributed",
    "gcs",
    "hdfs",
    "http",
    "hudi",
    "jdbc",
    "kafka",
    "keepermap",
    "mongo",
    "mongodb",
    "mysql",
    "nats",
    "odbc",
    "oss",
    "postgresql",
    "rabbitmq",
    "redis",
    "remote",
    "remotesecure",
    "replicated",
    "s3",
    "s3queue",
    "url",
    "ytsaurus",
];
/// What the names of others begin with: `icebergS3`, `ReplicatedReplacingMergeTree`, `MaterializedPostgreSQL`.
const BEGINNINGS: &[&str] = &["deltalake", "iceberg", "materialized", "paimon", "replicated"];
/// What the name of one may end with, so that many servers read it.
const MANY: &str = "cluster";

/// Functions whose names begin like a table function's and that read nothing.
const PURE: &str = "icebergbucket icebergtruncate";

/// Words that may stand before a parenthesis without being a function or a type.
const KEYWORDS: &str = "\
    and as between case div else format ilike in interval is like mod not or then values when \
    xor";

/// Types with parameters, as in `CAST(1 AS Decimal(9, 2))`, in small letters.
const TYPES: &str = "\
    array datetime datetime64 decimal decimal128 decimal256 decimal32 decimal64 dynamic enum \
    enum16 enum8 fixedstring json lowcardinality map nested nullable time64 tuple variant";

/// Functions whose value depends on nothing but their arguments, the time and chance, in small letters.
const FUNCTIONS: &str = "\
    abs assumenotnull bin cast ceil ceiling char cityhash64 coalesce cos crc32 divide e empty \
    exp exp10 exp2 farmhash64 fixedstring floor fromunixtimestamp generatesnowflakeid \
    generateulid generateuuidv4 generateuuidv7 greatest halfmd5 hex if ifnull intdiv javahash \
    least left length ln log log10 log2 lower lowerutf8 makedate makedatetime makedatetime64 md5 \
    metrohash64 minus modulo multiif multiply murmurhash2_64 murmurhash3_64 named_tuple nan \
    negate notempty now now64 nowinblock nullif pi plus position pow power rand rand32 rand64 \
    range repeat reverse right round sha1 sha224 sha256 sha512 sign sin siphash128 siphash64 \
    sqrt substr substring tan timestamp today trunc truncate unbin unhex upper upperutf8 \
    utctimestamp uuid yesterday";
/// What the names of others of that sort begin with: `toDateTime64`, `arrayMap`, `mapFromArrays`.
const FAMILIES: &str = "\
    accuratecast addda addhours addinterval addm addnano addquarters addseconds addweeks \
    addyears array base58 base64 bit concat date extract formatdatetime formatreadable \
    fromunixtimestamp64 ipv4 ipv6 isfinite isnan isnotnull isnull json map parsedatetime random \
    reinterpret replace simplejson splitby subtract to trim tuple uuid xxhash";

/// Whether two tokens side by side name another server.
pub(super) fn names(one: Token<'_>, next: Token<'_>) -> bool {
    if one.is("ON") && next.is("CLUSTER") {
        return true;
    }
    let name = if next == Token::Mark('(') { one.name() } else { None };
    name.is_some_and(|name| {
        let name = name.to_ascii_lowercase();
        let is_known = |name: &str| NAMES.contains(&name);
        let is_family = || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning));
        is_known(&name)
            || name.strip_suffix(MANY).is_some_and(is_known)
            || is_family() && !has(PURE, &name)
    })
}

/// Whether what is left of a text names another server, or does not end.
pub(super) fn in_rest(mut lexer: Lexer<'_>) -> bool {
    let mut before = None;
    loop {
        let Ok(token) = lexer.next() else { return true };
        let Some(token) = token else { return false };
        if before.is_some_and(|before| names(before, token)) {
            return true;
        }
        before = Some(token);
    }
}

/// Whether expressions may ask for something at a server, this one or another.
///
/// There is no list of what reads: a release adds to it, and a plugin or a user's own function may. So whatever is
/// called must be known to read nothing.
pub(super) fn reads(expressions: &str) -> bool {
    let mut lexer = Lexer::new(expressions);
    let mut before: Option<Token<'_>> = None;
    // Whether something is before that, so that it may be an operator.
    let mut is_second = false;
    loop {
        let token = match lexer.next() {
            Ok(Some(token)) => token,
            // What does not end is for the server to say.
            Ok(None) | Err(Unread::Unterminated) => return false,
            Err(Unread::Unclear) => return true,
        };
        if token.is("SELECT") {
            return true;
        }
        if let Some(before) = before {
            // `in(1, t)`, the function.
            let is_in = before.is("IN") && token == Token::Mark('(') && !is_second;
            if is_in || is_reading(before, token, &lexer) {
                return true;
            }
            is_second = !matches!(before, Token::Mark('(' | ',' | '['));
        }
        before = Some(token);
    }
}

/// Whether what begins with two tokens, before `rest`, may read something.
fn is_reading(one: Token<'_>, next: Token<'_>, rest: &Lexer<'_>) -> bool {
    let is_called = next == Token::Mark('(');
    if one.is("IN") && names_table(next, rest.clone()) {
        return true;
    }
    let Some(name) = one.name().filter(|_| is_called) else { return false };
    let name = name.to_ascii_lowercase();
    let is_keyword = matches!(one, Token::Word(_)) && has(KEYWORDS, &name);
    !(is_keyword
        || [TYPES, FUNCTIONS, PURE].iter().any(|names| has(names, &name))
        || FAMILIES.split(' ').any(|beginning| name.starts_with(beginning)))
}

/// Whether what is behind IN, beginning with `token`, is a table: its name or a parameter that is one, in brackets or
/// not. `tuple(1, 2)` is looked at as a call, and of several names none is a table.
fn names_table<'a>(mut token: Token<'a>, mut rest: Lexer<'a>) -> bool {
    let mut next = || rest.next().ok().flatten();
    let mut is_bracketed = false;
    while token == Token::Mark('(') {
        is_bracketed = true;
        let Some(inner) = next() else { return false };
        token = inner;
    }
    match token {
        Token::Mark('{') => {
            let tokens = [next(), next(), next()];
            matches!(tokens, [Some(_), Some(Token::Mark(':')), Some(kind)] if kind.is("Identifier"))
        }
        Token::Word(_) | Token::Quoted(_) if !is_literal(token) => match next() {
            Some(Token::Mark('(')) => false,
            Some(Token::Mark(mark)) => !is_bracketed || matches!(mark, ')' | '.'),
            // In brackets a name behind it is an alias.
            Some(_) | None => true,
        },
        _ => false,
    }
}

/// Whether a bare word is a value by itself. Of those that begin with a digit, some are names.
fn is_literal(token: Token<'_>) -> bool {
    let is_digit = |c: char| c.is_ascii_digit() || c == '.';
    token.word().is_some_and(|word| word.chars().all(is_digit))
        || token.is_any(&["NULL", "TRUE", "FALSE"])
}

/// Whether `name` is one of `names`, which are separated by spaces.
fn has(names: &str, name: &str) -> bool {
    names.split(' ').any(|known| known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_that_read_are_told_from_texts_and_names_that_look_so() {
        for rows in [
            "(1, (SELECT 1))",
            "(1, (select count() from remote('h', system.one)))",
            "(1), ((WITH 1 AS x SELECT x))",
            "(1 IN t)",
            "(1 NOT IN `t`)",
            "(dictGet('d', 'a', 1))",
            "(joinGet(t, 'a', 1))",
            "(`file`('x'))",
            "(1 IN url('http://h/', CSV, 'a Int8'))",
            "(catboostEvaluate('/m', 1.0))",
            "(getMacro('shard'))",
            "(in(1, t))",
            "([1, IN (1, t)])",
            "(1 IN db.t)",
            "(1 IN (t))",
            "(1 IN ((db.t)))",
            "(1 IN (((`t`))))",
            "(1 NOT IN (t AS u))",
            "(1 IN {t:Identifier})",
            "(1 IN ({t:Identifier}))",
            "(1 IN {d:Identifier}.t)",
            "(generateSerialID('s'))",
            "(aFunctionOfTheUsers(1))",
            "(hostName())",
        ] {
            assert!(reads(rows), "{rows}");
        }
        for rows in [
            "(1, 'SELECT 1')",
            "(1 IN (1, 2), now(), {a:String}, 'a quote that does not end)",
            "(1 IN [1], selected, $$ SELECT $$) -- SELECT",
            "(generateUUIDv4(), toDate('2020-01-01'), dict, file)",
            "(1 IN tuple(1, 2), 1 in (1), NOT (1), icebergBucket(3, 'a'))",
            "(1 IN (a, b), 1 IN ((1)), 1 IN (NULL), 1 IN ('t'), 1 IN {a:Array(Int8)}, 1 IN ({b:Int8}))",
            "(1 IN (tuple(1, 2)), 1 IN ()), (1 IN ((",
            "(CAST('1.5' AS Decimal(9, 2)), 'x'::FixedString(3), [now(), toDateTime64(1, 3)], map('a', 1))",
            "(INTERVAL 1 DAY + now64(3), if(1, 2, 3), {a:Array(String)})",
        ] {
            assert!(!reads(rows), "{rows}");
        }
    }
}
