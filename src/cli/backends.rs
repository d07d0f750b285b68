//! Which backends a command is about: the one that it names, or those that the daemon has.

use crate::terminal::{
    client::{Client, segment},
    failure::Failure,
    views::{Backends, read},
};

/// The backends that are meant: the one that is named, or all.
pub(super) async fn meant(client: &Client, named: Option<String>) -> Result<Vec<String>, Failure> {
    match named {
        Some(name) => Ok(vec![segment(&name)?.to_owned()]),
        None => all(client).await,
    }
}

/// The backend that is meant if none is named: the only one.
pub(super) async fn only_backend(client: &Client) -> Result<String, Failure> {
    let names = all(client).await?;
    match names.as_slice() {
        [only] => Ok(only.clone()),
        _ => Err(Failure::usage(format!(
            "name the backend with --backend; there are: {}",
            names.join(", ")
        ))),
    }
}

/// The names of all backends.
async fn all(client: &Client) -> Result<Vec<String>, Failure> {
    let Backends { backends } = read(&client.get("/v1/backends").await?)?;
    Ok(backends.into_iter().map(|backend| backend.name).collect())
}
