//! Who imports whom: the rules of the layout, read from the sources.
//!
//! `house::numbers` prints the layout in numbers:
//! `cargo nextest run --workspace --no-capture -E 'test(house::numbers)'`.

mod circles;
mod codes;
mod graph;
mod invented;
mod known;
mod notice;
mod numbers;
pub(crate) mod pages;
mod rules;
mod selects;
mod source;
mod syntax;
mod words;

use std::{path::Path, sync::LazyLock};

use graph::{Graph, Import, is_in};
use rules::{Rule, is_of, kind_of, leads_to};

const PROTOCOL: Rule = Rule {
    text: "a protocol is bytes and decisions; it knows no connections",
    about: |file| is_in(file, "src/kinds/*/protocol"),
    forbids: |_, import| {
        leads_to(import, CONNECTIONS)
            || is_of(import, WEB)
            || is_of(import, &["tonic", "tokio::net", "tokio::io", "tokio_rustls"])
    },
    exceptions: known::IN_PROTOCOLS,
};

const CONFIG: Rule = Rule {
    text: "the configuration knows no kind; a kind hands in its section",
    about: |file| is_in(file, "src/config"),
    forbids: |_, import| leads_to(import, &["src/kinds"]),
    exceptions: &[],
};

const KINDS: Rule = Rule {
    text: "kinds do not know one another",
    about: |file| is_in(file, "src/kinds/*"),
    forbids: |graph, import| {
        let from = kind_of(graph, &import.file);
        let graph::Target::File(to) = &import.to else { return false };
        let to = kind_of(graph, to);
        from.is_some() && to.is_some() && from != to
    },
    exceptions: &[],
};

const NET: Rule = Rule {
    text: "what every kind dials with knows none of them",
    about: |file| is_in(file, "src/net"),
    forbids: |_, import| leads_to(import, &["src/kinds"]),
    exceptions: known::IN_NET,
};

const INGRESS: Rule = Rule {
    text: "what admits a caller is below every door and knows no HTTP",
    about: |file| is_in(file, "src/ingress"),
    forbids: |_, import| is_of(import, WEB) || leads_to(import, &["src/http_api"]),
    exceptions: &[],
};

const HTTP_API: Rule = Rule {
    text: "only the wiring knows the HTTP API",
    about: |file| !["src/http_api", "src/lib", "src/daemon"].iter().any(|area| is_in(file, area)),
    forbids: |_, import| leads_to(import, &["src/http_api"]),
    exceptions: known::OF_HTTP_API,
};

const CRATES: Rule = Rule {
    text: "state knows neither actors nor fusebox, and actors knows no fusebox",
    about: |file| is_in(file, "state") || is_in(file, "actors"),
    forbids: |_, import: &Import| {
        leads_to(import, &["src"]) || is_in(&import.file, "state") && leads_to(import, &["actors"])
    },
    exceptions: &[],
};

/// What has to do with connections. A live query is one.
const CONNECTIONS: &[&str] =
    &["src/kinds/*/transport", "src/kinds/*/live_queries", "src/kinds/*/connector", "src/net"];

/// The crates that speak HTTP.
const WEB: &[&str] = &[
    "axum",
    "http",
    "http_body",
    "http_body_util",
    "hyper",
    "hyper_rustls",
    "hyper_util",
    "h2",
    "tower",
];

/// The size of README.md in bytes, at most: people who do not know fusebox yet shall read all of it.
const README_MAX: usize = 7_000;

/// The folders that the rules are about: none may be missing.
const FOLDERS: &[&str] = &[
    "src/config",
    "src/http_api",
    "src/ingress",
    "src/kinds/clickhouse/protocol",
    "src/kinds/clickhouse/transport",
    "src/kinds/firestore/protocol",
    "src/kinds/firestore/transport",
    "src/kinds/redis/protocol",
    "src/kinds/redis/transport",
    "src/net",
    "src/terminal",
];

