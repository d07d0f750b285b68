//! A disk, and what a power cut makes of it.

use std::collections::HashMap;

use super::{super::*, CUTS, scratch};

/// A file or folder, whatever its name.
pub(super) type Node = usize;

/// How the power is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Not at all: the process was killed, everything that was written is there.
    Killed,
    /// Nothing is there but what was synced.
    Nothing,
    /// Each write is there or not.
    Whole,
    /// Each block of so many bytes is as one of the writes left it.
    Torn(usize),
    /// All writes are there; what became of names is not.
    Files,
}

/// What was done to a disk.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Write {
        node: Node,
        offset: usize,
        data: Vec<u8>,
    },
    Truncate {
        node: Node,
        length: usize,
    },
    Link {
        folder: Node,
        name: String,
        node: Node,
    },
    Unlink {
        folder: Node,
        name: String,
    },
    Rename {
        folder: Node,
        from: String,
        to: String,
    },
    /// What was done to the node before step `since` is there for good.
    Sync {
        node: Node,
        since: usize,
    },
    /// What was written to the node before step `since`, and not synced before, will never be there.
    Failed {
        node: Node,
        since: usize,
    },
    Said(String),
}

#[derive(Clone, Debug)]
enum Content {
    File(Vec<u8>),
    Folder(BTreeMap<String, Node>),
}

/// See the [module](self). The root is node 0.
#[derive(Clone, Debug)]
pub(super) struct Disk(Vec<Content>);

impl Disk {
    /// What is in a folder now.
    pub(super) fn load(root: &Path) -> Self {
        let mut disk = Self(vec![Content::Folder(BTreeMap::new())]);
        disk.load_into(0, root);
        disk
    }

    fn load_into(&mut self, folder: Node, path: &Path) {
        fs::create_dir_all(path).unwrap();
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_dir() {
                let node = self.add(true);
                self.link(folder, name, node);
                self.load_into(node, &entry.path());
            } else {
                let node = self.add(false);
                self.0[node] = Content::File(fs::read(entry.path()).unwrap());
                self.link(folder, name, node);
            }
        }
    }

    /// A node that has no name yet.
    pub(super) fn add(&mut self, is_folder: bool) -> Node {
        let content =
            if is_folder { Content::Folder(BTreeMap::new()) } else { Content::File(Vec::new()) };
        self.0.push(content);
        self.0.len() - 1
    }

    pub(super) fn is_folder(&self, node: Node) -> bool {
        matches!(self.0[node], Content::Folder(_))
    }

    fn link(&mut self, folder: Node, name: String, node: Node) {
        let Content::Folder(names) = &mut self.0[folder] else { panic!("{folder} is a file") };
        names.insert(name, node);
    }

    /// The node under a name.
    pub(super) fn named(&self, folder: Node, name: &str) -> Option<Node> {
        let Content::Folder(names) = &self.0[folder] else { return None };
        names.get(name).copied()
    }

    /// A node and all that is below it.
    pub(super) fn below(&self, node: Node) -> Vec<Node> {
        let mut nodes = vec![node];
        if let Content::Folder(names) = &self.0[node] {
            nodes.extend(names.values().flat_map(|node| self.below(*node)));
        }
        nodes
    }

    pub(super) fn length(&self, node: Node) -> usize {
        if let Content::File(data) = &self.0[node] { data.len() } else { 0 }
    }

    /// Does what was done.
    pub(super) fn take(&mut self, step: &Step) {
        match step {
            Step::Write { node, offset, data } => {
                if let Content::File(file) = &mut self.0[*node] {
                    write_into(file, *offset, data);
                }
            }
            Step::Truncate { node, length } => {
                if let Content::File(file) = &mut self.0[*node] {
                    file.resize(*length, 0);
                }
            }
            Step::Link { folder, name, node } => self.link(*folder, name.clone(), *node),
            Step::Unlink { folder, name } => {
                if let Content::Folder(names) = &mut self.0[*folder] {
                    names.remove(name);
                }
            }
            Step::Rename { folder, from, to } => {
                if let Content::Folder(names) = &mut self.0[*folder]
                    && let Some(node) = names.remove(from)
                {
                    names.insert(to.clone(), node);
                }
            }
            Step::Sync { .. } | Step::Failed { .. } | Step::Said(_) => {}
        }
    }

    /// The disk after these steps and a cut.
    pub(super) fn after(&self, steps: &[Step], cut: Cut, random: &mut fastrand::Rng) -> Self {
        let mut synced: HashMap<Node, usize> = HashMap::new();
        let mut failed: HashMap<Node, Vec<std::ops::Range<usize>>> = HashMap::new();
        for step in steps {
            match step {
                Step::Sync { node, since } => {
                    let until = synced.entry(*node).or_default();
                    *until = (*until).max(*since);
                }
                Step::Failed { node, since } => {
                    let from = synced.get(node).copied().unwrap_or_default();
                    failed.entry(*node).or_default().push(from..*since);
                }
                _ => {}
            }
        }
        let is_gone = |node: Node, at: usize| {
            failed.get(&node).is_some_and(|ranges| ranges.iter().any(|range| range.contains(&at)))
        };
        let mut disk = self.clone();
        let mut pending: HashMap<Node, Vec<&Step>> = HashMap::new();
        for (at, step) in steps.iter().enumerate() {
            let Some(node) = step.node() else { continue };
            let is_written = matches!(step, Step::Write { .. });
            if cut != Cut::Killed && is_written && is_gone(node, at) {
                continue;
            }
            if cut == Cut::Killed || synced.get(&node).is_some_and(|until| at < *until) {
                disk.take(step);
            } else if step.is_of_names() {
                pending.entry(node).or_default().push(step);
            } else if cut == Cut::Files {
                disk.take(step);
            } else {
                pending.entry(node).or_default().push(step);
            }
        }
        let mut nodes: Vec<Node> = pending.keys().copied().collect();
        nodes.sort_unstable();
        for node in nodes {
            let steps = &pending[&node];
            if disk.is_folder(node) {
                let kept = match cut {
                    Cut::Nothing => 0,
                    _ => random.usize(..=steps.len()),
                };
                steps.iter().take(kept).for_each(|step| disk.take(step));
                continue;
            }
            match cut {
                Cut::Whole => {
                    steps.iter().filter(|_| random.bool()).for_each(|step| disk.take(step));
                }
                Cut::Torn(block) => disk.tear(node, steps, block, random),
                Cut::Killed | Cut::Nothing | Cut::Files => {}
            }
        }
        disk
    }

    /// Each block is as one of the writes left it, and the length as well.
    fn tear(&mut self, node: Node, steps: &[&Step], block: usize, random: &mut fastrand::Rng) {
        let mut versions = vec![self.0[node].clone()];
        for step in steps {
            self.take(step);
            versions.push(self.0[node].clone());
        }
        let data = |version: usize| match &versions[version] {
            Content::File(data) => data.as_slice(),
            Content::Folder(_) => &[],
        };
        let length = data(random.usize(..versions.len())).len();
        let mut torn = vec![0; length];
        for (at, part) in torn.chunks_mut(block).enumerate() {
            let from = data(random.usize(..versions.len())).get(at * block..).unwrap_or_default();
            let there = from.len().min(part.len());
            part[..there].copy_from_slice(&from[..there]);
        }
        self.0[node] = Content::File(torn);
    }

    /// Writes it all to a folder.
    pub(super) fn write(&self, to: &Path) {
        self.write_node(0, to);
    }

    fn write_node(&self, node: Node, to: &Path) {
        match &self.0[node] {
            Content::File(data) => fs::write(to, data).unwrap(),
            Content::Folder(names) => {
                fs::create_dir_all(to).unwrap();
                for (name, node) in names.iter().filter(|(name, _)| *name != "ballast") {
                    self.write_node(*node, &to.join(name));
                }
            }
        }
    }
}

