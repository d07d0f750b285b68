//! The file of callers: who shows which secret at a wire door, and what that lets them do.
//!
//! ```toml
//! [[callers]]
//! name = "web"
//! password_file = "/etc/fusebox/web.password"     # or sha256 = "…", as `printf %s SECRET | sha256sum` writes it
//! groups = ["client"]                             # read, client or admin; client if left out
//! ```

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::checker::choice;
use crate::{
    ingress::callers::{Callers, Known, Right, SecretDigest},
    net::secret::Secret,
};

const RIGHTS: &[(&str, Right)] =
    &[("read", Right::Read), ("client", Right::Client), ("admin", Right::Admin)];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    callers: Vec<RawCaller>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCaller {
    name: String,
    password_file: Option<PathBuf>,
    sha256: Option<String>,
    groups: Option<Vec<String>>,
}

/// Reads the callers of a file.
///
/// # Errors
/// Everything that is wrong with it, each as the end of a sentence that names the setting. No secret is shown.
pub(super) fn read(path: &Path, warnings: &mut Vec<String>) -> Result<Callers, Vec<String>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| vec![format!("is not usable: {shown} cannot be read: {error}")])?;
    let file: File = toml::from_str(&text).map_err(|error| {
        // Not the error's own text: it shows the line.
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        vec![format!("is not usable: {shown}, line {line}: {}", error.message())]
    })?;
    let (mut callers, mut problems) = (Vec::<Known>::new(), Vec::new());
    for raw in file.callers {
        let name = raw.name.clone();
        let known = check(raw, warnings).and_then(|known| {
            if callers.iter().any(|other| other.name == known.name) {
                return Err("appears twice".to_owned());
            }
            // Who sends no name is known by the secret alone.
            match callers.iter().find(|other| other.secret == known.secret) {
                Some(other) => Err(format!("has the same secret as {:?}", other.name)),
                None => Ok(known),
            }
        });
        match known {
            Ok(known) => callers.push(known),
            Err(why) => problems.push(format!("is not usable: {shown}: the caller {name:?} {why}")),
        }
    }
    if problems.is_empty() { Ok(Callers::new(callers)) } else { Err(problems) }
}

fn check(raw: RawCaller, warnings: &mut Vec<String>) -> Result<Known, String> {
    let is_name = |name: &str| {
        (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
    };
    if !is_name(&raw.name) {
        return Err("has no usable name: it is 1 to 64 printable characters without spaces".into());
    }
    let secret = match (raw.password_file, raw.sha256) {
        (Some(path), None) => {
            let secret = Secret::read(&path, warnings)
                .map_err(|why| format!("has a password_file that is not usable: {why}"))?;
            SecretDigest::of(secret.expose().as_bytes())
        }
        (None, Some(hex)) => SecretDigest::from_hex(&hex),
        _ => return Err("must have a password_file or a sha256, and not both".into()),
    };
    let secret = secret
        .ok_or("has a sha256 that is not 64 hexadecimal digits, or is that of the empty secret")?;
    let groups = raw.groups.unwrap_or_else(|| vec!["client".to_owned()]);
    let rights = groups.iter().map(|group| choice(Some(group), Right::Read, RIGHTS));
    let rights: Vec<Right> =
        rights.collect::<Result<_, _>>().map_err(|why| format!("has a group that {why}"))?;
    let right = rights.into_iter().max().ok_or("is in no group: name read, client or admin")?;
    Ok(Known { name: raw.name, right, secret })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Callers, Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("callers.toml");
        std::fs::write(dir.path().join("web"), "s3cret\n").unwrap();
        std::fs::write(dir.path().join("empty"), "\n").unwrap();
        std::fs::write(&path, text.replace("DIR", dir.path().to_str().unwrap())).unwrap();
        read(&path, &mut Vec::new())
    }

    const HEX: &str = "1ec1c26b50d5d3c58d9583181af8076655fe00756bf7285940ba3670f99fcba0";

    #[test]
    fn a_caller_is_known_by_a_file_or_a_digest() {
        let callers = read_text(
            "[[callers]]\nname = 'web'\npassword_file = 'DIR/web'\n\
             [[callers]]\nname = 'ops'\n\
             sha256 = '2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824'\n\
             groups = ['read', 'admin']",
        )
        .unwrap();
        assert_eq!(callers.find(None, b"s3cret").map(|it| it.right), Some(Right::Client));
        assert_eq!(callers.find(Some(b"ops"), b"hello").map(|it| it.right), Some(Right::Admin));
        assert_eq!(read_text(""), Ok(Callers::default()));
    }

    #[test]
    fn what_is_wrong_with_a_caller_is_told_by_its_name() {
        for (text, why) in [
            ("name = 'a'", "the caller \"a\" must have a password_file or a sha256, and not both"),
            (
                "name = 'a'\npassword_file = 'DIR/empty'",
                "the caller \"a\" has a password_file that is not usable: DIR/empty is empty",
            ),
            (
                "name = 'a'\nsha256 = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'",
                "the caller \"a\" has a sha256 that is not 64 hexadecimal digits, or is that of the empty secret",
            ),
            (
                "name = 'a'\nsha256 = '12'",
                "the caller \"a\" has a sha256 that is not 64 hexadecimal digits, or is that of the empty secret",
            ),
            (
                "name = 'a'\nsha256 = 'HEX'\ngroups = ['root']",
                "the caller \"a\" has a group that must be \"read\" or \"client\" or \"admin\", got \"root\"",
            ),
            (
                "name = 'a'\nsha256 = 'HEX'\ngroups = []",
                "the caller \"a\" is in no group: name read, client or admin",
            ),
            (
                "name = 'a b'\nsha256 = 'HEX'",
                "the caller \"a b\" has no usable name: it is 1 to 64 printable characters without spaces",
            ),
            (
                "name = 'a'\nsha256 = 'HEX'\n[[callers]]\nname = 'a'\npassword_file = 'DIR/web'",
                "the caller \"a\" appears twice",
            ),
            (
                "name = 'a'\nsha256 = 'HEX'\n[[callers]]\nname = 'b'\npassword_file = 'DIR/web'",
                "the caller \"b\" has the same secret as \"a\"",
            ),
        ] {
            let told =
                read_text(&format!("[[callers]]\n{}", text.replace("HEX", HEX))).unwrap_err();
            let [told] = told.as_slice() else { panic!("{told:?}") };
            let (_, told) = told.split_once("callers.toml: ").unwrap();
            let (start, end) = why.split_once("DIR").unwrap_or((why, ""));
            assert!(told.starts_with(start) && told.ends_with(end), "{told}\n{why}");
        }
        let told = read_text("[[callers]]\nname = 'a'\npasword = 's3cret'").unwrap_err();
        assert!(told[0].contains(", line 3: unknown field `pasword`"), "{told:?}");
        assert!(!told[0].contains("s3cret"), "{told:?}");
        assert_eq!(read(Path::new("/nowhere"), &mut Vec::new()).unwrap_err().len(), 1);
    }
}
