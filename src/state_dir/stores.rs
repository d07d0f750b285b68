//! The stores of a state directory, for the commands that need no daemon.
//!
//! | the place of a store | whose it is |
//! | --- | --- |
//! | `backends/` in the directory | the directory's |
//! | a folder that the configuration of this very directory names | the directory's |
//! | another folder that its `origin` names | the directory's, but for two cases |
//!
//! The two cases are a copy, whose `origin` names the stores of the original, and a folder that the configuration of
//! another directory names. Such a store is never opened: it is named as missing. So is one that is gone. Once a copy was
//! opened, its `origin` names no store of the original any more.
//!
//! A configuration that names no state directory may be of any directory that is not a copy, as far as the directory's
//! `origin` says nothing else of a store.
//!
//! A backend has one store at a time: the one that a daemon would use. It is at the place that the configuration of
//! this very directory names, a folder of its own or the usual one, if a store is there; otherwise at that of `origin`.
//! Others may be the directory's, too, such as one that was left behind when `queue.dir` was changed. Their calls are
//! older, or copies of calls that were delivered, so what uses calls passes over these stores and names them. If the
//! store that the `origin` names is gone, and the configuration names no other, nothing takes its place: neither one
//! that was left over nor an empty folder, such as the place of a file system that is not mounted.

use std::{
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use fusebox_state::store::check::{self, CheckVerdict};

use super::origin::{self, Origin, Place, Read};

/// What the configuration of this host says of stores.
#[derive(Debug)]
pub(crate) struct Configured {
    /// The state directory that it is of, if that is known.
    pub(crate) state_dir: Option<PathBuf>,
    /// Its backends, each with the folder of its store if that is not the usual one.
    pub(crate) stores: Vec<(String, Option<PathBuf>)>,
}

/// A store.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Store {
    /// The backend that it is of.
    pub(crate) name: String,
    /// What it is called: the name of its backend, with its folder if it was left over.
    pub(crate) label: String,
    /// Its folder.
    pub(crate) dir: PathBuf,
    /// Whether that is not the usual one.
    pub(crate) is_elsewhere: bool,
}

impl Store {
    fn new(name: &str, dir: PathBuf, is_elsewhere: bool) -> Self {
        Self { name: name.to_owned(), label: name.to_owned(), dir, is_elsewhere }
    }

    /// The store of that backend in its usual folder in the state directory `dir`.
    pub(crate) fn usual(dir: &Path, name: &str) -> Self {
        Self::new(name, dir.join("backends").join(name), false)
    }

    /// The store of that backend of the state directory `dir`, in the folder `elsewhere` if it is not in the usual one.
    fn of(dir: &Path, name: &str, elsewhere: Option<&Path>) -> Self {
        elsewhere.map_or_else(
            || Self::usual(dir, name),
            |folder| Self::new(name, folder.to_owned(), true),
        )
    }

    /// The store in the folder `dir`, whosever it is. `name` is that of the backend, and empty if it is not known.
    pub(crate) fn at(name: &str, dir: &Path) -> Self {
        Self { label: dir.display().to_string(), ..Self::new(name, dir.to_owned(), true) }
    }
}

/// A store that is not to be had.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Missing {
    /// The backend that it is of, if that is known.
    pub(crate) backend: Option<String>,
    /// Why.
    pub(crate) why: String,
}

/// The stores of a directory.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The store of each backend, which is the one that a daemon would use; by the names of the backends.
    pub(crate) stores: Vec<Store>,
    /// Other stores of backends, which nothing uses.
    pub(crate) left_over: Vec<Store>,
    /// Those that are not to be had.
    pub(crate) missing: Vec<Missing>,
    /// What else is worth knowing.
    pub(crate) notes: Vec<String>,
}

