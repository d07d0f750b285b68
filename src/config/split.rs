//! The two halves of a backend's section: what every backend has, and what its kind has besides.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::{declared::Declared, section::Section};

/// Each backend's own settings of its kind, taken out of the merged table. What belongs to another kind is taken out,
/// too, and named.
pub(super) fn split(
    table: &mut Table,
    declared: &Declared,
    sections: &[&dyn Section],
    problems: &mut Vec<String>,
) -> BTreeMap<String, Table> {
    let backends = table.get_mut("backends").and_then(Value::as_table_mut);
    let of_kinds = || {
        let of_kinds = declared.settings.iter().filter_map(|it| Some((it, it.kind?)));
        of_kinds.filter_map(|(it, kind)| Some((it.path.strip_prefix("backends.*.")?, kind)))
    };
    let mut split = BTreeMap::new();
    for (name, section) in backends.into_iter().flatten() {
        let Value::Table(section) = section else { continue };
        let kind = section.get("kind").and_then(Value::as_str).unwrap_or(name).to_owned();
        let mut own = Table::new();
        for (key, holder) in of_kinds() {
            let Some(value) = section.remove(key) else { continue };
            let is_known = sections.iter().any(|section| section.name() == kind);
            let is_its = of_kinds().any(|(its, of)| its == key && of == kind);
            if is_its {
                own.insert(key.to_owned(), value);
            } else if is_known {
                problems.push(format!(
                    "backends.{name}.{key} is a setting of the kind {holder}, and this backend's kind is {kind}"
                ));
            }
        }
        split.insert(name.clone(), own);
    }
    split
}
