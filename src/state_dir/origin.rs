//! What a state directory knows of itself, in the file `origin` beside `instance`: the place at which it was made,
//! which names it had before, which backends have had a store, and what an operator has yet to decide.
//!
//! # A copy
//! A directory is the one that it was if it has the inode and the birth time that it had, on the machine of the
//! same `/etc/machine-id`. (Never the device number, which changes from one boot to the next.) So an `mv` within
//! a file system is not a copy. Everything that makes a second one is: `cp`, `rsync`, a restored backup, a golden
//! image, a volume that is attached to another machine; and so is an `mv` to another file system, which nobody
//! can tell from these. What a file system or a container does not tell (a birth time, a machine id) is not
//! compared.
//!
//! The folders of stores outside the directory are the original's. So a copy forgets them, and expects its stores in
//! their usual folders, until a daemon notes those that its configuration names.
//!
//! A copy by blocks on the same machine id is the same by all that. Its proof is the twin itself
//! ([`crate::kinds::twins`]).
//!
//! # A copy of a store
//! A backup that is restored into the same directory leaves the place as it was. So does a store that is put in the place
//! of another, and a volume that is mounted again over a folder in which a store was begun meanwhile. Each store knows
//! its name, and whether its files are its own (`fusebox_state::store::identity`); this file knows the name of the store
//! that each backend has. The name is drawn and noted before the store is begun. If one of the two is not as it was, and
//! calls may wait in that store, replay is paused as in a copy: these calls may have been applied since, and newer writes
//! acknowledged.
//!
//! A backend that is given another folder leaves its store behind. It is noted here for as long as it is there, and if
//! calls may wait in it, that is a loss until an operator accepts it.
//!
//! # What is written when
//! | event | order | a crash in between leaves |
//! | --- | --- | --- |
//! | first start | `instance`, `origin` | a name without an origin, which is taken from its place then |
//! | a copy is found, or what may be one | `origin` with the pause, the new place, the former name and the new one, then `instance` with the new name | a name that is a former one, in whose place the next start puts the new one |
//! | a twin is found | the same | the same |
//! | what had a former name is killed at a backend | `origin` with that backend | it is killed there once more |
//! | accept-clone, accept-loss | `origin`, then what it holds back goes on | it goes on at the next start |
//! | a store is gone, left behind, or another one | `origin`, then the store is opened or made | the loss or the pause, found again |
//! | a store is to be begun, or has no name | its name, then `origin`, then the store is made | a name that is not noted; nobody misses it |
//!
//! # Former names
//! What an earlier run has sent under a former name may still be on its way to a backend. So it is killed there, once:
//! afterwards the name may be another daemon's. No run and no connector can say of itself that it was done, so this file
//! says it: by name, the backends at which nothing has it any more ([`crate::kinds::former`]). A release that knows
//! nothing of that drops it when it writes the file.
//!
//! # Damage
//! A file that is no origin, or cannot be read, is set aside, reported, and replaced by a new one. What it had to say of
//! losses and of former names is gone. Whether the directory is a copy, and was paused as one, is not known any more, so
//! it is treated as a copy, be its stores here or elsewhere. Which stores it had elsewhere is not known either, and the
//! new file says so until a daemon has noted its stores. A directory without the file is new, or of a release that
//! had none.
//!
//! One flipped bit in the name of a value would end a pause unnoticed, so the file begins with a checksum of all that
//! follows. A file without one is of an earlier release: it is read, and gets one at the next start. Those releases
//! pass over it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use fusebox_state::store::check;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

/// Its file.
pub(super) const FILE: &str = "origin";

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Origin {
    /// The place at which the directory was made, or last accepted.
    #[serde(flatten)]
    pub(super) place: Place,
    /// The backends that have had a store; with its folder if that is not the usual one.
    #[serde(default)]
    pub(super) stores: BTreeMap<String, Option<PathBuf>>,
    /// The names of these stores (`fusebox_state::store::identity`), as far as they are known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) names: BTreeMap<String, String>,
    /// Folders with stores that a backend has had and no longer uses.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) left: BTreeMap<String, BTreeSet<PathBuf>>,
    /// Backends whose store was gone at a start, and the alert for that until an operator accepts it.
    #[serde(default)]
    pub(super) lost: BTreeMap<String, String>,
    /// The longest `timeout` that an attempt at each backend may have which is on the wire, in milliseconds: of this
    /// run, and of earlier ones until that is over.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) timeouts: BTreeMap<String, u64>,
    /// Why replay is paused until an operator accepts the copy.
    #[serde(default)]
    pub(super) paused: Option<String>,
    /// Backends whose store may not be the one that they had. Replay is paused until an operator accepts that, too.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) doubted: BTreeMap<String, Doubt>,
    /// The names that the directory had before, each with the backends at which nothing has it any more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) former: BTreeMap<String, BTreeSet<String>>,
    /// The name in the place of the last of those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) renamed: Option<String>,
    /// What was wrong with the file in whose place this one is, until a daemon has noted its stores: that file may have
    /// named others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) damage: Option<String>,
}

