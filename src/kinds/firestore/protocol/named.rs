//! Which resources a request names, wherever it names them: a database, what is in it, or what is below that.
//!
//! What a program stores may look like a name and is none: only the fields are read of which Firestore's definitions
//! say that they are names. Every occurrence of a field counts, also one that another one overrides.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::fields::{Fields, text};

/// What is in a field.
#[derive(Clone, Copy)]
enum Has {
    /// A name, or nothing.
    Name,
    /// A reference: a name, or a path below the request's own database.
    Reference,
    /// What a stage of a pipeline is called.
    Stage,
    /// A message.
    In(Places),
}

/// The fields of a message that are names or may have some in them.
type Places = &'static [(u32, Has)];

/// What is deeper than that is not read.
const DEPTH_MAX: usize = 100;

/// A message that names nothing but what it is about, in its first field.
const ABOUT: Places = &[(1, Has::Name)];
const WRITE: Places = &[
    (1, Has::In(ABOUT)),
    (2, Has::Name),
    // Neither of these two is sent any more: a document that is verified, and a transform.
    (5, Has::Name),
    (6, Has::In(ABOUT)),
];
const WRITES: Places = &[(1, Has::Name), (2, Has::In(WRITE))];
const TARGET: Places = &[(2, Has::In(ABOUT)), (3, Has::In(&[(2, Has::Name)]))];

// The arguments of pipelines say what they read: references among them.
static VALUE: [(u32, Has); 5] = [
    (5, Has::Reference),
    (6, Has::In(&MAP)),
    (9, Has::In(&ARRAY)),
    (20, Has::In(&FUNCTION)),
    (21, Has::In(&PIPELINE)),
];
static ARRAY: [(u32, Has); 1] = [(1, Has::In(&VALUE))];
static MAP: [(u32, Has); 1] = [(1, Has::In(&ENTRY))];
static ENTRY: [(u32, Has); 1] = [(2, Has::In(&VALUE))];
static FUNCTION: [(u32, Has); 2] = [(2, Has::In(&VALUE)), (3, Has::In(&ENTRY))];
static STAGE: [(u32, Has); 3] = [(1, Has::Stage), (2, Has::In(&VALUE)), (3, Has::In(&ENTRY))];
static PIPELINE: [(u32, Has); 1] = [(1, Has::In(&STAGE))];
static STRUCTURED: [(u32, Has); 2] = [(1, Has::In(&PIPELINE)), (2, Has::In(&ENTRY))];
static EXECUTED: [(u32, Has); 2] = [(1, Has::Name), (2, Has::In(&STRUCTURED))];

/// The fields in which the messages of a method name something, by the method's name in records. `None` if it is not
/// known.
fn places(operation: &str) -> Option<Places> {
    Some(match operation {
        "batch_get" => &[(1, Has::Name), (2, Has::Name)],
        "batch_write" | "commit" => WRITES,
        "create" => &[(1, Has::Name), (4, Has::In(ABOUT))],
        "execute_pipeline" => &EXECUTED,
        "listen" => &[(1, Has::Name), (2, Has::In(TARGET))],
        "update" => &[(1, Has::In(ABOUT))],
        "write" => &[(1, Has::Name), (3, Has::In(WRITE))],
        "aggregate" | "begin_transaction" | "delete" | "get" | "list" | "list_collections"
        | "partition_query" | "query" | "rollback" => ABOUT,
        _ => return None,
    })
}

/// Why it is not known what a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable;

/// The names in a message of a method, by what the method is called in records.
///
/// # Errors
/// The method is not known, or this is none of its messages.
pub(crate) fn names<'a>(operation: &str, message: &'a [u8]) -> Result<Vec<&'a str>, Unreadable> {
    let places = places(operation).ok_or(Unreadable)?;
    let mut found = Found::default();
    collect(places, message, 0, &mut found).ok_or(Unreadable)?;
    Ok(found.names)
}

/// What the stages of a pipeline are called, with those of the pipelines in its arguments.
///
/// # Errors
/// It is no message that executes a pipeline.
pub(crate) fn stages(message: &[u8]) -> Result<Vec<&str>, Unreadable> {
    let mut found = Found::default();
    collect(&EXECUTED, message, 0, &mut found).ok_or(Unreadable)?;
    Ok(found.stages)
}

/// What was read of a message.
#[derive(Default)]
struct Found<'a> {
    names: Vec<&'a str>,
    stages: Vec<&'a str>,
}

