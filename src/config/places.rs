//! The paths of the state directory and the command socket, for the daemon and for its clients.

use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::environment::Environment;

/// The folder of a packaged daemon's socket.
const SYSTEM_DIR: &str = "/run/fusebox";
/// The name of the socket in any folder.
const NAME: &str = "fusebox.sock";
/// `sun_path` holds this many bytes, the closing NUL included.
const SUN_PATH: usize = 108;

/// The state directory if neither a flag nor the file names one: `$STATE_DIRECTORY`, else the user's
/// `$XDG_STATE_HOME/fusebox` or `~/.local/state/fusebox`.
pub(crate) fn state_dir(env: &Environment) -> Option<PathBuf> {
    // systemd lists several folders separated by colons; ours is the first.
    let unit = env.get("STATE_DIRECTORY").and_then(|dirs| dirs.split(':').next());
    unit.map(PathBuf::from).or_else(|| {
        let home = || env.path("HOME").map(|home| home.join(".local/state"));
        Some(env.path("XDG_STATE_HOME").or_else(home)?.join("fusebox"))
    })
}

/// The daemon's socket if nothing names one: in the first of `/run/fusebox` (if it is there and
/// may be written), `$XDG_RUNTIME_DIR/fusebox` and the state directory.
pub(crate) fn socket_to_listen(env: &Environment, state_dir: &Path) -> PathBuf {
    if access(SYSTEM_DIR, AccessFlags::W_OK).is_ok() {
        return Path::new(SYSTEM_DIR).join(NAME);
    }
    match env.path("XDG_RUNTIME_DIR") {
        Some(runtime) => runtime.join("fusebox").join(NAME),
        None => state_dir.join(NAME),
    }
}

/// The socket that a client uses if no flag names one: the first that is there of `$FUSEBOX_SOCKET`
/// (not checked), `/run/fusebox`, `$XDG_RUNTIME_DIR/fusebox` and the state directory. If none is
/// there, the last that could be.
pub(crate) fn socket_to_call(env: &Environment, state_dir: Option<&Path>) -> Option<PathBuf> {
    if let Some(path) = env.path("FUSEBOX_SOCKET") {
        return Some(path);
    }
    let mut places = vec![Path::new(SYSTEM_DIR).join(NAME)];
    places.extend(env.path("XDG_RUNTIME_DIR").map(|runtime| runtime.join("fusebox").join(NAME)));
    places.extend(state_dir.map(|dir| dir.join(NAME)));
    let there = places.iter().find(|path| path.try_exists().unwrap_or(false)).cloned();
    there.or_else(|| places.pop())
}

/// Why `path` cannot be the command socket's address, if it cannot.
pub(crate) fn refuse_long(path: &Path) -> Option<String> {
    let why = too_long(path)?;
    Some(format!("socket {why}; choose a shorter one with --socket"))
}

/// Why `path` cannot be a Unix socket's address, if it cannot, as the end of a sentence.
pub(crate) fn too_long(path: &Path) -> Option<String> {
    let length = path.as_os_str().len();
    (length >= SUN_PATH)
        .then(|| format!("must be shorter than {SUN_PATH} bytes, got {length}: {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_directory_follows_the_environment() {
        let dir = |pairs: &[(&str, &str)]| state_dir(&Environment::of(pairs));
        assert_eq!(
            dir(&[("STATE_DIRECTORY", "/var/lib/fusebox:/b"), ("HOME", "/h")]),
            Some("/var/lib/fusebox".into())
        );
        assert_eq!(dir(&[("XDG_STATE_HOME", "/x"), ("HOME", "/h")]), Some("/x/fusebox".into()));
        assert_eq!(dir(&[("HOME", "/h")]), Some("/h/.local/state/fusebox".into()));
        assert_eq!(dir(&[]), None);
    }

    #[test]
    fn a_client_asks_where_a_socket_is() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = dir.path().join("run");
        let env = Environment::of(&[("XDG_RUNTIME_DIR", runtime.to_str().unwrap())]);
        let state = dir.path().join("state");
        if Path::new(SYSTEM_DIR).join(NAME).try_exists().unwrap() {
            return; // A real daemon is installed on this machine and comes first.
        }
        assert_eq!(socket_to_call(&env, Some(&state)), Some(state.join(NAME)));
        std::fs::create_dir_all(runtime.join("fusebox")).unwrap();
        std::fs::write(runtime.join("fusebox").join(NAME), "").unwrap();
        assert_eq!(socket_to_call(&env, Some(&state)), Some(runtime.join("fusebox").join(NAME)));
        let env = Environment::of(&[("FUSEBOX_SOCKET", "/s")]);
        assert_eq!(socket_to_call(&env, None), Some("/s".into()));
    }

    #[test]
    fn a_path_that_does_not_fit_an_address_is_refused() {
        assert_eq!(refuse_long(Path::new(&"x".repeat(107))), None);
        let why = refuse_long(Path::new(&"x".repeat(108))).unwrap();
        assert!(why.starts_with("socket must be shorter than 108 bytes, got 108"), "{why}");
    }
}