impl Origin {
    /// The directory's name if `name`, which its own file says, is a former one.
    pub(super) fn name_after(&self, name: &str) -> Option<String> {
        self.renamed.clone().filter(|_| self.former.contains_key(name))
    }
}

/// A store that may not be the one that its backend had.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Doubt {
    /// Its folder.
    pub(super) dir: PathBuf,
    pub(super) why: String,
}

/// What tells a directory from its copies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Place {
    /// A digest of the machine's id, which is nobody's business.
    machine: Option<String>,
    inode: Option<u64>,
    /// Seconds and nanoseconds since 1970.
    born: Option<(u64, u32)>,
}

impl Place {
    /// Of the directory `dir` on this machine.
    pub(super) fn of(dir: &Path) -> Self {
        let machine = std::fs::read_to_string("/etc/machine-id").ok();
        let machine = machine.map(|id| id.trim().to_owned()).filter(|id| !id.is_empty());
        let meta = std::fs::metadata(dir).ok();
        let born = meta.as_ref().and_then(|meta| meta.created().ok());
        let born = born.and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        Self {
            machine: machine
                .map(|id| format!("{:032x}", xxh3_128(format!("fusebox {id}").as_bytes()))),
            inode: meta.map(|meta| meta.ino()),
            born: born.map(|born| (born.as_secs(), born.subsec_nanos())),
        }
    }

    /// Why `now` is not what was written of this place, in the words of a sentence; `None` if it is.
    pub(super) fn differs(&self, now: &Self) -> Option<&'static str> {
        fn other<T: PartialEq>(one: Option<&T>, two: Option<&T>) -> bool {
            one.zip(two).is_some_and(|(one, two)| one != two)
        }
        if other(self.machine.as_ref(), now.machine.as_ref()) {
            return Some("it was made on another machine");
        }
        let moved = other(self.inode.as_ref(), now.inode.as_ref())
            || other(self.born.as_ref(), now.born.as_ref());
        moved.then_some("it is not the folder that was made here")
    }
}

/// How a file with a checksum begins.
const SUM: &str = "{\n  \"checksum\": \"";
/// What is between the checksum and all that it is of.
const END_OF_SUM: &str = "\",\n";

/// What was found at the origin's place.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it is read once, and taken apart at once")]
pub(super) enum Read {
    Found {
        origin: Origin,
        /// It has a checksum.
        is_sealed: bool,
    },
    Nothing,
    /// It is none, or cannot be read: why.
    Garbage(String),
}

/// Reads the origin in `dir`.
pub(super) fn read(dir: &Path) -> Read {
    match fusebox_state::file::read(&dir.join(FILE)) {
        Ok(bytes) => parse(&bytes).unwrap_or_else(Read::Garbage),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Read::Nothing,
        Err(error) => Read::Garbage(error.to_string()),
    }
}

fn parse(bytes: &[u8]) -> Result<Read, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let sealed = text.strip_prefix(SUM).and_then(|rest| rest.split_once(END_OF_SUM));
    if sealed.is_some_and(|(sum, rest)| sum != checksum(rest)) {
        return Err("its checksum is wrong".to_owned());
    }
    let origin = serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok(Read::Found { origin, is_sealed: sealed.is_some() })
}

fn checksum(text: &str) -> String {
    format!("{:032x}", xxh3_128(text.as_bytes()))
}

/// Writes the origin in `dir`, in the place of the one before.
///
/// # Errors
/// What the file system says; the one before stays, unless [`is_in_place`].
pub(super) fn write(dir: &Path, origin: &Origin) -> std::io::Result<()> {
    let text = serde_json::to_string_pretty(origin).map_err(std::io::Error::other)? + "\n";
    // The checksum is one more of its values, before all others.
    let rest = text.strip_prefix("{\n").unwrap_or(&text);
    let sealed = format!("{SUM}{}{END_OF_SUM}{rest}", checksum(rest));
    replace(dir, FILE, sealed.as_bytes())
}

/// Why [`replace`] has failed though the new file is in its place: that may not outlast a power cut.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Unsynced(std::io::Error);

/// Whether the new file of a [`replace`] that has failed with this is in its place all the same.
pub(crate) fn is_in_place(error: &std::io::Error) -> bool {
    matches!(error.get_ref(), Some(inner) if inner.is::<Unsynced>())
}

/// Replaces the file `name` in `dir`, synced; only its owner may read it.
///
/// # Errors
/// What the file system says; the one before stays, unless [`is_in_place`].
pub(crate) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    // Opened before the rename: afterwards nothing may fail for want of a file descriptor.
    let folder = File::open(dir)?;
    let next = dir.join(format!("{name}.next"));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&next)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&next, dir.join(name))?;
    folder.sync_all().map_err(|error| std::io::Error::other(Unsynced(error)))
}

