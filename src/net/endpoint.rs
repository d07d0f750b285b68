//! The address of a server, as far as connecting to it goes.

use std::{path::PathBuf, time::Duration};

/// A server that is spoken to over HTTP, 1 or 2.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// Its name for people, and its authority: `host:port`, or with a scheme.
    pub(crate) address: String,
    /// Its name or address, without the brackets of an IPv6 address; a certificate must be for it.
    pub(crate) host: String,
    /// Its port.
    pub(crate) port: u16,
    /// Whether it speaks TLS.
    pub(crate) tls: bool,
    /// Authorities to trust, in PEM, in place of the system's.
    pub(crate) ca_file: Option<PathBuf>,
    /// The longest that connecting may take.
    pub(crate) connect_time: Duration,
}
