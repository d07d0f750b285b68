//! A query from its JSON.
//!
//! ```text
//! {"op":"query","collection":"users","where":[["born","<",1900]],"order":[["born","desc"],"name"],
//!  "limit":10,"start_after":[1815,"ada"],"select":["name"]}
//! ```
//! `collection` is a collection's path; `collection_group` finds every collection of that name, below the
//! document `parent` if there is one. Conditions all hold. A condition or cursor on `__name__` takes a
//! document's path.

use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    Cursor, StructuredQuery, Value,
    structured_query::{
        CollectionSelector, CompositeFilter, Direction, FieldFilter, FieldReference, Filter, Order,
        Projection, UnaryFilter, composite_filter, field_filter, filter::FilterType, unary_filter,
    },
    value::ValueType,
};
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::{path, value, wire::Query};

/// The document's own name among its fields.
const NAME: &str = "__name__";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawQuery {
    /// The collection's path, so that `fusebox call firestore -- query users` reads as it does for get.
    #[serde(alias = "path")]
    collection: Option<String>,
    collection_group: Option<String>,
    parent: Option<String>,
    r#where: Vec<(String, String, Json)>,
    order: Vec<RawOrder>,
    limit: Option<i32>,
    offset: i32,
    start_at: Option<Vec<Json>>,
    start_after: Option<Vec<Json>>,
    end_at: Option<Vec<Json>>,
    end_before: Option<Vec<Json>>,
    select: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "an order must be \"field\" or [\"field\", \"asc\" or \"desc\"]")]
enum RawOrder {
    Field(String),
    Directed(String, String),
}

/// The query that JSON is, without its `op`.
///
/// # Errors
/// What is malformed.
pub(crate) fn from_json(rest: Map<String, Json>) -> Result<Query, String> {
    let raw: RawQuery =
        serde_json::from_value(Json::Object(rest)).map_err(|error| error.to_string())?;
    let (parent, selector) = from(&raw)?;
    let filters: Result<Vec<Filter>, String> = raw.r#where.iter().map(filter).collect();
    let orders: Result<Vec<Order>, String> = raw.order.iter().map(order).collect();
    let orders = orders?;
    if raw.limit.is_some_and(|limit| limit < 1) || raw.offset < 0 {
        return Err("limit must be at least 1, and offset not below 0".to_owned());
    }
    let cursor =
        |at: &Option<Vec<Json>>, other: &Option<Vec<Json>>, names: [&str; 2], before: bool| {
            let (values, before) = match (at, other) {
                (Some(_), Some(_)) => {
                    return Err(format!("{} exclude each other", names.join(" and ")));
                }
                (Some(values), None) => (values, before),
                (None, Some(values)) => (values, !before),
                (None, None) => return Ok(None),
            };
            Ok(Some(Cursor { values: cursor_values(values, &orders)?, before }))
        };
    let start_at = cursor(&raw.start_at, &raw.start_after, ["start_at", "start_after"], true)?;
    let end_at = cursor(&raw.end_at, &raw.end_before, ["end_at", "end_before"], false)?;
    let select: Result<Vec<FieldReference>, String> =
        raw.select.iter().map(|name| field(name)).collect();
    let select = Some(Projection { fields: select? }).filter(|it| !it.fields.is_empty());
    let query = StructuredQuery {
        select,
        from: vec![selector],
        r#where: all(filters?),
        order_by: orders,
        start_at,
        end_at,
        offset: raw.offset,
        limit: raw.limit,
        find_nearest: None,
    };
    Ok(Query { parent, query: Some(query) })
}

/// What it looks at: the parent's path, and the collections below it.
fn from(raw: &RawQuery) -> Result<(String, CollectionSelector), String> {
    let parent = raw.parent.clone().unwrap_or_default();
    if !parent.is_empty() {
        path::check_document(&parent)?;
    }
    match (&raw.collection, &raw.collection_group) {
        (Some(collection), None) => {
            path::check_collection(collection)?;
            let (above, name) = path::parent(collection);
            let parent = match (parent.as_str(), above) {
                (parent, "") => parent.to_owned(),
                ("", above) => above.to_owned(),
                (parent, above) => format!("{parent}/{above}"),
            };
            let collection_id = name.to_owned();
            Ok((parent, CollectionSelector { collection_id, all_descendants: false }))
        }
        (None, Some(group)) if !group.is_empty() && !group.contains('/') => {
            let collection_id = group.clone();
            Ok((parent, CollectionSelector { collection_id, all_descendants: true }))
        }
        (None, Some(group)) => {
            Err(format!("collection_group must be a name without slashes, got {group:?}"))
        }
        _ => Err("a query requires collection, such as users, or collection_group".to_owned()),
    }
}

