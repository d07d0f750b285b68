//! Which file refers to which: every path of every file, followed to the file that defines what it names.
//!
//! - A name that a module passes on (`pub use`) or brings in counts for the file that defines it. A path that
//!   cannot be followed to its end, such as a name that a macro makes, counts for the last module on the way.
//! - A `use` of a module counts for nothing by itself: the paths through it count.
//! - `mod x;` is no import, nor is it one if a module passes on what its own submodules define.
//! - Methods and fields name no path, and so are not seen.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
};

use super::{
    source::{self, CRATES, Sources},
    syntax::{self, By, Module, Segments, Syntax, Use},
};

/// What a file refers to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// A file of ours, by its path.
    File(String),
    /// A path into a crate that is not ours, to a type at most, such as `tokio::net::TcpStream`.
    Foreign(String),
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) | Self::Foreign(path) => formatter.write_str(path),
        }
    }
}

/// One file refers to another, or to a crate that is not ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Import {
    pub(crate) file: String,
    pub(crate) to: Target,
    pub(crate) line: usize,
    /// The path as it is written, but for the braces of a `use`.
    pub(crate) path: String,
}

impl fmt::Display for Import {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, to, line, path } = self;
        match to {
            Target::File(to) => write!(formatter, "{file}:{line} imports `{path}` of {to}"),
            Target::Foreign(_) => write!(formatter, "{file}:{line} imports `{path}`"),
        }
    }
}

/// Every file and what it imports.
#[derive(Debug)]
pub(crate) struct Graph {
    /// Every file of the crates, by its path.
    pub(crate) files: BTreeMap<String, Syntax>,
    /// Of several of the same, the first.
    pub(crate) imports: Vec<Import>,
}

impl Graph {
    /// Reads the files, and follows their paths. Files that no `mod` reaches are left out.
    pub(crate) fn new(sources: &Sources) -> Self {
        let mut names = Names::default();
        let mut files = BTreeMap::new();
        for (path, syntax) in parse_all(sources) {
            files.insert(path, syntax);
        }
        for (name, root) in CRATES {
            if let Some(syntax) = files.get(root) {
                let folder = root.rsplit_once('/').map_or("", |(folder, _)| folder);
                let at = names.add(&files, &syntax.module, root, folder, None);
                names.crates.insert(name, at);
            }
        }
        let reached: BTreeSet<&str> = names.modules.iter().map(|one| one.file).collect();
        let imports = names.imports();
        let reached: BTreeSet<String> = reached.into_iter().map(String::from).collect();
        files.retain(|path, _| reached.contains(path));
        Self { files, imports }
    }

    /// The imports from one file of ours to another.
    pub(crate) fn edges(&self) -> impl Iterator<Item = (&str, &str)> {
        self.imports.iter().filter_map(|import| match &import.to {
            Target::File(to) => Some((import.file.as_str(), to.as_str())),
            Target::Foreign(_) => None,
        })
    }
}

/// Whether a file is in an area. An area is a module, as a path without `.rs`: the file of that name, and the
/// folder of that name. `*` is any one segment.
pub(crate) fn is_in(file: &str, area: &str) -> bool {
    let mut parts = file.split('/');
    let mut wanted = area.split('/').peekable();
    while let Some(want) = wanted.next() {
        let Some(part) = parts.next() else { return false };
        let last = wanted.peek().is_none();
        let same = want == "*" || part == want || last && part.strip_suffix(".rs") == Some(want);
        if !same {
            return false;
        }
    }
    true
}

/// Whether a path into a foreign crate begins with these segments.
pub(crate) fn begins_with(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Reads the files, some on each core.
fn parse_all(sources: &Sources) -> Vec<(String, Syntax)> {
    let all: Vec<_> = sources.iter().collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let parse = |share: Vec<&(&String, &String)>| {
        let each = share.into_iter();
        each.map(|(path, text)| ((*path).clone(), syntax::parse(path, text))).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let shares: Vec<_> = (0..cores)
            .map(|core| all.iter().skip(core).step_by(cores).collect())
            .map(|share| scope.spawn(move || parse(share)))
            .collect();
        let done = shares.into_iter();
        done.flat_map(|share| share.join().unwrap_or_else(|why| std::panic::resume_unwind(why)))
            .collect()
    })
}

