//! As whom requests are sent.
//!
//! An emulator takes anybody as its owner. Firestore itself wants a token, of a service account whose key
//! is in a file, or of the machine that this runs on (its metadata server tells it, which is what
//! workload identity comes to). Tokens are kept until they expire; after an `UNAUTHENTICATED` everything
//! is read again, so that a key that was rotated is found. A caller's own token goes as it is, and nowhere
//! else.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use fusebox_actors::connector::{ErrorCode, OwnCode};
use fusebox_state::{ErrorClass, Verdict, Words};
use gcp_auth::{CustomServiceAccount, MetadataServiceAccount, TokenProvider};
use serde::Deserialize;
use tokio::sync::Mutex;
use tonic::metadata::{Ascii, MetadataValue};

use crate::kinds::firestore::{protocol::outcome::Failed, settings::FirestoreSettings};

const SCOPES: &[&str] = &["https://www.googleapis.com/auth/datastore"];

/// See the [module](self).
pub(crate) struct Auth {
    source: Source,
    provider: Mutex<Option<Arc<dyn TokenProvider>>>,
}

enum Source {
    Emulator,
    File(PathBuf),
    Metadata,
}

impl Auth {
    /// The identity that `settings` name. Nothing is read yet.
    pub(crate) fn new(settings: &FirestoreSettings) -> Self {
        let source = match &settings.credentials_file {
            _ if !settings.url.tls => Source::Emulator,
            Some(path) => Source::File(path.clone()),
            None => Source::Metadata,
        };
        Self { source, provider: Mutex::default() }
    }

    /// The value of the header `authorization`; `caller` is a caller's own, empty for none.
    pub(crate) async fn header(&self, caller: &str) -> Result<MetadataValue<Ascii>, Failed> {
        if !caller.is_empty() {
            return caller_header(caller);
        }
        if matches!(self.source, Source::Emulator) {
            return Ok(MetadataValue::from_static("Bearer owner"));
        }
        let provider = self.provider().await?;
        let token = provider.token(SCOPES).await.map_err(|error| refused(&error))?;
        let header = MetadataValue::try_from(format!("Bearer {}", token.as_str()));
        let mut header = header.map_err(|_| wrong("the token cannot be sent in a header"))?;
        header.set_sensitive(true);
        Ok(header)
    }

    /// The project of whoever this is.
    pub(crate) async fn project(&self) -> Result<Arc<str>, Failed> {
        let provider = self.provider().await?;
        provider.project_id().await.map_err(|error| refused(&error))
    }

    /// What was read is no longer right.
    pub(crate) async fn forget(&self) {
        *self.provider.lock().await = None;
    }

    async fn provider(&self) -> Result<Arc<dyn TokenProvider>, Failed> {
        let mut provider = self.provider.lock().await;
        if let Some(provider) = &*provider {
            return Ok(Arc::clone(provider));
        }
        let new: Arc<dyn TokenProvider> = match &self.source {
            Source::File(path) => {
                // A small file, once: not worth a thread of its own.
                let account = CustomServiceAccount::from_file(path).map_err(|error| {
                    wrong(format!(
                        "{} is not the key of a service account: {error}",
                        path.display()
                    ))
                })?;
                Arc::new(account)
            }
            Source::Emulator | Source::Metadata => {
                Arc::new(MetadataServiceAccount::new().await.map_err(|error| refused(&error))?)
            }
        };
        *provider = Some(Arc::clone(&new));
        Ok(new)
    }
}

/// The project that the key of a service account in this file is of. `None` if it names none, as credentials of other
/// kinds do.
///
/// # Errors
/// Why it cannot be read.
pub(crate) fn project_of(key: &Path) -> Result<Option<String>, String> {
    #[derive(Deserialize)]
    struct Key {
        project_id: Option<String>,
    }
    let text = std::fs::read(key).map_err(|error| error.to_string())?;
    // The parser's own words could quote the key.
    let key: Key = serde_json::from_slice(&text).map_err(|_| "it has no key in JSON".to_owned())?;
    Ok(key.project_id.filter(|project| !project.is_empty()))
}

/// A caller's own token as a header, whether or not it names its scheme.
fn caller_header(caller: &str) -> Result<MetadataValue<Ascii>, Failed> {
    let text = if caller.contains(' ') { caller.to_owned() } else { format!("Bearer {caller}") };
    let mut header = MetadataValue::try_from(text).map_err(|_| {
        let message = "X-Fusebox-Authorization is not a token";
        Failed::own(
            Verdict::Neutral,
            ErrorClass::Rejected,
            ErrorCode::OfKind("UNAUTHENTICATED"),
            message,
        )
    })?;
    header.set_sensitive(true);
    Ok(header)
}

/// Why there is no token: nobody could be asked, or the answer was no.
fn refused(error: &gcp_auth::Error) -> Failed {
    match error {
        gcp_auth::Error::Http(..) | gcp_auth::Error::Io(..) => {
            let message = format!("no token is available: {error}");
            Failed::own(Verdict::Failure, ErrorClass::NotExecuted, OwnCode::Credentials, message)
        }
        _ => wrong(format!("no token was given: {error}")),
    }
}

fn wrong(message: impl Into<Words>) -> Failed {
    Failed::own(Verdict::Failure, ErrorClass::BlockedServer, OwnCode::Credentials, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(url: &str, file: Option<&str>) -> Auth {
        let mut settings = FirestoreSettings::new(url.parse().unwrap());
        settings.credentials_file = file.map(PathBuf::from);
        Auth::new(&settings)
    }

    #[tokio::test]
    async fn an_emulator_takes_anybody_and_a_caller_is_passed_on() {
        let auth = auth("http://h:1", None);
        assert_eq!(auth.header("").await.unwrap(), "Bearer owner");
        assert_eq!(auth.header("abc").await.unwrap(), "Bearer abc");
        assert_eq!(auth.header("Bearer abc").await.unwrap(), "Bearer abc");
        assert!(auth.header("abc").await.unwrap().is_sensitive());
        let failed = auth.header("a\nb").await.unwrap_err();
        assert_eq!(failed.verdict, Verdict::Neutral);
        assert!(!failed.error.message.whole().contains("a\nb"), "it is not told");
    }

    #[tokio::test]
    async fn a_key_that_is_none_closes_the_server_to_us() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.json");
        std::fs::write(&path, "{}").unwrap();
        let auth = auth("https://h", path.to_str());
        let failed = auth.header("").await.unwrap_err();
        assert_eq!(failed.error.class, ErrorClass::BlockedServer);
        assert!(failed.error.message.whole().contains("key.json"), "{}", failed.error.message);
    }
}
