//! The documentation: its links lead somewhere, every page can be found, and its sentences are short.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::Path,
};

/// The words in the middle sentence of a page, at most.
const MEDIAN_MAX: usize = 17;
/// The words in nine tenths of a page's sentences, at most.
const MOST_MAX: usize = 30;

/// Pages whose sentences are not measured.
const NOT_MEASURED: &[&str] = &["CHANGELOG.md"];

/// Path, relative to the root of the repository, to text.
pub(super) type Pages = BTreeMap<String, String>;

/// Every page of the root, of `docs` and of `examples`.
pub(super) fn read(root: &Path) -> Pages {
    let mut pages = Pages::new();
    add(root, "", &mut pages);
    for folder in ["docs", "docs/guide", "docs/prometheus", "examples"] {
        add(root, folder, &mut pages);
    }
    assert!(pages.len() > 2, "no pages below {}", root.display());
    pages
}

fn add(root: &Path, folder: &str, pages: &mut Pages) {
    for entry in fs::read_dir(root.join(folder)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "md") {
            let name = path.strip_prefix(root).unwrap().to_str().expect("a name in UTF-8");
            pages.insert(name.to_owned(), fs::read_to_string(&path).unwrap());
        }
    }
}

/// The lines of a page that are not in a block of code.
pub(super) fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut code = false;
    text.lines().enumerate().filter_map(move |(at, line)| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        (!code && !fence).then_some((at + 1, line))
    })
}

/// A line without its `code`.
pub(super) fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("`")
}

/// The links that lead nowhere, and the pages that no other page leads to.
pub(super) fn lost_links(pages: &Pages, is_file: impl Fn(&str) -> bool) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut found = BTreeSet::new();
    for (page, text) in pages {
        for (line, target) in links(text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let file = if file.is_empty() { page.clone() } else { beside(page, file) };
            if file != *page {
                found.insert(file.clone());
            }
            match pages.get(&file) {
                Some(text) if anchor.is_empty() || anchors(text).contains(anchor) => {}
                Some(_) => complaints.push(format!("{page}:{line}: {file} has no #{anchor}")),
                None if is_file(&file) => {}
                None => complaints.push(format!("{page}:{line}: there is no {file}")),
            }
        }
    }
    let lonely = pages.keys().filter(|page| *page != "README.md" && !found.contains(*page));
    complaints.extend(lonely.map(|page| format!("{page}: no other page has a link to it")));
    complaints
}

/// The targets of the links of a page, each with its line.
pub(crate) fn links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (at, line) in prose(text) {
        let line = without_code(line);
        let targets = line.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0));
        links.extend(targets.map(|target| (at, target.to_owned())));
    }
    links
}

/// What `link` on `page` leads to, from the root.
pub(crate) fn beside(page: &str, link: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut times: HashMap<String, usize> = HashMap::new();
    let headings = prose(text).filter_map(|(_, line)| {
        let heading = line.trim_start_matches('#');
        (heading.len() < line.len() && heading.starts_with(' ')).then(|| heading.trim())
    });
    let slug = |heading: &str| -> String {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).flat_map(char::to_lowercase).collect()
    };
    let numbered = headings.map(slug).map(|slug| {
        let before = times.entry(slug.clone()).or_default();
        *before += 1;
        if *before == 1 { slug } else { format!("{slug}-{}", *before - 1) }
    });
    numbered.collect()
}

/// The pages whose sentences are too long, with the longest of them.
pub(super) fn long_sentences(pages: &Pages) -> Vec<String> {
    let measured = pages.iter().filter(|(page, _)| !NOT_MEASURED.contains(&page.as_str()));
    measured
        .filter_map(|(page, text)| {
            let mut sentences = sentences(text);
            sentences.sort_by_key(|sentence| words(sentence));
            let longest = sentences.last()?;
            // The longest of the shortest so many percent.
            let of = |share: usize| sentences.get((sentences.len() * share).div_ceil(100) - 1);
            let words_of = |share: usize| of(share).map_or(0, |sentence| words(sentence));
            let (median, most) = (words_of(50), words_of(90));
            (median > MEDIAN_MAX || most > MOST_MAX).then(|| {
                format!(
                    "{page}: the median sentence has {median} words, at most {MEDIAN_MAX} are wanted; nine \
                     tenths have up to {most}, at most {MOST_MAX} are wanted. The longest is: {longest}"
                )
            })
        })
        .collect()
}