/// Finds the stores of the state directory `dir`. Changes nothing, and makes nothing.
///
/// # Errors
/// The folder of its stores cannot be read, or there is none and nothing says that a store is elsewhere.
pub(crate) fn find(dir: &Path, host: Option<&Configured>) -> io::Result<Found> {
    let mut found = Found::default();
    let (origin, is_copy) = match origin::read(dir) {
        Read::Found { origin, .. } => {
            let is_elsewhere = origin.place.differs(&Place::of(dir)).is_some();
            found.missing.extend(origin.damage.as_ref().map(|damage| unknown(dir, damage)));
            let is_copy = is_elsewhere || origin.paused.is_some() || origin.damage.is_some();
            (origin, is_copy)
        }
        Read::Nothing => (Origin::default(), false),
        Read::Garbage(damage) => {
            found.missing.push(unknown(dir, &damage));
            (Origin::default(), true)
        }
    };
    let own = host.filter(|host| match &host.state_dir {
        Some(own) => is_same(own, dir),
        None => !is_copy,
    });
    let is_sure = own.is_some_and(|own| own.state_dir.is_some());
    for (name, folder) in own.into_iter().flat_map(|own| &own.stores) {
        let store = Store::of(dir, name, folder.as_deref());
        let agrees = origin
            .stores
            .get(name)
            .is_none_or(|noted| is_same(&Store::of(dir, name, noted.as_deref()).dir, &store.dir));
        if (is_sure || agrees) && origin::has_store(&store.dir) {
            found.stores.push(store);
        }
    }
    // A daemon with this configuration uses these; what the origin names comes behind them, and before the usual ones.
    let configured = found.stores.len();
    let usual = usual_stores(dir);
    for name in usual.iter().flatten() {
        let store = Store::usual(dir, name);
        // A backend that has a store, or has had one, gets no new one.
        let has_one = origin.stores.contains_key(name)
            || found.stores.iter().any(|other| other.name == *name);
        let is_named = found.stores.iter().any(|other| is_same(&other.dir, &store.dir));
        if !is_named && (!has_one || origin::has_store(&store.dir)) {
            found.stores.push(store);
        }
    }
    let others = host.filter(|_| own.is_none());
    for (name, folder) in &origin.stores {
        let usual = Store::usual(dir, name).dir;
        let folder = folder.as_ref().unwrap_or(&usual);
        if found.stores.iter().any(|store| is_same(&store.dir, folder)) {
            continue;
        }
        let owner = others.filter(|host| is_elsewhere_for(host, folder));
        let shown = folder.display();
        let why = match owner.and_then(|host| host.state_dir.as_ref()) {
            _ if is_copy && *folder != usual => format!(
                "its store was in {shown} when this directory was copied: put a copy of that folder into {}",
                usual.display()
            ),
            Some(owner) => {
                format!("its store is in {shown}, which is a store of {} now", owner.display())
            }
            None if !origin::has_store(folder) => {
                format!("its store is missing: it should be in {shown}")
            }
            None => {
                found.stores.insert(configured, Store::new(name, folder.clone(), true));
                continue;
            }
        };
        // In its place is what the configuration says, or what was put into a directory that no longer has that folder.
        let some = if is_copy || owner.is_some() { found.stores.len() } else { configured };
        let in_its_place = found
            .stores
            .iter()
            .take(some)
            .find(|store| store.name == *name && origin::has_store(&store.dir));
        match in_its_place {
            Some(store) => {
                let taken = store.dir.display();
                found
                    .notes
                    .push(format!("{name}: its store was in {shown}, and is in {taken} now"));
            }
            None => found.missing.push(Missing { backend: Some(name.clone()), why }),
        }
    }
    // What a backend no longer uses comes last. That of a copy is the original's.
    for (name, folder) in
        origin.left.iter().flat_map(|(name, all)| all.iter().map(move |it| (name, it)))
    {
        let is_named = found.stores.iter().any(|store| is_same(&store.dir, folder));
        if !is_copy && !is_named && origin::has_store(folder) {
            found.stores.push(Store::new(name, folder.clone(), true));
        }
    }
    if let Err(error) = usual {
        let has_others = !found.stores.is_empty() || !found.missing.is_empty();
        if error.kind() != ErrorKind::NotFound || !has_others {
            return Err(error);
        }
    }
    found.leave_one_each();
    Ok(found)
}

impl Found {
    /// Leaves only what is of one backend.
    pub(crate) fn keep_only(&mut self, name: &str) {
        self.stores.retain(|store| store.name == name);
        self.left_over.retain(|store| store.name == name);
        self.missing.retain(|missing| missing.backend.as_deref().is_none_or(|it| it == name));
    }

