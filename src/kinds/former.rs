//! The names that this installation had before, and what is still to be killed that has them.
//!
//! A daemon takes a new name when it finds that another one may have its own. What it has sent under the former name may
//! still be on its way, so the first fence at each backend kills what has that name as well. It does so once: afterwards
//! the name may be the other daemon's. That is an obligation to the server, and outlives the connector that fulfils it
//! and the run that began with it. So all connectors of a run ask here whether it is fulfilled, and the state directory
//! keeps it for the next run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use parking_lot::Mutex;

/// Writes down that nothing has these names any more at a backend.
type Note = dyn Fn(&str, &[String]) + Send + Sync;

/// The former names, and the backends at which nothing has them any more.
#[derive(Default)]
pub struct Former {
    /// The backends by name.
    names: Mutex<BTreeMap<String, BTreeSet<String>>>,
    note: Option<Box<Note>>,
}

impl Former {
    /// With these names; what is gone afterwards is written down by `note`, which does not block.
    pub(crate) fn new(
        names: BTreeMap<String, BTreeSet<String>>,
        note: impl Fn(&str, &[String]) + Send + Sync + 'static,
    ) -> Self {
        Self { names: Mutex::new(names), note: Some(Box::new(note)) }
    }

    /// `name` is a former one from now on.
    pub(crate) fn add(&self, name: &str) {
        self.names.lock().insert(name.to_owned(), BTreeSet::new());
    }

    /// The former names that are still to be killed at `backend`, by a connector whose own name is `own`: one that has not
    /// been exchanged yet may have a name that is a former one already.
    pub(crate) fn at(&self, backend: &str, own: &str) -> Vec<String> {
        let names = self.names.lock();
        let left = names.iter().filter(|(name, gone)| *name != own && !gone.contains(backend));
        left.map(|(name, _)| name.clone()).collect()
    }

    /// Nothing has these names any more at `backend`: the server has said so after all that had them was killed.
    pub(crate) fn gone(&self, backend: &str, names: &[String]) {
        if names.is_empty() {
            return;
        }
        let mut known = self.names.lock();
        for name in names {
            if let Some(gone) = known.get_mut(name) {
                gone.insert(backend.to_owned());
            }
        }
        drop(known);
        if let Some(note) = &self.note {
            note(backend, names);
        }
    }
}

impl fmt::Debug for Former {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Former").field("names", &self.names).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_former_name_is_killed_once_at_each_backend_whoever_asks() {
        let noted: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&noted);
        let former = Former::new(
            BTreeMap::from([("old".to_owned(), BTreeSet::from(["redis".to_owned()]))]),
            move |backend, names| log.lock().push(format!("{backend} {}", names.join(" "))),
        );
        assert!(former.at("redis", "new").is_empty(), "an earlier run did it");
        assert_eq!(former.at("other", "new"), ["old"]);
        // A twin is found.
        former.add("new");
        assert_eq!(former.at("other", "newer"), ["new", "old"]);
        assert_eq!(former.at("redis", "newer"), ["new"]);
        assert!(former.at("redis", "new").is_empty(), "it is not exchanged yet");
        let looked_for = former.at("other", "newer");
        former.gone("other", &looked_for);
        former.gone("redis", &[]);
        assert!(former.at("other", "newer").is_empty());
        assert_eq!(former.at("redis", "newer"), ["new"]);
        assert_eq!(*noted.lock(), ["other new old"]);
    }
}