fn words(sentence: &str) -> usize {
    sentence.split_whitespace().count()
}

/// The sentences of a page. Headings, tables and code have none.
fn sentences(text: &str) -> Vec<String> {
    let mut paragraphs = vec![String::new()];
    let mut last = 0;
    for (at, line) in prose(text) {
        let line = line.trim();
        let is_item = line.starts_with("- ")
            || line.split_once(". ").is_some_and(|it| it.0.parse::<u8>().is_ok());
        let is_none =
            line.is_empty() || ["#", "|", "<!--"].iter().any(|start| line.starts_with(start));
        if is_none || is_item || at != last + 1 {
            paragraphs.push(String::new());
        }
        last = at;
        if !is_none && let Some(paragraph) = paragraphs.last_mut() {
            let line = if is_item { line.split_once(' ').map_or("", |it| it.1) } else { line };
            paragraph.push_str(line);
            paragraph.push(' ');
        }
    }
    paragraphs.iter().flat_map(|paragraph| split(paragraph)).collect()
}

/// The sentences of a paragraph: they end at a full stop or its like, or at a colon before a capital letter.
fn split(paragraph: &str) -> Vec<String> {
    let mut sentences = vec![String::new()];
    let mut words = paragraph.split_whitespace().peekable();
    while let Some(word) = words.next() {
        if let Some(sentence) = sentences.last_mut() {
            sentence.push_str(word);
            sentence.push(' ');
        }
        let bare = word.trim_end_matches(['"', ')', '*', '”']);
        let next = words.peek().and_then(|next| next.chars().find(|c| c.is_alphanumeric()));
        let ends = bare.ends_with(['.', '!', '?'])
            || bare.ends_with(':') && next.is_some_and(char::is_uppercase);
        if ends {
            sentences.push(String::new());
        }
    }
    sentences.retain(|sentence| !sentence.is_empty());
    sentences
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let readme = "# A b\n[1](docs/a.md#two-words) [2](docs/a.md#none) [3](docs/b.md)\n\
                  [4](#a-b) `[5](none)` [6](https://example.com) [7](x.toml)\n```\n[8](none)\n```\n";
    let page = "[up](../README.md#a-b)\n## Two *words*!\n";
    let pages: Pages = [("README.md", readme), ("docs/a.md", page), ("docs/c.md", "")]
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .into();
    assert_eq!(
        lost_links(&pages, |file| file == "x.toml"),
        [
            "README.md:2: docs/a.md has no #none",
            "README.md:2: there is no docs/b.md",
            "docs/c.md: no other page has a link to it"
        ]
    );
}

#[test]
fn sentences_are_told_apart() {
    let text = "# Head\nOne two. Three\nfour (e.g. five)! Six:\n- seven: Eight\n\n| a. b |\n```\nNone.\n```\nNine";
    assert_eq!(
        sentences(text),
        ["One two. ", "Three four (e.g. ", "five)! ", "Six: ", "seven: ", "Eight ", "Nine "]
    );
}

#[test]
fn a_page_of_long_sentences_is_found() {
    let of = |words: usize, times: usize| format!("{}. ", vec!["w"; words].join(" ")).repeat(times);
    let is_long = |text: String| !long_sentences(&[("a.md".to_owned(), text)].into()).is_empty();
    assert!(!is_long(of(17, 9) + &of(31, 1)), "one in ten may be longer");
    assert!(is_long(of(17, 8) + &of(31, 2)));
    assert!(is_long(of(18, 3)));
}