/// Every module, and what its names mean.
#[derive(Default)]
struct Names<'a> {
    modules: Vec<Entry<'a>>,
    crates: HashMap<&'static str, usize>,
    /// What was looked up, by module, name and whether a module was meant. What is being looked up is nothing
    /// yet: a name that leads to itself is a crate's.
    known: RefCell<HashMap<(usize, String, bool), Option<Found>>>,
}

struct Entry<'a> {
    module: &'a Module,
    file: &'a str,
    parent: Option<usize>,
    children: HashMap<&'a str, usize>,
}

/// What a path leads to.
#[derive(Clone, Debug)]
enum Found {
    /// Something that this module defines.
    Item(usize),
    Module(usize),
    Foreign(Segments),
    /// Nothing that is known, beyond this module.
    Lost(usize),
}

impl<'a> Names<'a> {
    fn add(
        &mut self,
        files: &'a BTreeMap<String, Syntax>,
        module: &'a Module,
        file: &'a str,
        folder: &str,
        parent: Option<usize>,
    ) -> usize {
        let at = self.modules.len();
        self.modules.push(Entry { module, file, parent, children: HashMap::new() });
        let mut children = HashMap::new();
        for name in &module.declared {
            let path = format!("{folder}/{name}.rs");
            if source::is_of_tests(&path) {
                continue;
            }
            let (path, syntax) = files
                .get_key_value(&path)
                .unwrap_or_else(|| panic!("{file} declares `mod {name};`, and {path} is missing"));
            let below = format!("{folder}/{name}");
            children.insert(name.as_str(), self.add(files, &syntax.module, path, &below, Some(at)));
        }
        for inner in &module.inline {
            let below = format!("{folder}/{}", inner.name);
            children.insert(inner.name.as_str(), self.add(files, inner, file, &below, Some(at)));
        }
        self.modules[at].children = children;
        at
    }

    fn imports(&self) -> Vec<Import> {
        let mut imports: BTreeMap<(&str, Target), (usize, String)> = BTreeMap::new();
        for (at, entry) in self.modules.iter().enumerate() {
            let mut add = |path: &Segments, line: usize, found: Found| {
                let to = match found {
                    Found::Item(at) | Found::Module(at) | Found::Lost(at) => {
                        Target::File(self.modules[at].file.to_owned())
                    }
                    Found::Foreign(path) => Target::Foreign(up_to_type(&path).join("::")),
                };
                if to != Target::File(entry.file.to_owned()) {
                    let import = (line, path.join("::"));
                    let first = imports.entry((entry.file, to)).or_insert_with(|| import.clone());
                    if import.0 < first.0 {
                        *first = import;
                    }
                }
            };
            for one in &entry.module.uses {
                match self.brought_in(at, one, false) {
                    Found::Module(_) if !one.name.is_empty() => {}
                    Found::Item(of) if one.passed_on && self.is_below(of, at) => {}
                    found => add(&one.path, one.line, found),
                }
            }
            for mention in &entry.module.mentions {
                match self.resolve(at, &mention.path, false) {
                    // A variable may be named as a module is.
                    Some(Found::Module(_)) if mention.by == By::Use || mention.path.len() == 1 => {}
                    Some(found) => add(&mention.path, mention.line, found),
                    None => {}
                }
            }
        }
        let import = |((file, to), (line, path)): ((&str, Target), (usize, String))| Import {
            file: file.to_owned(),
            to,
            line,
            path,
        };
        imports.into_iter().map(import).collect()
    }

    fn is_below(&self, mut at: usize, above: usize) -> bool {
        while let Some(parent) = self.modules[at].parent {
            if parent == above {
                return true;
            }
            at = parent;
        }
        false
    }

    /// What a `use` of a module brings in.
    fn brought_in(&self, at: usize, one: &Use, of_module: bool) -> Found {
        self.resolve(at, &one.path, of_module).unwrap_or_else(|| self.outside(&one.path, of_module))
    }

    /// A path that begins with a crate's name.
    fn outside(&self, path: &[String], of_module: bool) -> Found {
        let root = path.first().and_then(|first| self.crates.get(first.as_str()));
        match root {
            Some(root) => self.walk(*root, &path[1..], of_module),
            None => Found::Foreign(path.to_vec()),
        }
    }

