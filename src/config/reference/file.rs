//! systemd/fusebox.toml: every setting with its default, explained.

use std::fmt::Write as _;

use toml::{Table, Value};

use super::{
    super::{
        declared::{Declared, Described},
        section::Section,
        setting::{Setting, as_toml},
    },
    leaves, name, written,
};

const HEAD: &str = "\
# fusebox's configuration, installed as /etc/fusebox/fusebox.toml. Every value shown is the default, and a key may be
# left out; what begins with #key = is an example, or a default that follows from other settings. `fusebox check`
# validates this file and prints what is in effect. docs/configuration.md has all bounds.
#
# Any key can be overridden by a variable: FUSEBOX_BACKENDS__REDIS__BREAKER__FAILURE_THRESHOLD=7.
# Durations: 200ms, 30s, 5m, 1h. Sizes: 64KiB, 64MiB, 1GiB.
#
# `fusebox config schema --format toml` generates this file from the declarations of the settings.
";

/// The longest line of a comment, in characters.
const WIDTH: usize = 118;

/// The file. `usual` are the settings in effect without any file: what follows from others is shown as it is there.
pub(crate) fn file(sections: &[&dyn Section], usual: &Table) -> String {
    let declared = Declared::new(sections);
    let page = Page { declared: &declared, usual };
    let mut text = HEAD.to_owned();
    page.section(&mut text, &Described::default(), "", None);
    for section in &declared.sections {
        if section.path.starts_with("backends.") {
            continue;
        }
        let head = match section.path.strip_suffix("[]") {
            Some(list) => format!("[[{list}]]"),
            None => format!("[{}]", section.path),
        };
        page.section(&mut text, section, &head, None);
    }
    // The last is shown whole, as the one that most have; of the others what differs from it.
    let mut kinds = sections.iter().rev().map(|section| section.name());
    let Some(whole) = kinds.next() else { return text };
    page.backend(&mut text, whole, None);
    let others: Vec<&str> = kinds.collect();
    write!(
        text,
        "\n# A {} has the same settings. What is shown below is its own, or has another default.\n",
        others.join(" or a ")
    )
    .ok();
    for kind in others {
        page.backend(&mut text, kind, Some(whole));
    }
    text
}

struct Page<'a> {
    declared: &'a Declared,
    usual: &'a Table,
}

/// Whose settings are shown.
#[derive(Clone, Copy)]
struct Of<'a> {
    kind: &'a str,
    /// The kind that was shown before: what is as it is there is left out.
    before: Option<&'a str>,
}

impl Page<'_> {
    fn backend(&self, text: &mut String, kind: &str, before: Option<&str>) {
        let of = Of { kind, before };
        for section in &self.declared.sections {
            let Some(below) = section.path.strip_prefix("backends.*") else { continue };
            self.section(text, section, &format!("[backends.{kind}{below}]"), Some(of));
        }
    }

    fn section(&self, text: &mut String, section: &Described, head: &str, of: Option<Of<'_>>) {
        let is_shown = |setting: &&Setting| match of {
            None => setting.kind.is_none(),
            Some(Of { kind, before }) => match before {
                _ if setting.kind.is_some() => setting.kind == Some(kind),
                None => true,
                Some(before) => self.value(setting, kind) != self.value(setting, before),
            },
        };
        let shown: Vec<&Setting> = leaves(self.declared, &section.path).filter(is_shown).collect();
        if shown.is_empty() {
            return;
        }
        let lines: Vec<(String, bool)> = shown
            .iter()
            .map(|setting| {
                let (value, is_set) = self.value(setting, of.map_or("", |of| of.kind));
                // One of a list would be there if it were set.
                let is_set = is_set && !section.is_list;
                (format!("{}{} = {value}", if is_set { "" } else { "#" }, name(setting)), is_set)
            })
            .collect();
        text.push('\n');
        // The part of the other kind has said it.
        let is_said = of.is_some_and(|of| of.before.is_some());
        comment(text, if is_said { "" } else { &section.doc });
        if !head.is_empty() {
            let mark = if lines.iter().any(|(_, is_set)| *is_set) { "" } else { "#" };
            writeln!(text, "{mark}{head}").ok();
        }
        for (setting, (line, _)) in shown.iter().zip(lines) {
            let said_before = is_said && setting.kind.is_none();
            if !said_before {
                let rule = setting.facts.rule.as_ref();
                let rule = rule.map_or_else(String::new, |rule| format!(" By default {rule}."));
                let words = setting.facts.words.iter().map(|word| format!("{word:?}"));
                let words = words.collect::<Vec<_>>().join(", ");
                let words = if words.is_empty() { words } else { format!(" One of: {words}.") };
                comment(text, &format!("{}{words}{rule}", setting.doc));
            }
            writeln!(text, "{line}").ok();
        }
    }

    /// What is shown of a setting, and whether the file sets it.
    fn value(&self, setting: &Setting, kind: &str) -> (String, bool) {
        let facts = &setting.facts;
        if let Some(default) = self.declared.default_of(setting, kind) {
            return (written(setting, &default), true);
        }
        let example = facts.example.as_ref().and_then(as_toml);
        if let (Some(example), true) = (&example, facts.installed) {
            return (written(setting, example), true);
        }
        let path = setting.path.replacen('*', kind, 1);
        let usual = path.split('.').try_fold(None::<&Value>, |at, part| {
            Some(Some(match at {
                None => self.usual.get(part)?,
                Some(at) => at.get(part)?,
            }))
        });
        let word = || facts.words.first().map(|word| Value::String(word.to_string()));
        let value = example.or_else(|| usual.flatten().cloned()).or_else(word);
        (value.map_or_else(|| "\"\"".to_owned(), |value| written(setting, &value)), false)
    }
}

/// Writes a comment, in lines of their usual width.
fn comment(text: &mut String, words: &str) {
    let mut line = String::new();
    for word in words.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > WIDTH - 2 {
            writeln!(text, "# {line}").ok();
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        writeln!(text, "# {line}").ok();
    }
}
