//! Which store a folder holds, and whether its files are still the ones that this store was written to.
//!
//! A store that is restored from a backup is whole, and as good as any: nothing in its log says that its calls were
//! applied since, or that newer writes were acknowledged. Two things beside the log say it.
//!
//! **A name**, in the file `name` of the store's folder: a random number, drawn once. Whoever notes the names of stores
//! notices that another one is in the place of the one before. Whatever replaces the log leaves the name as it is.
//!
//! **An identity**, in a file `db/identity-…` beside the log: the inodes and the times of birth of the log and of this
//! file itself. No tool that copies files can give these to a copy, also if the folders around it stay the same; a
//! file that is moved within its file system keeps them. Each open and each close in good order replaces the identity by
//! one under another name. So a backup that is copied over the files in place, which keeps their inodes, adds an identity
//! of its own, which is wrong.
//!
//! | event | order | a crash in between leaves |
//! | --- | --- | --- |
//! | a store is begun | the name, before the log is made | a name without a store |
//! | an open, a close | the new identity, then the old one goes | both, and both are right |
//! | a rebuild, a compaction, a downgrade | the new log with its identity, then the new store takes the place of the old one | the old store with its identity, or the new one with its own |
//! | a rebuild of a copy | the same, with an identity that is wrong | the same |
//! | an operator accepts a copy ([`claim`]) | the new identity, then the others go | a copy: it is accepted again |
//!
//! # What is not noticed
//! A copy by blocks, which has the same inodes. A backup of an earlier release, or of the present run if that was
//! killed, which is copied over the files in place. What a file system does not say (a birth) is not compared. On one
//! whose inodes change from one mount to the next, each start finds a copy.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use super::space;

/// The file with the name, in the store's folder.
pub const NAME: &str = "name";
/// How the names of the files with identities begin, in the folder of the log.
const IDENTITY: &str = "identity-";
/// How these files begin.
const MAGIC: &str = "fusebox store";

/// Whose the files of a store are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Nothing says it: there is no store, or one of an earlier release.
    Unknown,
    /// They are the ones that the store was written to.
    Own,
    /// Some of them are copies.
    Copied,
}

impl Identity {
    /// Of the store in `dir`, also if a rebuild of it was cut short.
    ///
    /// # Errors
    /// What the file system says: then nobody knows.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let mut found = Self::Unknown;
        for folder in ["db", "db.ready", "db.discard"] {
            match of_log(&dir.join(folder))? {
                Self::Unknown => {}
                Self::Own => found = Self::Own,
                Self::Copied => return Ok(Self::Copied),
            }
        }
        Ok(found)
    }
}

/// The name of the store in `dir`, if it has one.
///
/// # Errors
/// What the file system says: then nobody knows.
pub fn name(dir: &Path) -> io::Result<Option<u128>> {
    let text = read(&dir.join(NAME))?.as_deref().and_then(sealed);
    let number =
        text.and_then(|text| u128::from_str_radix(text.strip_prefix(MAGIC)?.trim(), 16).ok());
    Ok(number)
}