/// Whether there is a store in `dir`. One that was set aside is none. A folder that cannot be read is taken for one:
/// opening it says what is wrong.
pub(super) fn has_store(dir: &Path) -> bool {
    match std::fs::read_dir(dir) {
        Ok(entries) => {
            let asides = check::asides(dir);
            entries.filter_map(Result::ok).any(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                let is_part = name == "mark" || name == "suspect" || name == "db";
                is_part || name.starts_with("db.") && !asides.contains(&name)
            })
        }
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

/// A store's name as it is written down.
pub(super) fn hex(name: u128) -> String {
    format!("{name:032x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_another_place_and_a_move_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (dir.path().join("here"), dir.path().join("there"));
        std::fs::create_dir(&here).unwrap();
        let place = Place::of(&here);
        assert!(place.inode.is_some());
        std::fs::rename(&here, &there).unwrap();
        assert_eq!(place.differs(&Place::of(&there)), None);
        std::fs::create_dir(&here).unwrap();
        let why = "it is not the folder that was made here";
        assert_eq!(place.differs(&Place::of(&here)), Some(why));
    }

    #[test]
    fn what_is_not_known_of_a_place_is_not_compared() {
        let place = |machine: Option<&str>, inode, born| Place {
            machine: machine.map(str::to_owned),
            inode,
            born,
        };
        let whole = place(Some("m"), Some(1), Some((2, 3)));
        for same in
            [place(None, None, None), place(Some("m"), None, None), place(None, Some(1), None)]
        {
            assert_eq!((whole.differs(&same), same.differs(&whole)), (None, None));
        }
        let machine = Some("it was made on another machine");
        assert_eq!(whole.differs(&place(Some("n"), Some(1), Some((2, 3)))), machine);
        // An inode's number that is given again, as on a restored volume.
        assert!(whole.differs(&place(Some("m"), Some(1), Some((2, 4)))).is_some());
        assert!(whole.differs(&place(Some("m"), Some(2), None)).is_some());
    }

    #[test]
    fn an_origin_is_read_as_it_was_written_and_garbage_is_told_from_it() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read(dir.path()), Read::Nothing));
        let origin = Origin {
            place: Place::of(dir.path()),
            stores: [("redis".to_owned(), None), ("f".to_owned(), Some("/q".into()))].into(),
            names: [("redis".to_owned(), "0a".to_owned())].into(),
            left: [("redis".to_owned(), BTreeSet::from(["/p".into()]))].into(),
            lost: [("redis".to_owned(), "gone".to_owned())].into(),
            paused: Some("a copy".into()),
            doubted: [("redis".to_owned(), Doubt { dir: "/q".into(), why: "a copy".into() })]
                .into(),
            timeouts: BTreeMap::from([("db".to_owned(), 5_000)]),
            former: BTreeMap::from([("old".to_owned(), BTreeSet::from(["redis".to_owned()]))]),
            renamed: Some("new".into()),
            damage: Some("its checksum is wrong".into()),
        };
        write(dir.path(), &origin).unwrap();
        let found = read(dir.path());
        assert!(
            matches!(&found, Read::Found { origin: it, is_sealed: true } if *it == origin),
            "{found:?}"
        );
        assert_eq!(std::fs::metadata(dir.path().join(FILE)).unwrap().mode() & 0o777, 0o600);
        for garbage in ["", "{", "[1]", "\u{0}\u{1}"] {
            std::fs::write(dir.path().join(FILE), garbage).unwrap();
            assert!(matches!(read(dir.path()), Read::Garbage(_)), "{garbage:?}");
        }
        // A later version's, or one of a release that knew of no checksum.
        std::fs::write(dir.path().join(FILE), r#"{"inode":1,"more":{}}"#).unwrap();
        assert!(matches!(read(dir.path()), Read::Found { is_sealed: false, .. }));
        let names = |name: &str| origin.name_after(name);
        assert_eq!((names("old"), names("new")), (Some("new".to_owned()), None));
    }

    #[test]
    fn no_bit_of_it_says_anything_else_unnoticed() {
        let dir = tempfile::tempdir().unwrap();
        let written = Origin {
            place: Place::of(dir.path()),
            paused: Some("a copy".into()),
            ..Origin::default()
        };
        write(dir.path(), &written).unwrap();
        let bytes = std::fs::read(dir.path().join(FILE)).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let Ok(found) = parse(&flipped) else { continue };
            // It was in the name of the checksum, and all else is as it was.
            assert!(
                matches!(&found, Read::Found { origin, .. } if *origin == written),
                "bit {bit}: {found:?}"
            );
        }
    }
}
