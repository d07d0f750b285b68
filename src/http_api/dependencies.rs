//! GET /v1/dependencies: who depends on whom, as JSON or as a graph for Graphviz.

use std::{fmt::Write, sync::Arc};

use axum::{
    Json,
    extract::{Query, State},
    http::header,
    response::{IntoResponse, Response},
};
use fusebox_actors::view::{DependenciesView, EdgeView, NodeView};
use serde::Deserialize;

use super::{
    api::Api,
    problem::{Checked, Problem},
};

/// How the graph is wanted.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    /// JSON, or the language of Graphviz; JSON if it is not said.
    #[schemars(extend("enum" = ["json", "dot"]))]
    format: Option<String>,
}

/// GET /v1/dependencies
pub(crate) async fn graph(
    State(api): State<Arc<Api>>,
    Checked(Query(wanted)): Checked<Query<Wanted>>,
) -> Result<Response, Problem> {
    let view = api.daemon.fusebox.dependencies();
    match wanted.format.as_deref() {
        None | Some("json") => Ok(Json(view).into_response()),
        Some("dot") => {
            let kind = [(header::CONTENT_TYPE, "text/vnd.graphviz; charset=utf-8")];
            Ok((kind, dot(&view)).into_response())
        }
        Some(other) => {
            Err(Problem::malformed(format!("format must be json or dot, got {other:?}")))
        }
    }
}

/// The graph in Graphviz's language: whole lines are required, dashed ones optional, dotted ones seen. Root causes have
/// a double border.
fn dot(view: &DependenciesView) -> String {
    let mut text = String::from("digraph fusebox {\n  rankdir=LR;\n  node [style=filled];\n");
    let is_root = |node: &NodeView| view.root_causes.iter().any(|root| root.backend == node.name);
    for node in &view.nodes {
        let colour = match &*node.state {
            "CLOSED" => "palegreen",
            "HALF_OPEN" => "khaki",
            "OFFLINE" | "OPENING" => "lightgrey",
            _ => "lightcoral",
        };
        let shape = if node.kind == "host" { "box" } else { "ellipse" };
        let borders = if is_root(node) { 2 } else { 1 };
        // Writing to a string does not fail.
        writeln!(
            text,
            "  {:?} [label=\"{}\\n{}\", shape={shape}, fillcolor={colour}, peripheries={borders}];",
            node.name, node.name, node.state
        )
        .ok();
    }
    for EdgeView { from, to, kind, required, because } in &view.edges {
        let style = match (&**kind, required) {
            ("seen", _) => "dotted, dir=none",
            (_, true) => "solid",
            (_, false) => "dashed",
        };
        let label = if kind == "seen" { &**because } else { "" };
        writeln!(text, "  {from:?} -> {to:?} [style={style}, label={label:?}];").ok();
    }
    text.push_str("}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_says_who_needs_whom_and_who_is_to_blame() {
        let view: DependenciesView = serde_json::from_value(serde_json::json!({
            "nodes": [
                { "name": "a", "kind": "backend", "state": "OPEN" },
                { "name": "b", "kind": "backend", "state": "CLOSED" },
                { "name": "host:dns", "kind": "host", "state": "DOWN" },
            ],
            "edges": [
                { "from": "a", "to": "b", "kind": "declared", "required": true, "because": "depends_on" },
                { "from": "b", "to": "a", "kind": "declared", "required": false },
                { "from": "a", "to": "host:dns", "kind": "seen", "because": "found no address" },
            ],
            "root_causes": [{ "backend": "host:dns" }],
        }))
        .unwrap();
        assert_eq!(
            dot(&view),
            "\
digraph fusebox {
  rankdir=LR;
  node [style=filled];
  \"a\" [label=\"a\\nOPEN\", shape=ellipse, fillcolor=lightcoral, peripheries=1];
  \"b\" [label=\"b\\nCLOSED\", shape=ellipse, fillcolor=palegreen, peripheries=1];
  \"host:dns\" [label=\"host:dns\\nDOWN\", shape=box, fillcolor=lightcoral, peripheries=2];
  \"a\" -> \"b\" [style=solid, label=\"\"];
  \"b\" -> \"a\" [style=dashed, label=\"\"];
  \"a\" -> \"host:dns\" [style=dotted, dir=none, label=\"found no address\"];
}
"
        );
    }
}