#[test]
fn no_folder_of_the_layout_is_missing() {
    let graph = ours();
    let is_there =
        |folder: &&str| graph.files.keys().any(|file| file.starts_with(&format!("{folder}/")));
    all_is_well(
        FOLDERS
            .iter()
            .filter(|folder| !is_there(folder))
            .map(|folder| format!("{folder}/ is missing"))
            .collect(),
    );
}

#[test]
fn a_protocol_knows_no_connections() {
    all_is_well(PROTOCOL.complaints(ours()));
}

#[test]
fn the_configuration_knows_no_kind() {
    all_is_well(CONFIG.complaints(ours()));
}

#[test]
fn kinds_do_not_know_one_another() {
    all_is_well(KINDS.complaints(ours()));
}

#[test]
fn what_every_kind_dials_with_knows_none_of_them() {
    all_is_well(NET.complaints(ours()));
}

#[test]
fn what_admits_a_caller_knows_no_http() {
    all_is_well(INGRESS.complaints(ours()));
}

#[test]
fn only_the_wiring_knows_the_http_api() {
    all_is_well(HTTP_API.complaints(ours()));
}

#[test]
fn state_knows_no_actors_and_actors_know_no_fusebox() {
    let mut complaints = CRATES.complaints(ours());
    complaints.extend(forbidden_dependencies("state", &["fusebox", "fusebox-actors"]));
    complaints.extend(forbidden_dependencies("actors", &["fusebox"]));
    all_is_well(complaints);
}

#[test]
fn no_files_import_one_another_in_a_circle() {
    all_is_well(circles::complaints(ours(), known::CIRCLES));
}

#[test]
fn what_is_simulated_leaves_nothing_to_the_chance_of_a_select() {
    let sources = source::read(root());
    all_is_well(
        [selects::complaints(&sources, "actors/"), selects::complaints(&sources, "state/")]
            .concat(),
    );
}

#[test]
fn every_link_leads_somewhere_and_every_page_can_be_found() {
    all_is_well(pages::lost_links(&pages::read(root()), |file| {
        root().join(file).try_exists().unwrap()
    }));
}

#[test]
fn the_sentences_of_the_documentation_are_short() {
    all_is_well(pages::long_sentences(&pages::read(root())));
}

#[test]
fn the_readme_is_short() {
    let bytes = pages::read(root())["README.md"].len();
    assert!(
        bytes <= README_MAX,
        "README.md has {bytes} bytes, at most {README_MAX} are wanted: docs has room for more"
    );
}

#[test]
fn every_code_of_an_error_is_on_the_page_of_the_http_api() {
    let page = std::fs::read_to_string(root().join("docs/http-api.md")).unwrap();
    all_is_well(codes::missing(&source::read(root()), &page));
}

#[test]
fn no_word_makes_sentences_hard_to_read_too_often() {
    all_is_well(words::complaints(&source::read_all(root()), &pages::read(root())));
}

#[test]
fn numbers() {
    let sources = source::read(root());
    println!("{}", numbers::of(&sources, ours()));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn ours() -> &'static Graph {
    static OURS: LazyLock<Graph> = LazyLock::new(|| Graph::new(&source::read(root())));
    &OURS
}

#[track_caller]
fn all_is_well(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// What the manifest of a crate names and should not.
fn forbidden_dependencies(krate: &str, forbidden: &[&str]) -> Vec<String> {
    let manifest = std::fs::read_to_string(root().join(krate).join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let sections = ["dependencies", "dev-dependencies", "build-dependencies"];
    let named = sections.iter().filter_map(|section| manifest.get(*section)?.as_table());
    let named = named.flat_map(toml::Table::keys);
    named
        .filter(|name| forbidden.contains(&name.as_str()))
        .map(|name| format!("{krate}/Cargo.toml depends on {name}: {}", CRATES.text))
        .collect()
}
