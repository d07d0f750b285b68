//! Reading the daemon's own files, and names for those that are set aside.

use std::{
    fs, io,
    io::{Error, ErrorKind},
    path::{Path, PathBuf},
};

/// The content of the regular file at `path`.
///
/// # Errors
/// What the file system says; [`ErrorKind::IsADirectory`] for a folder, and [`ErrorKind::InvalidInput`] for anything
/// else that is no regular file: to read a pipe waits for whoever writes into it.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let kind = fs::metadata(path)?.file_type();
    if kind.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    if !kind.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    fs::read(path)
}

/// The path of `name` in `dir`, or if something is there already, that of the first of `name-1`, `name-2` and so on that
/// is free. A time alone is no name: two may be taken in one millisecond.
pub fn free_path(dir: &Path, name: &str) -> PathBuf {
    let is_taken = |path: &PathBuf| fs::symlink_metadata(path).is_ok();
    let mut path = dir.join(name);
    let mut number = 1_u32;
    while is_taken(&path) {
        path = dir.join(format!("{name}-{number}"));
        number = number.saturating_add(1);
    }
    path
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let kind = |path: &Path| read(path).unwrap_err().kind();
        assert_eq!(kind(&file), ErrorKind::NotFound);
        fs::write(&file, "x").unwrap();
        assert_eq!(read(&file).unwrap(), b"x");
        assert_eq!(kind(dir.path()), ErrorKind::IsADirectory);
        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        assert_eq!(kind(&socket), ErrorKind::InvalidInput);
        // Read, this one would give bytes for ever.
        assert_eq!(kind(Path::new("/dev/zero")), ErrorKind::InvalidInput);
    }

    #[test]
    fn a_name_that_is_taken_gets_a_number() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "a-1", "a-2"] {
            let path = free_path(dir.path(), "a");
            assert_eq!(path, dir.path().join(name));
            fs::write(path, "").unwrap();
        }
    }
}