/// The same; a store that has no name gets one, and a folder that is missing is made.
///
/// # Errors
/// What the file system says.
pub fn name_for(dir: &Path) -> io::Result<u128> {
    if let Some(name) = name(dir)? {
        return Ok(name);
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let name = ulid::Ulid::generate().0;
    let next = dir.join("name.next");
    seal(&mut create(&next)?, &format!("{MAGIC} {name:032x}"))?;
    fs::rename(&next, dir.join(NAME))?;
    space::sync_folder(dir)?;
    Ok(name)
}

/// Makes the files of the store in `dir` its own, if some are copies: an operator knows that nobody else replays it.
///
/// # Errors
/// What the file system says; it is a copy still.
pub fn claim(dir: &Path) -> io::Result<()> {
    for folder in ["db", "db.ready", "db.discard"] {
        let db = dir.join(folder);
        if of_log(&db)? == Identity::Copied {
            replace(&db, Made::of(&db.join("db"))?)?;
        }
    }
    Ok(())
}

/// An open, or a close in good order: gives the log in the folder `db` a new identity. A copy stays one.
pub(super) fn renew(db: &Path) -> io::Result<()> {
    if of_log(db)? == Identity::Copied { Ok(()) } else { replace(db, Made::of(&db.join("db"))?) }
}

/// The log in `partial` is to take the place of that of the store in `dir`, and is a copy if that one is.
pub(super) fn carry(dir: &Path, partial: &Path) -> io::Result<()> {
    let log = match of_log(&dir.join("db"))? {
        Identity::Copied => Made { inode: 0, born: None },
        Identity::Own | Identity::Unknown => Made::of(&partial.join("db"))?,
    };
    replace(partial, log)
}

fn of_log(db: &Path) -> io::Result<Identity> {
    let log = match Made::of(&db.join("db")) {
        Ok(log) => log,
        Err(error) if is_no_file(&error) => return Ok(Identity::Unknown),
        Err(error) => return Err(error),
    };
    let mut found = Identity::Unknown;
    for path in identities(db)? {
        let Some((log_then, own_then)) = read(&path)?.as_deref().and_then(parse) else { continue };
        if log_then.differs(log) || own_then.differs(Made::of(&path)?) {
            return Ok(Identity::Copied);
        }
        found = Identity::Own;
    }
    Ok(found)
}

/// The content of a file; `None` if there is no file of that name.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match crate::file::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if is_no_file(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the error says that there is no such file, as against that nobody knows.
fn is_no_file(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, IsADirectory, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | IsADirectory | InvalidInput)
}

/// The files with identities in the folder `db`.
fn identities(db: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(db)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(IDENTITY) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// What distinguishes a file from its copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Made {
    inode: u64,
    /// Nanoseconds since 1970.
    born: Option<u128>,
}

impl Made {
    fn of(file: &Path) -> io::Result<Self> {
        let meta = fs::metadata(file)?;
        let born = meta.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        Ok(Self { inode: meta.ino(), born: born.map(|born| born.as_nanos()) })
    }

    fn differs(self, now: Self) -> bool {
        self.inode != now.inode || self.born.zip(now.born).is_some_and(|(then, now)| then != now)
    }

    fn text(self) -> String {
        let born = self.born.map_or_else(|| "-".to_owned(), |born| born.to_string());
        format!("{} {born}", self.inode)
    }
}

