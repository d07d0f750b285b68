//! The layout in numbers, to be compared with itself. Tests and their helpers are not counted.

use std::fmt::Write;

use super::{
    circles,
    graph::{Graph, is_in},
    source::Sources,
};

/// A function longer than this does not fit a screen.
const FUNCTION_LINES_MAX: usize = 60;
/// The folder in which this kind may be named.
const CLICKHOUSE: &str = "src/kinds/clickhouse";

/// The numbers, a line each.
pub(crate) fn of(sources: &Sources, graph: &Graph) -> String {
    let mut lines: Vec<(usize, &str)> = graph
        .files
        .keys()
        .map(|file| (code(sources, graph, file).count(), file.as_str()))
        .collect();
    lines.sort_unstable();
    let (median, largest) = (lines[lines.len() / 2].0, lines[lines.len() - 1]);
    let mut text = format!("files: {}\nlines of the median file: {median}\n", lines.len());
    writeln!(text, "lines of the largest file: {} ({})", largest.0, largest.1).unwrap();

    let long = graph.files.iter().flat_map(|(file, syntax)| {
        let functions = syntax.functions.iter();
        functions
            .filter(|one| one.lines > FUNCTION_LINES_MAX)
            .map(move |one| format!("  {file}:{} {}, {} lines", one.line, one.name, one.lines))
    });
    list(&mut text, "functions over 60 lines", long.collect());

    let circles = circles::of(graph);
    let in_circles = circles.iter().map(|circle| format!("  {}", circle.join(" ")));
    list(&mut text, "circles", in_circles.collect());

    let naming = graph.files.keys().filter(|file| {
        !is_in(file, CLICKHOUSE)
            && code(sources, graph, file).any(|line| line.to_lowercase().contains("clickhouse"))
    });
    let naming = naming.map(|file| format!("  {file}"));
    list(&mut text, "files outside of its own that name ClickHouse", naming.collect());
    text
}

/// The lines of a file, without its tests.
fn code<'a>(sources: &'a Sources, graph: &'a Graph, file: &str) -> impl Iterator<Item = &'a str> {
    let tests = &graph.files[file].tests;
    let lines = sources[file].lines().enumerate();
    lines
        .filter(|(at, _)| !tests.iter().any(|range| range.contains(&(at + 1))))
        .map(|(_, line)| line)
}

fn list(text: &mut String, what: &str, lines: Vec<String>) {
    writeln!(text, "{what}: {}", lines.len()).unwrap();
    for line in lines {
        writeln!(text, "{line}").unwrap();
    }
}