fn collect<'a>(
    places: Places,
    message: &'a [u8],
    depth: usize,
    found: &mut Found<'a>,
) -> Option<()> {
    if depth > DEPTH_MAX {
        return None;
    }
    for field in Fields(message) {
        let (number, bytes) = field?;
        let Some((_, has)) = places.iter().find(|(at, _)| *at == number) else { continue };
        match has {
            Has::Name if bytes.is_empty() => {}
            Has::Name => found.names.push(text(bytes)?),
            Has::Reference => {
                found.names.extend(Some(text(bytes)?).filter(|name| name.starts_with("projects/")));
            }
            Has::Stage => found.stages.push(text(bytes)?),
            Has::In(places) => collect(places, bytes, depth + 1, found)?,
        }
    }
    Some(())
}

/// The members of JSON that have names.
const KEYS: [&str; 7] = ["database", "delete", "document", "documents", "name", "parent", "verify"];
/// Other members of a pipeline that have names.
const REFERENCES: [&str; 2] = ["referenceValue", "reference_value"];

/// The names in a body of JSON; in an empty one there are none. What a program stores is never a text under one of the
/// [`KEYS`], but an object.
///
/// # Errors
/// It is not JSON.
pub(crate) fn names_in_json(body: &[u8], has_references: bool) -> Result<Vec<String>, Unreadable> {
    if body.is_empty() {
        return Ok(Vec::new());
    }
    Ok(read_json(body, has_references)?.0)
}

/// What the stages of a pipeline in a body of JSON are called, with those of the pipelines in its arguments.
///
/// # Errors
/// It is not JSON.
pub(crate) fn stages_in_json(body: &[u8]) -> Result<Vec<String>, Unreadable> {
    Ok(read_json(body, true)?.1)
}

/// Names, and what stages are called.
fn read_json(body: &[u8], has_references: bool) -> Result<(Vec<String>, Vec<String>), Unreadable> {
    let (mut found, mut stages) = (Vec::new(), Vec::new());
    let mut reader = serde_json::Deserializer::from_slice(body);
    let texts =
        Texts { found: &mut found, stages: &mut stages, has_references, under: Under::Other };
    let read = texts.deserialize(&mut reader).and_then(|()| reader.end());
    read.map(|()| (found, stages)).map_err(|_| Unreadable)
}

/// What is read now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Under {
    /// What is under a key of a name.
    Name,
    /// The stages of a pipeline, or one of them.
    Stages,
    /// What a stage is called.
    Stage,
    Other,
}

/// Collects names, whatever keys come twice.
struct Texts<'a> {
    found: &'a mut Vec<String>,
    stages: &'a mut Vec<String>,
    has_references: bool,
    under: Under,
}

impl<'de> DeserializeSeed<'de> for Texts<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Texts<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        match self.under {
            Under::Name if text.starts_with("projects/") => self.found.push(text.to_owned()),
            Under::Stage => self.stages.push(text.to_owned()),
            _ => {}
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<(), A::Error> {
        let Self { found, stages, has_references, under } = self;
        while all.next_element_seed(Texts { found, stages, has_references, under })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<(), A::Error> {
        let Self { found, stages, has_references, under: own } = self;
        while let Some(key) = all.next_key::<String>()? {
            let under = match key.as_str() {
                "name" if own == Under::Stages => Under::Stage,
                "stages" => Under::Stages,
                key if KEYS.contains(&key) || has_references && REFERENCES.contains(&key) => {
                    Under::Name
                }
                _ => Under::Other,
            };
            all.next_value_seed(Texts { found, stages, has_references, under })?;
        }
        Ok(())
    }
}

/// The database of a name that is or begins with one: `projects/p/databases/d`.
pub(crate) fn database_of(name: &str) -> Option<&str> {
    let mut parts = name.split('/');
    let mut next = || parts.next().filter(|part| !part.is_empty());
    let (projects, project, databases, database) = (next()?, next()?, next()?, next()?);
    let length = projects.len() + project.len() + databases.len() + database.len() + 3;
    let is_one = projects == "projects" && databases == "databases";
    is_one.then(|| name.get(..length)).flatten()
}

/// The project of a database.
pub(crate) fn project_of(database: &str) -> &str {
    database.split('/').nth(1).unwrap_or_default()
}

#[cfg(test)]
mod tests;