    /// All stores, by the names of their backends; what was left over comes behind the store that is used.
    pub(crate) fn all(&self) -> Vec<&Store> {
        let mut all: Vec<&Store> = self.stores.iter().chain(&self.left_over).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// For who uses the calls: names what was left over, and may have calls, among the stores that are not to be had.
    pub(crate) fn name_left_over(&mut self) {
        let left_over = std::mem::take(&mut self.left_over);
        for Store { name, dir, .. } in left_over.into_iter().filter(|it| may_have_calls(&it.dir)) {
            let dir = dir.display();
            let why = format!(
                "calls may wait in {dir}, too, which is not its store: `fusebox queue export {dir} --backend {name}` \
                 writes them"
            );
            self.missing.push(Missing { backend: Some(name), why });
        }
    }

    /// Leaves one store to each backend: the first one, but none if the backend's own is missing.
    fn leave_one_each(&mut self) {
        let mut all = std::mem::take(&mut self.stores);
        // Those of one backend stay in their order.
        all.sort_by(|a, b| a.name.cmp(&b.name));
        for mut store in all {
            let name = store.name.as_str();
            let has_one = self.stores.last().is_some_and(|last| last.name == name)
                || self.missing.iter().any(|missing| missing.backend.as_deref() == Some(name));
            if has_one {
                store.label = format!("{name} ({})", store.dir.display());
                self.left_over.push(store);
            } else {
                self.stores.push(store);
            }
        }
    }
}

/// Whether calls wait in the store at `dir`, or may do so.
pub(super) fn may_have_calls(dir: &Path) -> bool {
    let report = check::check(dir, &mut |_, _| {});
    match report.verdict {
        CheckVerdict::Empty => false,
        CheckVerdict::Whole => {
            report.counts.is_none_or(|counts| counts.pending + counts.sending + counts.dead > 0)
        }
        CheckVerdict::Damaged | CheckVerdict::NewerFormat => true,
    }
}

/// Which stores the directory has elsewhere is not known.
fn unknown(dir: &Path, damage: &str) -> Missing {
    let dir = dir.display();
    let why = format!(
        "it is not known whether {dir} has stores elsewhere: its file `origin` was found to be damaged: {damage}"
    );
    Missing { backend: None, why }
}

/// The names of the folders in `backends`.
fn usual_stores(dir: &Path) -> io::Result<Vec<String>> {
    let entries = std::fs::read_dir(dir.join("backends"))?;
    let name = |entry: io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        entry.path().is_dir().then(|| entry.file_name().into_string().ok())?
    };
    Ok(entries.filter_map(name).collect())
}

/// Whether that configuration puts a store into `folder`.
fn is_elsewhere_for(host: &Configured, folder: &Path) -> bool {
    host.stores.iter().any(|(_, it)| it.as_ref().is_some_and(|it| is_same(it, folder)))
}