impl Step {
    /// The file or folder that it changes.
    pub(super) fn node(&self) -> Option<Node> {
        match self {
            Self::Write { node, .. } | Self::Truncate { node, .. } => Some(*node),
            Self::Link { folder, .. }
            | Self::Unlink { folder, .. }
            | Self::Rename { folder, .. } => Some(*folder),
            Self::Sync { .. } | Self::Failed { .. } | Self::Said(_) => None,
        }
    }

    fn is_of_names(&self) -> bool {
        matches!(self, Self::Link { .. } | Self::Unlink { .. } | Self::Rename { .. })
    }
}

fn write_into(file: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[offset..end].copy_from_slice(data);
}

#[test]
fn only_what_was_synced_outlives_a_cut_for_certain() {
    let dir = scratch();
    let mut disk = Disk::load(dir.path());
    let node = disk.add(false);
    let write = |offset, byte| Step::Write { node, offset, data: vec![byte; 512] };
    let steps = [
        Step::Link { folder: 0, name: "a".into(), node },
        write(0, 1),
        Step::Sync { node: 0, since: 1 },
        Step::Sync { node, since: 2 },
        write(0, 2),
        write(512, 3),
    ];
    let mut random = fastrand::Rng::with_seed(1);
    let mut seen = std::collections::BTreeSet::new();
    for cut in CUTS {
        for _ in 0..64 {
            let after = disk.after(&steps, cut, &mut random);
            let Content::File(data) = &after.0[after.named(0, "a").unwrap()] else { panic!() };
            let bytes: Vec<u8> = data.iter().step_by(512).copied().collect();
            assert!(cut != Cut::Killed || bytes == [2, 3]);
            assert!(cut != Cut::Nothing || bytes == [1]);
            seen.insert(bytes);
        }
    }
    let all = [vec![1], vec![1, 0], vec![1, 3], vec![2], vec![2, 0], vec![2, 3]];
    assert_eq!(seen, all.into());
    let unsynced = disk.after(&steps[..2], Cut::Nothing, &mut random);
    assert_eq!(unsynced.named(0, "a"), None, "its name was not synced");
}
