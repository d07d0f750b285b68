//! Where a backend's service is, as the configuration has it.

use std::{fmt, path::PathBuf};

use super::secret::{Secret, mask_url};

/// Where a service is, and how to sign in to it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Its address, perhaps with credentials: shown through [`mask_url`] only.
    pub(crate) url: Url,
    /// The user, where not the address's.
    pub(crate) username: Option<String>,
    /// The password, where not the address's.
    pub(crate) password: Option<Secret>,
    /// Where the password came from, for `check`.
    pub(crate) password_from: Option<PathBuf>,
    /// Authorities to trust, in PEM, in place of the system's.
    pub(crate) ca_file: Option<PathBuf>,
}

/// An address that may hold a password.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Url(pub(crate) String);

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&mask_url(&self.0))
    }
}
