//! Callers who are known by a name and a secret rather than by their user id.
//!
//! Of a secret only its SHA-256 is kept. That is enough for a secret that nobody can guess (`openssl rand -hex 24`),
//! and not for a password that people choose.

use std::fmt;

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

use super::same::same;

/// What a caller may do at a wire door. Each may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Right {
    /// Reads.
    Read,
    /// Everything but what needs an admin.
    Client,
    /// Everything.
    Admin,
}

/// The digest of a secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SecretDigest([u8; SHA256_OUTPUT_LEN]);

impl SecretDigest {
    /// The digest of `secret`; `None` of an empty one, which proves nothing.
    pub(crate) fn of(secret: &[u8]) -> Option<Self> {
        if secret.is_empty() {
            return None;
        }
        Self::from_bytes(digest(&SHA256, secret).as_ref())
    }

    /// A digest that was made elsewhere; `None` unless it has 64 hexadecimal digits, or if it is that of the empty
    /// secret.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|it| u8::try_from(it).ok());
        let pairs = text.as_bytes().chunks(2);
        let bytes: Option<Vec<u8>> = pairs
            .map(|pair| match pair {
                [high, low] => Some((digit(*high)? << 4) | digit(*low)?),
                _ => None,
            })
            .collect();
        let made = Self::from_bytes(&bytes?)?;
        (!same(&made.0, digest(&SHA256, b"").as_ref())).then_some(made)
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Debug for SecretDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A caller of the file of callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its name, for logs and for clients that send one.
    pub(crate) name: String,
    /// What it may do.
    pub(crate) right: Right,
    /// What it shows.
    pub(crate) secret: SecretDigest,
}

/// The callers of a door.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Callers(Vec<Known>);

impl Callers {
    /// These callers.
    pub(crate) fn new(callers: Vec<Known>) -> Self {
        Self(callers)
    }

    /// The caller with this secret, and this name if one is given: what a protocol sends in the place of no name, such
    /// as Redis's `default`, is none. The time that this takes depends on how many callers there are and how long
    /// `secret` is, and on nothing that is kept of them.
    pub(crate) fn find(&self, name: Option<&[u8]>, secret: &[u8]) -> Option<&Known> {
        let shown = SecretDigest::of(secret)?;
        self.0.iter().fold(None, |found, known| {
            let is_meant = name.is_none_or(|name| name == known.name.as_bytes());
            let is_shown = same(&known.secret.0, &shown.0);
            if is_meant & is_shown { Some(known) } else { found }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &str, secret: &str, right: Right) -> Known {
        let secret = SecretDigest::of(secret.as_bytes()).expect("it is not empty");
        Known { name: name.to_owned(), right, secret }
    }

    #[test]
    fn a_caller_is_found_by_secret_and_by_name_where_one_is_given() {
        let callers = Callers::new(vec![
            known("web", "s3cret", Right::Client),
            known("ops", "0ther", Right::Admin),
        ]);
        let find = |name: Option<&str>, secret: &str| {
            callers
                .find(name.map(str::as_bytes), secret.as_bytes())
                .map(|known| (known.name.as_str(), known.right))
        };
        assert_eq!(find(None, "s3cret"), Some(("web", Right::Client)));
        assert_eq!(find(Some("web"), "s3cret"), Some(("web", Right::Client)));
        assert_eq!(find(None, "0ther"), Some(("ops", Right::Admin)));
        for (name, secret) in [
            (Some("ops"), "s3cret"),
            (Some("nobody"), "s3cret"),
            (Some("web"), "s3cre"),
            (Some("web"), "s3cret "),
            (Some("web"), ""),
            (None, ""),
        ] {
            assert_eq!(find(name, secret), None, "{name:?} {secret:?}");
        }
        assert_eq!(Callers::default().find(None, b""), None);
    }

    #[test]
    fn a_digest_is_written_as_sha256sum_writes_it() {
        // printf %s s3cret | sha256sum
        let hex = "1ec1c26b50d5d3c58d9583181af8076655fe00756bf7285940ba3670f99fcba0";
        assert_eq!(SecretDigest::from_hex(hex), SecretDigest::of(b"s3cret"));
        assert_eq!(SecretDigest::from_hex(&hex.to_uppercase()), SecretDigest::of(b"s3cret"));
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for wrong in ["", "1ec1", &hex[1..], &hex.replace('c', "g"), &format!("{hex}00"), empty] {
            assert_eq!(SecretDigest::from_hex(wrong), None, "{wrong}");
        }
        assert_eq!(format!("{:?}", SecretDigest::of(b"s3cret")), "Some(***)");
    }
}
