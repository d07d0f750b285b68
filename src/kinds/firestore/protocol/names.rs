//! From paths to full names, and back.
//!
//! Bodies and replies have paths below the database's root; the wire has full names. So does a
//! reference on the wire, which a caller may give as a path.

use std::collections::btree_map::ValuesMut;

use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    Cursor, Document, StructuredQuery, Value, Write,
    document_transform::field_transform::TransformType,
    structured_query::{Filter, filter::FilterType},
    value::ValueType,
    write::Operation,
};

use tonic::metadata::{AsciiMetadataValue, MetadataMap};

use super::wire::Found;

/// The most that the id of a project has, in bytes.
const PROJECT_MAX: usize = 30;
/// The least that a name takes in a message before it is completed: `a/b`, its length, and that of what has it.
const NAME_MIN: usize = 7;

/// The root of a database's documents: `projects/p/databases/d/documents`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    /// `projects/p/databases/d`
    pub(crate) database: String,
    prefix: String,
    /// The headers by which the service finds the database.
    headers: [Option<AsciiMetadataValue>; 2],
}

impl Root {
    /// The root of `database` in `project`.
    pub(crate) fn new(project: &str, database: &str) -> Self {
        let database = format!("projects/{project}/databases/{database}");
        let params = database.replace('/', "%2F").replace('(', "%28").replace(')', "%29");
        let headers = [database.clone(), format!("database={params}")];
        let headers = headers.map(|text| AsciiMetadataValue::try_from(text).ok());
        Self { prefix: format!("{database}/documents/"), database, headers }
    }

    /// The longest that the root of `database` can be, whatever its project is.
    pub(crate) fn longest(database: &str) -> Self {
        Self::new(&"p".repeat(PROJECT_MAX), database)
    }

    /// So many times as long a message is at most when its names are completed.
    pub(crate) fn growth(&self) -> usize {
        3 + self.prefix.len() / NAME_MIN
    }

    /// Puts the headers by which the service finds the database.
    pub(crate) fn address(&self, headers: &mut MetadataMap) {
        let names = ["google-cloud-resource-prefix", "x-goog-request-params"];
        for (name, value) in names.into_iter().zip(&self.headers) {
            if let Some(value) = value {
                headers.insert(name, value.clone());
            }
        }
    }

    /// The full name of `path`; of the root itself if it is empty.
    pub(crate) fn name(&self, path: &str) -> String {
        if path.is_empty() {
            return self.prefix.trim_end_matches('/').to_owned();
        }
        format!("{}{path}", self.prefix)
    }

    /// The path of a full name.
    pub(crate) fn path<'a>(&self, name: &'a str) -> &'a str {
        name.strip_prefix(&self.prefix).unwrap_or(name)
    }

    /// A document of the wire, as replies have it.
    pub(crate) fn found(&self, document: Document) -> Found {
        let path = self.path(&document.name).to_owned();
        Found {
            path,
            document: Some(Document { name: String::new(), ..document }),
            ..Found::default()
        }
    }

    /// Completes what a write names.
    pub(crate) fn complete_write(&self, write: &mut Write) {
        match &mut write.operation {
            Some(Operation::Update(document)) => {
                document.name = self.name(&document.name);
                self.complete_all(document.fields.values_mut());
            }
            Some(Operation::Delete(name)) => *name = self.name(name),
            Some(Operation::Transform(transform)) => {
                transform.document = self.name(&transform.document);
            }
            None => {}
        }
        for transform in &mut write.update_transforms {
            if let Some(
                TransformType::AppendMissingElements(array)
                | TransformType::RemoveAllFromArray(array),
            ) = &mut transform.transform_type
            {
                array.values.iter_mut().for_each(|value| self.complete(value));
            }
        }
    }

    /// Completes what a query compares with.
    pub(crate) fn complete_query(&self, query: &mut StructuredQuery) {
        if let Some(filter) = &mut query.r#where {
            self.complete_filter(filter);
        }
        let cursors = query.start_at.iter_mut().chain(&mut query.end_at);
        for Cursor { values, .. } in cursors {
            for value in values {
                self.complete(value);
            }
        }
    }

    fn complete_filter(&self, filter: &mut Filter) {
        match &mut filter.filter_type {
            Some(FilterType::CompositeFilter(all)) => {
                all.filters.iter_mut().for_each(|filter| self.complete_filter(filter));
            }
            Some(FilterType::FieldFilter(field)) => {
                field.value.iter_mut().for_each(|value| self.complete(value));
            }
            Some(FilterType::UnaryFilter(_)) | None => {}
        }
    }

    fn complete_all(&self, values: ValuesMut<'_, String, Value>) {
        values.for_each(|value| self.complete(value));
    }

    fn complete(&self, value: &mut Value) {
        match &mut value.value_type {
            Some(ValueType::ReferenceValue(name)) if !name.starts_with("projects/") => {
                *name = self.name(name);
            }
            Some(ValueType::ArrayValue(array)) => {
                array.values.iter_mut().for_each(|value| self.complete(value));
            }
            Some(ValueType::MapValue(map)) => self.complete_all(map.fields.values_mut()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{query, value, write};
    use super::*;

    #[test]
    fn names_and_references_are_completed_and_taken_apart() {
        let root = Root::new("p", "d");
        assert_eq!(root.name(""), "projects/p/databases/d/documents");
        let own = json!({ "path": "u/a", "data": { "m": { "r": [{ "referenceValue": "u/b" }] } } });
        let mut write = write::from_json("set", own.as_object().unwrap().clone()).unwrap();
        root.complete_write(&mut write);
        let Some(Operation::Update(document)) = write.operation else { panic!("a set") };
        assert_eq!(document.name, "projects/p/databases/d/documents/u/a");
        let full = "projects/p/databases/d/documents/u/b";
        assert_eq!(
            value::fields_to_json(&document.fields),
            json!({ "m": { "r": [{ "referenceValue": full }] } })
        );
        assert_eq!(root.found(document).path, "u/a");
    }

    #[test]
    fn what_a_query_compares_with_is_completed() {
        let json =
            json!({ "collection": "u", "where": [["__name__", "in", ["u/a"]], ["n", ">", 1]] });
        let mut query = query::from_json(json.as_object().unwrap().clone()).unwrap().query.unwrap();
        Root::new("p", "d").complete_query(&mut query);
        assert!(format!("{query:?}").contains("projects/p/databases/d/documents/u/a"));
    }
}
