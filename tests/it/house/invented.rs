//! The reading of imports and the rules, on small trees.

use super::{
    CONFIG, CRATES, HTTP_API, INGRESS, KINDS, NET, PROTOCOL,
    circles::{self, Known},
    graph::{Graph, Target, begins_with, is_in},
    rules::{Exception, Rule},
    source::Sources,
};

/// A tree of these files. What no file declares is declared by the nearest file above it.
fn tree(files: &[(&str, &str)]) -> Graph {
    let mut sources = Sources::new();
    for (path, text) in files {
        sources.entry((*path).to_owned()).or_default().push_str(text);
        let mut path = *path;
        while let Some((folder, name)) = path.rsplit_once('/') {
            let name = name.strip_suffix(".rs").unwrap_or(name);
            if name == "lib" || name == "src" {
                break;
            }
            let above = format!("{folder}.rs");
            let above = if folder.ends_with("src") { format!("{folder}/lib.rs") } else { above };
            let text = sources.entry(above).or_default();
            let declaration = format!("mod {name};");
            if !text.contains(&declaration) {
                text.insert_str(0, &declaration);
            }
            path = folder;
        }
    }
    Graph::new(&sources)
}

/// What a file imports, in the order of its files.
#[track_caller]
fn imports(files: &[(&str, &str)], file: &str, expected: &[&str]) {
    let graph = tree(files);
    let found = graph.imports.iter().filter(|import| import.file == file);
    let found: Vec<String> = found.map(|import| import.to.to_string()).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_path_leads_to_the_file_that_defines_what_it_names() {
    let files = [
        ("src/a/inner.rs", "pub struct A; pub fn f() {}"),
        ("src/a.rs", "pub use inner::A; pub use inner::f as g; pub const C: u8 = 1;"),
        ("src/b.rs", "use crate::a::A;"),
        ("src/c.rs", "use crate::a::{C, g};"),
        ("src/d.rs", "fn d() { crate::a::g() }"),
        ("src/e.rs", "use super::a; fn e(a: u8) -> a::A { a::A }"),
        ("src/f.rs", "use super::*; fn e() { let _: a::A; }"),
        ("src/g.rs", "pub use crate::b::A;"),
        ("src/h.rs", "fn h() { use crate::a as b; b::g() }"),
        ("src/i.rs", "fn i() { println!(\"{}\", [crate::a::A::new(super::b::x)]) }"),
        ("src/j.rs", "use crate::g::A; struct B { a: A }"),
        ("src/k.rs", "impl crate::a::T for u8 {}"),
    ];
    let inner: &[&str] = &["src/a/inner.rs"];
    imports(&files, "src/a.rs", &[]);
    imports(&files, "src/b.rs", inner);
    imports(&files, "src/c.rs", &["src/a.rs", "src/a/inner.rs"]);
    imports(&files, "src/d.rs", inner);
    imports(&files, "src/e.rs", inner);
    imports(&files, "src/f.rs", &["src/a/inner.rs", "src/lib.rs"]);
    imports(&files, "src/g.rs", inner);
    imports(&files, "src/h.rs", inner);
    imports(&files, "src/i.rs", &["src/a/inner.rs", "src/b.rs"]);
    imports(&files, "src/j.rs", inner);
    imports(&files, "src/k.rs", &["src/a.rs"]);
}

#[test]
fn a_parent_imports_what_it_uses_of_its_children_and_not_what_it_passes_on() {
    let child = ("src/a/b.rs", "pub struct B; pub fn plan() {}");
    let parent = |text| [child, ("src/a.rs", text)];
    imports(&parent("pub(crate) use b::B;"), "src/a.rs", &[]);
    imports(&parent("use b::B;"), "src/a.rs", &["src/a/b.rs"]);
    imports(&parent("pub use b::B; struct A(B);"), "src/a.rs", &["src/a/b.rs"]);
    imports(&parent("pub use b::plan; fn a() { let plan = 1; a(plan); }"), "src/a.rs", &[]);
    imports(&parent("pub use b::plan; fn a() { let plan = plan(); }"), "src/a.rs", &["src/a/b.rs"]);
    imports(&parent("fn a(b: u8) { a(b) }"), "src/a.rs", &[]);
    imports(&parent("mod c { use super::b::B; }"), "src/a.rs", &["src/a/b.rs"]);
}

#[test]
fn what_is_for_tests_alone_is_left_out() {
    let with = |text| [("src/a.rs", "pub struct A;"), ("src/b.rs", text)];
    imports(&with("#[cfg(test)] use crate::a::A;"), "src/b.rs", &[]);
    imports(&with("#[cfg(test)] mod tests { use crate::a::A; }"), "src/b.rs", &[]);
    imports(&with("#[cfg(any(test, feature = \"fuzzing\"))] use crate::a::A;"), "src/b.rs", &[]);
    imports(&with("#[cfg(test)] mod elsewhere; struct B;"), "src/b.rs", &[]);
    imports(&with("impl B { #[cfg(test)] fn b() -> crate::a::A {} }"), "src/b.rs", &[]);
    imports(&with("struct B { #[cfg(test)] b: crate::a::A }"), "src/b.rs", &[]);
    imports(&with("fn b() { #[cfg(test)] crate::a::A::new(); }"), "src/b.rs", &[]);
    imports(&with("#[cfg(not(test))] use crate::a::A;"), "src/b.rs", &["src/a.rs"]);
    imports(&with("#[cfg(unix)] use crate::a::A;"), "src/b.rs", &["src/a.rs"]);
}

#[test]
fn what_is_not_ours_is_a_path_into_a_crate() {
    let with = |text| [("src/tokio_like.rs", ""), ("src/b.rs", text)];
    let stream: &[&str] = &["tokio::net::TcpStream"];
    imports(&with("use tokio::net::TcpStream;"), "src/b.rs", stream);
    imports(&with("fn b(_: ::tokio::net::TcpStream) {}"), "src/b.rs", stream);
    imports(&with("use tokio; type B = tokio::net::TcpStream;"), "src/b.rs", &["tokio", stream[0]]);
    imports(
        &with("use tokio::net; fn b() { net::TcpStream::connect() }"),
        "src/b.rs",
        &["tokio::net", "tokio::net::TcpStream"],
    );
    imports(&with("fn b() { u8::from(Vec::<str>::new()); drop(b) }"), "src/b.rs", &[]);
    imports(&with("#[derive(serde::Serialize)] struct B;"), "src/b.rs", &["serde::Serialize"]);
}

#[test]
fn the_crates_lead_into_one_another() {
    let files = [
        ("state/src/lib.rs", "pub use queue::Queue;"),
        ("state/src/queue.rs", "pub struct Queue;"),
        ("actors/src/lib.rs", "pub use fusebox_state::Queue;"),
        ("src/lib.rs", "use fusebox_actors::Queue;"),
        ("src/main.rs", "fn main() { fusebox::cli() }"),
    ];
    imports(&files, "src/lib.rs", &["state/src/queue.rs"]);
    imports(&files, "actors/src/lib.rs", &["state/src/queue.rs"]);
    imports(&files, "src/main.rs", &["src/lib.rs"]);
}

#[test]
fn names_that_lead_to_themselves_end() {
    let files = [
        ("src/a.rs", "pub use crate::b::X; pub use super::*;"),
        ("src/b.rs", "pub use crate::a::X; pub use super::a::*;"),
        ("src/c.rs", "use crate::a::X; use serde::serde; use serde;"),
        ("src/lib.rs", "pub use a::*; pub use b::*;"),
    ];
    assert!(!tree(&files).imports.is_empty());
}

#[test]
fn an_area_is_a_module_with_what_is_below_it() {
    assert!(is_in("src/net.rs", "src/net"));
    assert!(is_in("src/net/dial.rs", "src/net"));
    assert!(!is_in("src/network.rs", "src/net"));
    assert!(!is_in("src/net.rs", "src/net/dial"));
    assert!(is_in("src/kinds/redis/protocol/plan.rs", "src/kinds/*/protocol"));
    assert!(is_in("src/kinds/redis/protocol.rs", "src/kinds/*/protocol"));
    assert!(!is_in("src/kinds/redis/transport/protocol.rs", "src/kinds/*/protocol"));
    assert!(begins_with("tokio::net::TcpStream", "tokio::net"));
    assert!(begins_with("http", "http"));
    assert!(!begins_with("http_body::Body", "http"));
}

/// Breaks a rule with an import, and looks for the file, the import and the rule in what it says.
#[track_caller]
fn breaks(rule: &Rule, files: &[(&str, &str)], expected: &str) {
    let rule = Rule { exceptions: &[], text: rule.text, ..*rule };
    assert_eq!(rule.complaints(&tree(files)), [format!("{expected}: {}", rule.text)]);
}

#[test]
fn every_rule_can_be_broken() {
    let connection = ("src/kinds/redis/transport/link.rs", "pub struct Link;");
    let plan = "src/kinds/redis/protocol/plan.rs";
    breaks(
        &PROTOCOL,
        &[connection, (plan, "\nuse super::super::transport::link::Link;")],
        "src/kinds/redis/protocol/plan.rs:2 imports `super::super::transport::link::Link` of \
         src/kinds/redis/transport/link.rs",
    );
    breaks(
        &PROTOCOL,
        &[("src/net/dial.rs", "pub fn dial() {}"), (plan, "fn f() { crate::net::dial::dial() }")],
        "src/kinds/redis/protocol/plan.rs:1 imports `crate::net::dial::dial` of src/net/dial.rs",
    );
    breaks(
        &PROTOCOL,
        &[(plan, "use tokio::{net::TcpStream, time::Instant};")],
        "src/kinds/redis/protocol/plan.rs:1 imports `tokio::net::TcpStream`",
    );
    breaks(
        &CONFIG,
        &[
            ("src/config/backend.rs", "pub use crate::kinds::Kind;"),
            ("src/kinds/port.rs", "pub trait Kind {}"),
            ("src/kinds.rs", "pub use port::Kind;"),
        ],
        "src/config/backend.rs:1 imports `crate::kinds::Kind` of src/kinds/port.rs",
    );
    breaks(
        &KINDS,
        &[
            (
                "src/kinds/redis/kind.rs",
                "use crate::kinds::{port::Kind, clickhouse::kind::ClickHouse};",
            ),
            ("src/kinds/clickhouse/kind.rs", "pub struct ClickHouse;"),
            ("src/kinds/port.rs", "pub trait Kind {}"),
        ],
        "src/kinds/redis/kind.rs:1 imports `crate::kinds::clickhouse::kind::ClickHouse` of \
         src/kinds/clickhouse/kind.rs",
    );
    breaks(
        &NET,
        &[
            ("src/net/http1.rs", "use crate::kinds::redis::settings::Settings;"),
            ("src/kinds/redis/settings.rs", "pub struct Settings;"),
        ],
        "src/net/http1.rs:1 imports `crate::kinds::redis::settings::Settings` of \
         src/kinds/redis/settings.rs",
    );
    breaks(
        &INGRESS,
        &[("src/ingress/gate.rs", "use hyper::StatusCode;")],
        "src/ingress/gate.rs:1 imports `hyper::StatusCode`",
    );
    breaks(
        &HTTP_API,
        &[
            ("src/http_api/problem.rs", "pub struct Problem;"),
            ("src/lib.rs", "use http_api::problem::Problem;"),
            ("src/cli.rs", "use crate::http_api::problem::Problem;"),
        ],
        "src/cli.rs:1 imports `crate::http_api::problem::Problem` of src/http_api/problem.rs",
    );
    breaks(
        &CRATES,
        &[("state/src/lib.rs", "use fusebox_actors::A;"), ("actors/src/lib.rs", "pub struct A;")],
        "state/src/lib.rs:1 imports `fusebox_actors::A` of actors/src/lib.rs",
    );
    breaks(
        &CRATES,
        &[("actors/src/lib.rs", "use fusebox::A;"), ("src/lib.rs", "pub struct A;")],
        "actors/src/lib.rs:1 imports `fusebox::A` of src/lib.rs",
    );
}

#[test]
fn an_exception_holds_for_its_import_and_not_once_that_is_gone() {
    let rule = Rule {
        exceptions: &[Exception {
            file: "src/ingress/gate.rs",
            import: "http::StatusCode",
            reason: "for now",
        }],
        text: INGRESS.text,
        ..INGRESS
    };
    let with = |text| rule.complaints(&tree(&[("src/ingress/gate.rs", text)]));
    assert_eq!(with("use http::StatusCode;"), Vec::<String>::new());
    assert_eq!(with("use http::{StatusCode, Method};").len(), 1);
    let gone = with("");
    assert_eq!(
        gone,
        [
            "src/ingress/gate.rs imports nothing of http::StatusCode any more: take the exception off the list (for now)"
        ]
    );
}

#[test]
fn a_rule_about_no_file_is_broken() {
    assert_eq!(INGRESS.complaints(&tree(&[("src/a.rs", "")])).len(), 1);
}

#[test]
fn a_circle_is_known_or_told() {
    let files = [
        ("src/a.rs", "use crate::b::B; pub struct A;"),
        ("src/b.rs", "use crate::c::C; pub struct B;"),
        ("src/c.rs", "use crate::a::A; use crate::d::D; pub struct C;"),
        ("src/d.rs", "pub struct D;"),
    ];
    let graph = tree(&files);
    let circle = ["src/a.rs", "src/b.rs", "src/c.rs"];
    assert_eq!(circles::of(&graph), [circle.to_vec()]);
    assert_eq!(
        circles::complaints(&graph, &[]),
        ["files that import one another, so that none can be read alone: \
          [\"src/a.rs\", \"src/b.rs\", \"src/c.rs\"]\
          \n    src/a.rs:1 imports `crate::b::B` of src/b.rs\
          \n    src/b.rs:1 imports `crate::c::C` of src/c.rs\
          \n    src/c.rs:1 imports `crate::a::A` of src/a.rs"]
    );
    let known = [Known { files: &["src/a.rs", "src/b.rs", "src/c.rs"], reason: "for now" }];
    assert_eq!(circles::complaints(&graph, &known), Vec::<String>::new());
    let cut = [files[0], files[1], files[3], ("src/c.rs", "use crate::d::D; pub struct C;")];
    assert_eq!(
        circles::complaints(&tree(&cut), &known),
        ["no longer a circle, or not of these files alone: src/a.rs, src/b.rs, src/c.rs (for now)"]
    );
    let only = [Known { files: &["src/a.rs", "src/b.rs"], reason: "for now" }];
    assert_eq!(circles::complaints(&graph, &only).len(), 2);
}

#[test]
fn lines_are_counted_from_a_signature_to_its_end() {
    let text = "/// Long.\n#[inline]\npub fn f() {\n\n}\nimpl A {\n    fn g() {}\n}\n#[cfg(test)]\nmod tests {\n    fn h() {}\n}\n";
    let graph = tree(&[("src/a.rs", text)]);
    let syntax = &graph.files["src/a.rs"];
    let functions: Vec<_> =
        syntax.functions.iter().map(|one| (one.name.as_str(), one.line, one.lines)).collect();
    assert_eq!(functions, [("f", 3, 3), ("g", 7, 1)]);
    assert_eq!(syntax.tests, [9..=12]);
    assert!(!graph.imports.iter().any(|import| matches!(import.to, Target::Foreign(_))));
}
