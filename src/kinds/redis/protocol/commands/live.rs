//! A server's reply to `COMMAND`, read into the table's rows.

use super::spec::{Begin, Find, Flags, KeySpec, Spec};
use crate::kinds::redis::protocol::resp::Reply;

/// The commands in `reply`, those within containers too. What cannot be read is left out.
pub(super) fn specs(reply: &[u8]) -> Vec<Spec> {
    let mut specs = Vec::new();
    for entry in Reply::of(reply).and_then(|reply| reply.items()).into_iter().flatten() {
        read(entry, &mut specs);
    }
    specs
}

/// Name, arity, flags, first, last, step, and since version 7 categories, tips, key specifications and
/// commands within.
fn read(entry: &[u8], out: &mut Vec<Spec>) -> Option<()> {
    let fields: Vec<&[u8]> = Reply::of(entry)?.items()?.collect();
    let field = |index: usize| fields.get(index).and_then(|field| Reply::of(field));
    let mut flags = Flags::default();
    let mut movable = false;
    for flag in texts(&field(2)?) {
        flags.set_by_name(&flag);
        movable |= flag == "movablekeys";
    }
    if field(7).is_some_and(|tips| texts(&tips).any(|tip| tip == "nondeterministic_output")) {
        flags.set(Flags::RANDOM);
    }
    let within = field(9).and_then(|within| within.items());
    let within: Vec<&[u8]> = within.into_iter().flatten().collect();
    let keys = match field(8).and_then(|specs| specs.items()) {
        Some(specs) => specs.filter_map(key_spec).collect(),
        None => positions(int(&field(3)?)?, int(&field(4)?)?, int(&field(5)?)?, movable),
    };
    if !within.is_empty() {
        flags.set(Flags::CONTAINER);
    }
    let name = text(&field(0)?)?.to_ascii_lowercase().into();
    out.push(Spec { name, arity: i32::try_from(int(&field(1)?)?).ok()?, flags, keys });
    for entry in within {
        read(entry, out);
    }
    Some(())
}

/// One key specification; `None` for one that is about no key.
fn key_spec(frame: &[u8]) -> Option<KeySpec> {
    let spec = Reply::of(frame)?;
    if let Some(flags) = value(&spec, "flags") {
        if texts(&flags).any(|flag| flag == "not_key") {
            return None;
        }
        if texts(&flags).any(|flag| flag == "incomplete") {
            return Some(KeySpec::UNKNOWN);
        }
    }
    let (begin, find) = (value(&spec, "begin_search"), value(&spec, "find_keys"));
    let begin = begin.and_then(|begin| begin_of(&begin)).unwrap_or(Begin::Unknown);
    let find = find.and_then(|find| find_of(&find)).unwrap_or(Find::Unknown);
    if begin == Begin::Unknown || find == Find::Unknown {
        return Some(KeySpec::UNKNOWN);
    }
    Some(KeySpec { begin, find })
}

fn begin_of(begin: &Reply<'_>) -> Option<Begin> {
    let spec = value(begin, "spec")?;
    match text(&value(begin, "type")?)? {
        "index" => Some(Begin::Index(size(&spec, "index")?)),
        "keyword" => {
            let word = text(&value(&spec, "keyword")?)?.into();
            Some(Begin::Keyword(word, number(&spec, "startfrom")?))
        }
        _ => None,
    }
}

fn find_of(find: &Reply<'_>) -> Option<Find> {
    let spec = value(find, "spec")?;
    match text(&value(find, "type")?)? {
        "range" => Some(Find::Range {
            last: number(&spec, "lastkey")?,
            step: size(&spec, "keystep")?,
            limit: number(&spec, "limit")?,
        }),
        "keynum" => Some(Find::Count {
            index: size(&spec, "keynumidx")?,
            first: size(&spec, "firstkey")?,
            step: size(&spec, "keystep")?,
        }),
        _ => None,
    }
}

/// What servers before version 7 say of keys: the positions of the first and the last, and the step.
fn positions(first: i64, last: i64, step: i64, movable: bool) -> Box<[KeySpec]> {
    if movable {
        return Box::new([KeySpec::UNKNOWN]);
    }
    let (Ok(index), Ok(step)) = (usize::try_from(first), usize::try_from(step)) else {
        return Box::new([KeySpec::UNKNOWN]);
    };
    if index == 0 {
        return Box::default();
    }
    let last = i32::try_from(if last < 0 { last } else { last - first }).unwrap_or(0);
    Box::new([KeySpec { begin: Begin::Index(index), find: Find::Range { last, step, limit: 0 } }])
}

fn value<'a>(map: &Reply<'a>, name: &str) -> Option<Reply<'a>> {
    let mut items = map.items()?;
    while let (Some(key), Some(field)) = (items.next(), items.next()) {
        if Reply::of(key)?.text() == Some(name.as_bytes()) {
            return Reply::of(field);
        }
    }
    None
}

fn number(map: &Reply<'_>, name: &str) -> Option<i32> {
    i32::try_from(int(&value(map, name)?)?).ok()
}

fn size(map: &Reply<'_>, name: &str) -> Option<usize> {
    usize::try_from(int(&value(map, name)?)?).ok()
}

fn int(reply: &Reply<'_>) -> Option<i64> {
    if let Reply::Int(number) = reply { Some(*number) } else { None }
}

fn text<'a>(reply: &Reply<'a>) -> Option<&'a str> {
    std::str::from_utf8(reply.text()?).ok()
}

fn texts(list: &Reply<'_>) -> impl Iterator<Item = String> {
    let texts: Vec<String> = list
        .items()
        .into_iter()
        .flatten()
        .filter_map(|item| Some(text(&Reply::of(item)?)?.to_ascii_lowercase()))
        .collect();
    texts.into_iter()
}