fn field(name: &str) -> Result<FieldReference, String> {
    let field_path = if name == NAME {
        NAME.to_owned()
    } else {
        path::field_path(path::fields(name)?.iter().map(String::as_str))
    };
    Ok(FieldReference { field_path })
}

/// The conditions together; a single one is by itself.
fn all(mut filters: Vec<Filter>) -> Option<Filter> {
    if filters.len() <= 1 {
        return filters.pop();
    }
    let op = composite_filter::Operator::And as i32;
    Some(Filter { filter_type: Some(FilterType::CompositeFilter(CompositeFilter { op, filters })) })
}

fn filter((name, op, json): &(String, String, Json)) -> Result<Filter, String> {
    use field_filter::Operator;
    let operator = match op.as_str() {
        "<" => Operator::LessThan,
        "<=" => Operator::LessThanOrEqual,
        ">" => Operator::GreaterThan,
        ">=" => Operator::GreaterThanOrEqual,
        "==" | "=" => Operator::Equal,
        "!=" => Operator::NotEqual,
        "array-contains" | "array_contains" => Operator::ArrayContains,
        "array-contains-any" | "array_contains_any" => Operator::ArrayContainsAny,
        "in" => Operator::In,
        "not-in" | "not_in" => Operator::NotIn,
        other => {
            return Err(format!(
                "where: the operator must be one of <, <=, >, >=, ==, !=, in, not-in, array-contains, \
                 array-contains-any, got {other:?}"
            ));
        }
    };
    let unary = |op: unary_filter::Operator| -> Result<Filter, String> {
        let operand = unary_filter::OperandType::Field(field(name)?);
        let filter = UnaryFilter { op: op as i32, operand_type: Some(operand) };
        Ok(Filter { filter_type: Some(FilterType::UnaryFilter(filter)) })
    };
    let operand = operand(name, json)?;
    // Firestore compares nothing with these two, and has questions of their own for them.
    let not_a_number =
        matches!(operand.value_type, Some(ValueType::DoubleValue(double)) if double.is_nan());
    let nothing = matches!(operand.value_type, Some(ValueType::NullValue(_)));
    match operator {
        Operator::Equal if nothing => return unary(unary_filter::Operator::IsNull),
        Operator::NotEqual if nothing => return unary(unary_filter::Operator::IsNotNull),
        Operator::Equal if not_a_number => return unary(unary_filter::Operator::IsNan),
        Operator::NotEqual if not_a_number => return unary(unary_filter::Operator::IsNotNan),
        _ => {}
    }
    let filter =
        FieldFilter { field: Some(field(name)?), op: operator as i32, value: Some(operand) };
    Ok(Filter { filter_type: Some(FilterType::FieldFilter(filter)) })
}

/// A value to compare a field with; a document's path if the field is its name.
fn operand(name: &str, json: &Json) -> Result<Value, String> {
    let mut operand = value::from_json(json).map_err(|why| format!("{name}: {why}"))?;
    if name == NAME {
        as_reference(&mut operand);
    }
    Ok(operand)
}

fn as_reference(value: &mut Value) {
    match &mut value.value_type {
        Some(ValueType::StringValue(path)) => {
            value.value_type = Some(ValueType::ReferenceValue(std::mem::take(path)));
        }
        Some(ValueType::ArrayValue(array)) => array.values.iter_mut().for_each(as_reference),
        _ => {}
    }
}

fn order(raw: &RawOrder) -> Result<Order, String> {
    let (name, word) = match raw {
        RawOrder::Field(name) => (name, "asc"),
        RawOrder::Directed(name, word) => (name, word.as_str()),
    };
    let direction = match word {
        "asc" => Direction::Ascending,
        "desc" => Direction::Descending,
        other => return Err(format!("order: the direction must be asc or desc, got {other:?}")),
    };
    Ok(Order { field: Some(field(name)?), direction: direction as i32 })
}