    /// What a path that a module writes leads to; a module if one is meant and there is one. `None`: to a
    /// variable, or to a name that every module has.
    fn resolve(&self, at: usize, path: &[String], of_module: bool) -> Option<Found> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "" => Some(self.outside(rest, of_module)),
            "Self" => None,
            "crate" => {
                let mut root = at;
                while let Some(parent) = self.modules[root].parent {
                    root = parent;
                }
                Some(self.walk(root, rest, of_module))
            }
            "self" | "super" => Some(self.walk(at, path, of_module)),
            _ => match self.lookup(at, first, of_module || !rest.is_empty()) {
                Some(found) => Some(self.onward(found, rest, of_module)),
                None if rest.is_empty() || !is_crate(first) => None,
                None => Some(self.outside(path, of_module)),
            },
        }
    }

    fn onward(&self, found: Found, rest: &[String], of_module: bool) -> Found {
        match found {
            Found::Module(at) => self.walk(at, rest, of_module),
            Found::Foreign(mut path) => {
                path.extend_from_slice(rest);
                Found::Foreign(path)
            }
            found => found,
        }
    }

    /// What a path leads to from a module on.
    fn walk(&self, at: usize, path: &[String], of_module: bool) -> Found {
        let Some((first, rest)) = path.split_first() else { return Found::Module(at) };
        match (first.as_str(), self.modules[at].parent) {
            ("self", _) => self.walk(at, rest, of_module),
            ("super", Some(parent)) => self.walk(parent, rest, of_module),
            _ => match self.lookup(at, first, of_module || !rest.is_empty()) {
                Some(found) => self.onward(found, rest, of_module),
                None => Found::Lost(at),
            },
        }
    }

    /// What a name means in a module.
    fn lookup(&self, at: usize, name: &str, of_module: bool) -> Option<Found> {
        let key = (at, name.to_owned(), of_module);
        if let Some(known) = self.known.borrow().get(&key) {
            return known.clone();
        }
        self.known.borrow_mut().insert(key.clone(), None);
        let found = self.named(at, name, of_module).or_else(|| self.in_globs(at, name, of_module));
        self.known.borrow_mut().insert(key, found.clone());
        found
    }

    /// What a module itself means by a name, which may be both a module's and something else's.
    fn named(&self, at: usize, name: &str, of_module: bool) -> Option<Found> {
        let Entry { module, children, .. } = &self.modules[at];
        let child = children.get(name).map(|child| Found::Module(*child));
        let item = module.items.contains(name).then_some(Found::Item(at));
        let uses = module.uses.iter().filter(|one| one.name == name);
        let brought_in = uses.map(|one| self.brought_in(at, one, of_module));
        let all: Vec<Found> = child.into_iter().chain(item).chain(brought_in).collect();
        let meant = all.iter().find(|found| matches!(found, Found::Module(_)) == of_module);
        meant.or(all.first()).cloned()
    }

    fn in_globs(&self, at: usize, name: &str, of_module: bool) -> Option<Found> {
        let globs = self.modules[at].module.uses.iter().filter(|one| one.name.is_empty());
        let mut globs = globs.map(|one| self.resolve(at, &one.path, true));
        globs.find_map(|found| match found? {
            Found::Module(of) if of != at => self.lookup(of, name, of_module),
            _ => None,
        })
    }
}

/// A path without what follows a type's name: what the type has is no import of its own.
fn up_to_type(path: &[String]) -> &[String] {
    let is_type = |segment: &String| segment.starts_with(|first: char| first.is_uppercase());
    let end = path.iter().position(is_type).map_or(path.len(), |at| at + 1);
    &path[..end]
}

/// Whether a path that begins with this name, which nothing brings in, begins with a crate.
fn is_crate(name: &str) -> bool {
    const PRIMITIVES: [&str; 18] = [
        "bool", "char", "str", "f32", "f64", "u8", "u16", "u32", "u64", "u128", "usize", "i8",
        "i16", "i32", "i64", "i128", "isize", "clippy",
    ];
    name.starts_with(|first: char| first.is_ascii_lowercase()) && !PRIMITIVES.contains(&name)
}