/// Whether the two paths lead to the same folder.
pub(super) fn is_same(one: &Path, two: &Path) -> bool {
    let id = |path: &Path| std::fs::metadata(path).map(|it| (it.dev(), it.ino())).ok();
    one == two || id(one).is_some_and(|one| id(two) == Some(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A place with state directories and folders of stores.
    struct World(tempfile::TempDir);

    impl World {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// Makes a folder that has a store.
        fn store(&self, name: &str) -> PathBuf {
            std::fs::create_dir_all(self.path(name).join("db")).unwrap();
            self.path(name)
        }

        /// Writes the origin of the directory `name`, made where `place` is.
        fn origin(&self, name: &str, place: &str, stores: &[(&str, Option<PathBuf>)]) {
            let stores = stores.iter().map(|(name, dir)| ((*name).to_owned(), dir.clone()));
            let place = Place::of(&self.path(place));
            let origin = Origin { place, stores: stores.collect(), ..Origin::default() };
            origin::write(&self.path(name), &origin).unwrap();
        }

        /// The configuration of the directory `state_dir`, with the store of `redis` in the folder `q`.
        fn configured(&self, state_dir: Option<&str>) -> Configured {
            Configured {
                state_dir: state_dir.map(|name| self.path(name)),
                stores: vec![("redis".to_owned(), Some(self.path("q")))],
            }
        }

        /// The folders of the stores of the directory `name`, and which backends' stores are missing.
        fn found(&self, name: &str, host: Option<&Configured>) -> (Vec<PathBuf>, Vec<String>) {
            let found = find(&self.path(name), host).unwrap();
            let backend = |missing: Missing| missing.backend.unwrap_or_default();
            let dirs = found.stores.into_iter().map(|store| store.dir).collect();
            (dirs, found.missing.into_iter().map(backend).collect())
        }

        /// The folders of the stores of the directory `name` that were left over.
        fn left_over(&self, name: &str, host: Option<&Configured>) -> Vec<PathBuf> {
            let left_over = find(&self.path(name), host).unwrap().left_over;
            left_over.into_iter().map(|store| store.dir).collect()
        }
    }

    #[test]
    fn stores_are_the_folders_below_backends() {
        let world = World::new();
        std::fs::create_dir(world.path("state")).unwrap();
        assert!(find(&world.path("state"), None).is_err());
        assert!(find(&world.path("absent"), None).is_err());
        assert!(!world.path("absent").try_exists().unwrap());
        let (b, a) = (world.store("state/backends/b"), world.path("state/backends/a"));
        std::fs::create_dir(&a).unwrap();
        std::fs::write(world.path("state/backends/file"), "").unwrap();
        assert_eq!(world.found("state", None), (vec![a, b], vec![]));
    }

    #[test]
    fn a_directory_has_the_stores_that_it_or_its_configuration_says_are_elsewhere() {
        let world = World::new();
        let (kv, q) = (world.store("state/backends/kv"), world.store("q"));
        let own = world.configured(Some("state"));
        assert_eq!(world.found("state", Some(&own)), (vec![kv.clone(), q.clone()], vec![]));
        world.origin("state", "state", &[("kv", None), ("redis", Some(q.clone()))]);
        let silent = world.configured(None);
        for host in [None, Some(&own), Some(&silent)] {
            assert_eq!(world.found("state", host), (vec![kv.clone(), q.clone()], vec![]));
        }
        // It was in the usual folder before, and calls may wait there, too.
        let old = world.store("state/backends/redis");
        for host in [None, Some(&own), Some(&silent)] {
            assert_eq!(world.found("state", host), (vec![kv.clone(), q.clone()], vec![]));
            assert_eq!(world.left_over("state", host), std::slice::from_ref(&old));
        }
        let found = find(&world.path("state"), Some(&own)).unwrap();
        let labels: Vec<&str> = found.all().into_iter().map(|store| store.label.as_str()).collect();
        let other = format!("redis ({})", old.display());
        assert_eq!(labels, ["kv", "redis", other.as_str()]);
        // Its folder is gone, or not mounted: what was left behind does not replace it.
        std::fs::remove_dir_all(&q).unwrap();
        for host in [None, Some(&own), Some(&silent)] {
            assert_eq!(world.found("state", host), (vec![kv.clone()], vec!["redis".to_owned()]));
            assert_eq!(world.left_over("state", host), std::slice::from_ref(&old));
        }
        std::fs::remove_dir_all(&old).unwrap();
        for host in [None, Some(&own), Some(&silent)] {
            assert_eq!(world.found("state", host), (vec![kv.clone()], vec!["redis".to_owned()]));
        }
    }

    #[test]
    fn a_usual_folder_that_the_configuration_names_is_one_store() {
        let world = World::new();
        let redis = world.store("state/backends/redis");
        let stores = vec![("redis".to_owned(), Some(redis.clone()))];
        let host = Configured { state_dir: Some(world.path("state")), stores };
        assert_eq!(world.found("state", Some(&host)), (vec![redis], vec![]));
        assert!(world.left_over("state", Some(&host)).is_empty());
    }

    #[test]
    fn a_store_that_was_moved_home_is_the_one_in_use() {
        let world = World::new();
        let home = world.store("state/backends/redis");
        world.origin("state", "state", &[("redis", Some(world.path("q")))]);
        let own = Configured {
            state_dir: Some(world.path("state")),
            stores: vec![("redis".to_owned(), None)],
        };
        assert_eq!(world.found("state", Some(&own)), (vec![home.clone()], vec![]));
        assert!(world.left_over("state", Some(&own)).is_empty());
        let found = find(&world.path("state"), Some(&own)).unwrap();
        assert_eq!(found.notes.len(), 1, "{:?}", found.notes);
        // It may have been left behind there, as far as another configuration, or none, can say.
        let silent = Configured { state_dir: None, stores: vec![("redis".to_owned(), None)] };
        for host in [None, Some(&silent)] {
            assert_eq!(world.found("state", host), (vec![], vec!["redis".to_owned()]));
        }
        // It was copied home.
        let q = world.store("q");
        assert_eq!(world.found("state", Some(&own)), (vec![home.clone()], vec![]));
        assert_eq!(world.left_over("state", Some(&own)), std::slice::from_ref(&q));
        for host in [None, Some(&silent)] {
            assert_eq!(world.found("state", host), (vec![q.clone()], vec![]));
            assert_eq!(world.left_over("state", host), std::slice::from_ref(&home));
        }
    }

    #[test]
    fn a_folder_without_a_store_is_only_that_of_a_backend_that_has_had_none() {
        let world = World::new();
        let folder = world.path("state/backends/redis");
        std::fs::create_dir_all(&folder).unwrap();
        // Where no file system is mounted.
        for had in [None, Some(world.path("q"))] {
            world.origin("state", "state", &[("redis", had)]);
            assert_eq!(world.found("state", None), (vec![], vec!["redis".to_owned()]));
        }
        world.origin("state", "state", &[]);
        assert_eq!(world.found("state", None), (vec![folder], vec![]));
    }

    #[test]
    fn a_copy_has_no_store_of_the_original() {
        let world = World::new();
        let (kv, q) = (world.store("copy/backends/kv"), world.store("q"));
        world.store("state/backends/kv");
        world.origin("copy", "state", &[("kv", None), ("redis", Some(q.clone()))]);
        let (own, silent) = (world.configured(Some("state")), world.configured(None));
        for host in [None, Some(&own), Some(&silent)] {
            assert_eq!(world.found("copy", host), (vec![kv.clone()], vec!["redis".to_owned()]));
        }
        // The copy was restored: its daemon uses the folder.
        let restored = world.configured(Some("copy"));
        assert_eq!(world.found("copy", Some(&restored)), (vec![kv.clone(), q], vec![]));
        // The store was copied, too.
        let redis = world.store("copy/backends/redis");
        assert_eq!(world.found("copy", Some(&own)), (vec![kv, redis], vec![]));
        let found = find(&world.path("copy"), Some(&own)).unwrap();
        assert_eq!(found.notes.len(), 1, "{:?}", found.notes);
    }

    #[test]
    fn a_copy_that_was_accepted_has_no_store_of_the_original() {
        let world = World::new();
        let (kv, q) = (world.store("copy/backends/kv"), world.store("q"));
        world.store("state/backends/kv");
        world.origin("copy", "state", &[("kv", None), ("redis", Some(q.clone()))]);
        let copy = super::super::StateDir::open(&world.path("copy")).unwrap();
        assert!(copy.accept_clone(&|_| true).unwrap());
        let (own, silent) = (world.configured(Some("state")), world.configured(None));
        for host in [None, Some(&own), Some(&silent)] {
            assert_eq!(world.found("copy", host), (vec![kv.clone()], vec!["redis".to_owned()]));
        }
        // It is the copy's own once its daemon has noted it.
        copy.look_for_stores(&[("kv".to_owned(), None), ("redis".to_owned(), Some(q.clone()))]);
        for host in [None, Some(&silent)] {
            assert_eq!(world.found("copy", host), (vec![kv.clone(), q.clone()], vec![]));
        }
    }

    #[test]
    fn a_directory_that_was_moved_away_has_no_store_of_the_one_in_its_place() {
        let world = World::new();
        let (old, q) = (world.store("old/backends/kv"), world.store("q"));
        world.store("state/backends/kv");
        world.origin("old", "old", &[("kv", None), ("redis", Some(q))]);
        let host = world.configured(Some("state"));
        let missing = vec!["redis".to_owned()];
        assert_eq!(world.found("old", Some(&host)), (vec![old.clone()], missing));
        let found = find(&world.path("old"), Some(&host)).unwrap();
        let why = &found.missing.first().unwrap().why;
        assert!(why.contains(&world.path("state").display().to_string()), "{why}");
        // Its own store was moved into it.
        let redis = world.store("old/backends/redis");
        assert_eq!(world.found("old", Some(&host)), (vec![old, redis], vec![]));
    }

    #[test]
    fn what_a_damaged_origin_had_to_say_is_missing() {
        let world = World::new();
        let (kv, q) = (world.store("state/backends/kv"), world.store("q"));
        std::fs::write(world.path("state/origin"), "garbage").unwrap();
        let unknown = vec![String::new()];
        assert_eq!(world.found("state", None), (vec![kv.clone()], unknown.clone()));
        let (own, silent) = (world.configured(Some("state")), world.configured(None));
        let both = (vec![kv.clone(), q.clone()], unknown.clone());
        assert_eq!(world.found("state", Some(&own)), both);
        // A new file in its place does not know it either, until a daemon has noted its stores.
        let state = super::super::StateDir::open(&world.path("state")).unwrap();
        assert!(state.accept_clone(&|_| true).unwrap());
        for host in [None, Some(&silent)] {
            assert_eq!(world.found("state", host), (vec![kv.clone()], unknown.clone()));
        }
        assert_eq!(world.found("state", Some(&own)), both);
        state.look_for_stores(&[("kv".to_owned(), None), ("redis".to_owned(), Some(q.clone()))]);
        for host in [None, Some(&own), Some(&silent)] {
            assert_eq!(world.found("state", host), (vec![kv.clone(), q.clone()], vec![]));
        }
    }
}
