//! The command socket as a file: taken over from systemd, or made by the daemon itself.

use std::{
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use nix::unistd::{Gid, chown};
use tokio::net::UnixListener;

/// Who may connect: owner and group. What they may do is decided by `SO_PEERCRED`.
const MODE: u32 = 0o660;

/// A socket that the daemon made itself, removed when it is dropped. One that was inherited belongs to
/// whoever made it and has none of these.
pub(crate) struct OwnSocket {
    path: PathBuf,
    mark: Mark,
}

/// Tells a file from another that took its name, and perhaps its inode number.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mark(u64, i64, i64);

impl Mark {
    fn of(path: &Path) -> io::Result<Self> {
        let file = std::fs::symlink_metadata(path)?;
        Ok(Self(file.ino(), file.ctime(), file.ctime_nsec()))
    }
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        // Not another daemon's that took its place.
        let ours = Mark::of(&self.path).is_ok_and(|mark| mark == self.mark);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the socket");
        }
    }
}

/// Listens at `path`. A socket that a dead daemon left there is removed: call this only with the state
/// directory's lock held.
///
/// # Errors
/// Somebody listens there, the place is taken by something else, or it cannot be written.
pub(crate) fn bind(path: &Path, group: Option<u32>) -> anyhow::Result<(UnixListener, OwnSocket)> {
    let shown = path.display();
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("cannot make {}", parent.display()))?;
    }
    remove_stale(path)?;
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen at {shown}"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))
        .with_context(|| format!("cannot set the mode of {shown}"))?;
    if let Some(gid) = group
        && let Err(error) = chown(path, None, Some(Gid::from_raw(gid)))
    {
        // An ordinary user's daemon cannot give files away; it then serves its own user.
        tracing::warn!(%error, gid, path = %shown, "cannot give the socket to client_group");
    }
    Ok((listener, OwnSocket { path: path.to_owned(), mark: Mark::of(path)? }))
}

fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let file = match std::fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {shown}")),
    };
    if !file.file_type().is_socket() {
        bail!("{shown} exists and is not a socket, so it is not removed");
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => bail!("another process listens at {shown}"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).with_context(|| format!("cannot remove the stale {shown}"))
        }
        Err(error) => Err(error)
            .with_context(|| format!("cannot find out whether a process listens at {shown}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_or_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub").join("s.sock");
        let (live, own) = bind(&path, None).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, MODE);
        let error = bind(&path, None).map(|_| ()).unwrap_err();
        assert!(error.to_string().starts_with("another process listens at"), "{error}");
        drop(live);
        let (_again, newer) = bind(&path, None).unwrap();
        drop(own);
        assert!(path.try_exists().unwrap(), "the newer socket is not the older's to remove");
        drop(newer);
        assert!(!path.try_exists().unwrap());
        std::fs::write(&path, "precious").unwrap();
        let error = bind(&path, None).map(|_| ()).unwrap_err();
        assert!(error.to_string().ends_with("is not a socket, so it is not removed"), "{error}");
    }
}