fn cursor_values(values: &[Json], orders: &[Order]) -> Result<Vec<Value>, String> {
    if values.is_empty() || values.len() > orders.len() {
        return Err("a cursor must not have more values than there are orders".to_owned());
    }
    values
        .iter()
        .zip(orders)
        .map(|(json, order)| {
            let name = order.field.as_ref().map_or("", |field| field.field_path.as_str());
            operand(name, json)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn made(json: Json) -> Result<Query, String> {
        from_json(json.as_object().unwrap().clone())
    }

    #[test]
    fn a_query_says_where_it_looks() {
        for (json, parent, name, everywhere) in [
            (json!({ "collection": "users" }), "", "users", false),
            (json!({ "path": "users/ada/notes" }), "users/ada", "notes", false),
            (json!({ "parent": "users/ada", "collection": "notes" }), "users/ada", "notes", false),
            (json!({ "collection_group": "notes" }), "", "notes", true),
        ] {
            let query = made(json).unwrap();
            let from = query.query.unwrap().from;
            assert_eq!(
                (query.parent.as_str(), from[0].collection_id.as_str(), from[0].all_descendants),
                (parent, name, everywhere)
            );
        }
    }

    #[test]
    fn conditions_orders_and_cursors_are_read() {
        let query = made(json!({
            "collection": "users", "where": [["born", ">=", 1800], ["dead", "==", null]],
            "order": [["born", "desc"], "__name__"], "start_after": [1815, "users/ada"],
            "end_at": [1900], "limit": 3, "offset": 1, "select": ["name"],
        }));
        let query = query.unwrap().query.unwrap();
        let Some(FilterType::CompositeFilter(both)) = query.r#where.unwrap().filter_type else {
            panic!("both conditions hold")
        };
        assert_eq!(both.filters.len(), 2);
        assert!(matches!(both.filters[1].filter_type, Some(FilterType::UnaryFilter(_))));
        let (start, end) = (query.start_at.unwrap(), query.end_at.unwrap());
        assert_eq!((start.before, end.before), (false, false));
        assert_eq!(
            start.values[1].value_type,
            Some(ValueType::ReferenceValue("users/ada".into())),
            "the name is a reference"
        );
        assert_eq!(query.order_by[0].direction, Direction::Descending as i32);
    }

    /// Google's clients ask so too: an equality with either finds nothing.
    #[test]
    fn what_equals_nothing_is_asked_for_by_its_own_question() {
        use unary_filter::Operator::{IsNan, IsNotNan, IsNotNull, IsNull};
        let nan = json!({ "doubleValue": "NaN" });
        for (op, value, wanted) in [
            ("==", json!(null), IsNull),
            ("!=", json!({ "nullValue": null }), IsNotNull),
            ("==", nan.clone(), IsNan),
            ("!=", nan, IsNotNan),
        ] {
            let query = made(json!({ "collection": "u", "where": [["x", op, value]] })).unwrap();
            let filter = query.query.unwrap().r#where.unwrap().filter_type;
            let Some(FilterType::UnaryFilter(unary)) = filter else { panic!("{filter:?}") };
            assert_eq!(unary.op, wanted as i32, "{op} {value}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (json, why) in [
            (json!({}), "requires collection"),
            (json!({ "collection": "a", "collection_group": "b" }), "requires collection"),
            (json!({ "collection": "users/ada" }), "such as users"),
            (json!({ "collection": "a", "where": [["x", "~", 1]] }), "got \"~\""),
            (json!({ "collection": "a", "order": [["x", "up"]] }), "must be asc or desc"),
            (json!({ "collection": "a", "start_at": [1] }), "more values"),
            (
                json!({ "collection": "a", "order": ["x"], "start_at": [1], "start_after": [1] }),
                "exclude",
            ),
            (json!({ "collection": "a", "limit": 0 }), "at least 1"),
            (json!({ "collection": "a", "lmit": 1 }), "unknown field"),
        ] {
            let error = made(json).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
