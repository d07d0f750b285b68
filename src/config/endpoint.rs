//! The address of a backend's service, as in the configuration.

use std::{fmt, path::PathBuf};

use super::mask::mask_url;
use crate::net::secret::Secret;

/// The address of a service, and how to sign in to it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Its address, perhaps with credentials: shown through [`mask_url`] only.
    pub(crate) url: Url,
    /// The user, if not the address's.
    pub(crate) username: Option<String>,
    /// The password, if not the address's.
    pub(crate) password: Option<Secret>,
    /// The origin of the password, for `check`.
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