/// Writes an identity that says this of the log, and removes all others.
fn replace(db: &Path, log: Made) -> io::Result<()> {
    let before = identities(db)?;
    let next = db.join("identity.next");
    // It says something of itself, so that it has to be new.
    drop(fs::remove_file(&next));
    let mut file = create(&next)?;
    let own = Made::of(&next)?;
    seal(&mut file, &format!("{MAGIC} {} {}", log.text(), own.text()))?;
    fs::rename(&next, db.join(format!("{IDENTITY}{:032x}", ulid::Ulid::generate().0)))?;
    space::sync_folder(db)?;
    for path in &before {
        fs::remove_file(path)?;
    }
    if before.is_empty() { Ok(()) } else { space::sync_folder(db) }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Writes one line with a checksum.
fn seal(file: &mut File, text: &str) -> io::Result<()> {
    writeln!(file, "{text} {:016x}", crate::units::digest(text.as_bytes()))?;
    file.sync_all()
}

/// The text of such a line.
fn sealed(bytes: &[u8]) -> Option<String> {
    let (text, sum) = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?.rsplit_once(' ')?;
    let is_whole = u64::from_str_radix(sum, 16) == Ok(crate::units::digest(text.as_bytes()));
    is_whole.then(|| text.to_owned())
}

/// What an identity says of the log and of itself.
fn parse(bytes: &[u8]) -> Option<(Made, Made)> {
    fn made<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Made> {
        let inode = words.next()?.parse().ok()?;
        let born = match words.next()? {
            "-" => None,
            born => Some(born.parse().ok()?),
        };
        Some(Made { inode, born })
    }
    let text = sealed(bytes)?;
    let mut words = text.strip_prefix(MAGIC)?.split_ascii_whitespace();
    Some((made(&mut words)?, made(&mut words)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store's folder with a log.
    fn store() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("db")).unwrap();
        fs::write(dir.path().join("db/db"), "calls").unwrap();
        dir
    }

    fn identity(dir: &Path) -> Identity {
        Identity::of(dir).unwrap()
    }

    /// Copies all files of a folder of logs into another, which may have such files, as `cp` does.
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }

    #[test]
    fn a_store_whose_files_are_copied_is_a_copy_until_it_is_claimed() {
        let dir = store();
        let (path, db, backup) = (dir.path(), dir.path().join("db"), dir.path().join("backup"));
        assert_eq!(identity(path), Identity::Unknown);
        renew(&db).unwrap();
        assert_eq!(identity(path), Identity::Own);
        copy(&db, &backup);
        // It is opened again, written to, and moved.
        renew(&db).unwrap();
        fs::write(db.join("db"), "other calls").unwrap();
        let moved = path.join("moved");
        fs::create_dir(&moved).unwrap();
        fs::rename(&db, moved.join("db")).unwrap();
        assert_eq!(identity(&moved), Identity::Own);
        for in_place in [true, false] {
            let db = moved.join("db");
            if !in_place {
                fs::remove_dir_all(&db).unwrap();
            }
            copy(&backup, &db);
            assert_eq!(identity(&moved), Identity::Copied, "{in_place}");
            renew(&db).unwrap();
            assert_eq!(identity(&moved), Identity::Copied, "an open does not claim it");
            let rebuilt = store();
            carry(&moved, &rebuilt.path().join("db")).unwrap();
            assert_eq!(identity(rebuilt.path()), Identity::Copied, "nor does a rebuild");
            claim(&moved).unwrap();
            assert_eq!(identity(&moved), Identity::Own);
            assert_eq!(identities(&db).unwrap().len(), 1);
        }
    }

    #[test]
    fn a_crash_between_two_identities_leaves_none_that_is_wrong() {
        let dir = store();
        let db = dir.path().join("db");
        renew(&db).unwrap();
        let [first] = identities(&db).unwrap().try_into().unwrap();
        // As it is before the first is removed.
        let kept = dir.path().join("kept");
        fs::rename(&first, &kept).unwrap();
        renew(&db).unwrap();
        fs::rename(&kept, &first).unwrap();
        assert_eq!((identity(dir.path()), identities(&db).unwrap().len()), (Identity::Own, 2));
        renew(&db).unwrap();
        assert_eq!((identity(dir.path()), identities(&db).unwrap().len()), (Identity::Own, 1));
    }

    #[test]
    fn a_copy_of_a_store_whose_rebuild_was_cut_short_is_one() {
        for folder in ["db.ready", "db.discard"] {
            let (dir, other) = (store(), tempfile::tempdir().unwrap());
            renew(&dir.path().join("db")).unwrap();
            fs::rename(dir.path().join("db"), dir.path().join(folder)).unwrap();
            assert_eq!(identity(dir.path()), Identity::Own, "{folder}");
            copy(&dir.path().join(folder), &other.path().join(folder));
            assert_eq!(identity(other.path()), Identity::Copied, "{folder}");
            claim(other.path()).unwrap();
            assert_eq!(identity(other.path()), Identity::Own, "{folder}");
        }
    }

    #[test]
    fn a_name_is_drawn_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("deep/store");
        assert_eq!(name(&folder).unwrap(), None);
        let drawn = name_for(&folder).unwrap();
        assert_eq!((name(&folder).unwrap(), name_for(&folder).unwrap()), (Some(drawn), drawn));
        assert_ne!(name_for(dir.path()).unwrap(), drawn);
        fs::write(folder.join(NAME), "rubbish").unwrap();
        assert_eq!(name(&folder).unwrap(), None);
        assert_ne!(name_for(&folder).unwrap(), drawn);
    }

    #[test]
    fn no_bit_of_them_says_anything_else() {
        let dir = store();
        renew(&dir.path().join("db")).unwrap();
        let drawn = name_for(dir.path()).unwrap();
        let [file] = identities(&dir.path().join("db")).unwrap().try_into().unwrap();
        for path in [file, dir.path().join(NAME)] {
            let bytes = fs::read(&path).unwrap();
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                // In place: its inode stays.
                fs::write(&path, &flipped).unwrap();
                assert_ne!(identity(dir.path()), Identity::Copied, "bit {bit}");
                assert!(name(dir.path()).unwrap().is_none_or(|name| name == drawn), "bit {bit}");
            }
            fs::write(&path, &bytes).unwrap();
        }
    }
}
