//! Whether the stores of a state directory are there, and are the ones that they were; see "A copy of a store" in
//! [`origin`].

use std::path::{Path, PathBuf};

use fusebox_state::store::identity::{self, Identity};

use super::{
    Kept, StateDir,
    origin::{self, Doubt, Origin, hex},
    stores,
};

impl StateDir {
    /// Looks whether the stores that `backends` have had are still there, and are the ones that they were; with each goes
    /// its folder if that is not the usual one. Call it before they are opened, which makes what is missing.
    pub(crate) fn look_for_stores(&self, backends: &[(String, Option<PathBuf>)]) {
        self.change(|Kept { origin, .. }| {
            // These are the stores from here on.
            origin.damage = None;
            origin.doubted.retain(|name, doubt| {
                backends.iter().any(|(backend, elsewhere)| {
                    let dir = self.store_dir(backend, elsewhere.as_deref());
                    backend == name && stores::is_same(&dir, &doubt.dir)
                })
            });
            for (name, elsewhere) in backends {
                self.look_for_store(origin, name, elsewhere.as_ref());
            }
            origin.stores.retain(|name, elsewhere| {
                let known = backends.iter().any(|(backend, _)| backend == name);
                let dir = self.store_dir(name, elsewhere.as_deref());
                let kept = known || origin::has_store(&dir);
                if !kept {
                    tracing::warn!(store = name, path = %dir.display(), "a store without a backend is gone");
                }
                kept
            });
        });
    }

    fn look_for_store(&self, origin: &mut Origin, name: &str, elsewhere: Option<&PathBuf>) {
        let is = self.store_dir(name, elsewhere.map(PathBuf::as_path));
        let then = origin.stores.get(name);
        let was = then.map(|then| self.store_dir(name, then.as_deref()));
        // The same folder may have several paths.
        let was = was.filter(|was| !stores::is_same(was, &is));
        // What is used from now on is not left behind any more.
        if let Some(left) = origin.left.get_mut(name) {
            left.retain(|left| !stores::is_same(left, &is) && origin::has_store(left));
        }
        let other = was.as_ref().filter(|was| origin::has_store(was));
        if let Some(other) = other {
            origin.left.entry(name.to_owned()).or_default().insert(other.clone());
        }
        if origin::has_store(&is) {
            recognise_store(origin, name, &is, other.is_some());
            origin.stores.insert(name.to_owned(), elsewhere.cloned());
            let Some(other) = other.filter(|other| stores::may_have_calls(other)) else { return };
            let (other, is) = (other.display(), is.display());
            let what =
                format!("calls may wait in its store in {other}, but the one in {is} is used");
            lose(origin, name, what);
            return;
        }
        if then.is_some() {
            let is = is.display();
            let what = match (other, &was) {
                (Some(other), _) => format!(
                    "the store is missing: calls may wait in {}, but {is} is a new store",
                    other.display()
                ),
                (None, was) => {
                    let was = was
                        .as_ref()
                        .map_or_else(|| is.to_string(), |was| was.display().to_string());
                    format!(
                        "the store is gone: it was in {was}, and the calls that waited in it are lost"
                    )
                }
            };
            lose(origin, name, what);
        }
        note_name(origin, name, &is);
    }

    /// Looks whether these stores are the ones that their backends have had, for who replays them without a daemon; with
    /// each goes its folder.
    pub(crate) fn recognise<'a>(&self, stores: impl Iterator<Item = (&'a str, &'a Path)>) {
        self.change(|Kept { origin, .. }| {
            for (name, dir) in stores.filter(|(_, dir)| origin::has_store(dir)) {
                recognise_store(origin, name, dir, false);
            }
        });
    }
}

/// Pauses replay if the store in `dir` may not be the one that this directory has had: its calls may have been applied
/// since, and newer writes acknowledged. `is_other` if that one is in another folder.
fn recognise_store(origin: &mut Origin, name: &str, dir: &Path, is_other: bool) {
    let (noted, shown) = (origin.names.get(name), dir.display());
    let seen = Identity::of(dir).and_then(|seen| Ok((seen, identity::name(dir)?)));
    let (seen, now) = match seen {
        Ok(seen) => seen,
        // Whether it opens is another question. If it does, this is looked at by the next start.
        Err(error) => {
            tracing::warn!(backend = name, %error, path = %shown, "it is not known whether this store is a copy");
            return;
        }
    };
    let is_noted = noted.is_some() && noted.cloned() == now.map(hex);
    let why = match seen {
        Identity::Copied => format!("the store in {shown} is a copy, such as a restored backup"),
        _ if is_noted || noted.is_none() && !is_other => return note_name(origin, name, dir),
        _ => format!("the store in {shown} is not the one that {name} had before"),
    };
    if stores::may_have_calls(dir) {
        tracing::error!(backend = name, "{why}");
        origin.doubted.insert(name.to_owned(), Doubt { dir: dir.to_owned(), why });
        return;
    }
    if let Err(error) = identity::claim(dir) {
        tracing::warn!(backend = name, %error, "an empty copy of a store stays a copy");
    }
    note_name(origin, name, dir);
}

/// Notes the name of the store of `name`, or of the one that is to be begun in `dir`.
fn note_name(origin: &mut Origin, name: &str, dir: &Path) {
    match identity::name_for(dir) {
        Ok(drawn) => drop(origin.names.insert(name.to_owned(), hex(drawn))),
        Err(error) => {
            tracing::warn!(backend = name, %error, path = %dir.display(), "the store gets no name: if another store \
                takes its place, that is not noticed");
        }
    }
}

/// Tells what is lost of the store of `name`, until an operator accepts it.
fn lose(origin: &mut Origin, name: &str, what: String) {
    tracing::error!(backend = name, "{what}");
    origin.lost.insert(name.to_owned(), what);
}
