//! Writing a store in the first format, for the release before this one.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use super::{
    check::CheckError,
    guard::open_sled,
    head::FirstHead,
    identity,
    keys::HEAD_KEY,
    mark::{self, Reading},
    open::{Look, look},
    raw::{Key, Value},
    rebuild,
    record::{self, FIRST, Kind},
    settings::StoreSettings,
    shared::take_lock,
    space,
};

/// What a downgrade came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Downgraded {
    /// Calls that wait, dead letters included.
    pub calls: u64,
}

/// Writes the store in `settings.dir`, which must be whole and not in use, in the first format. The store as it was is
/// kept beside it as `db.damaged-…`, which `repair` reads. A crash leaves the old store, or the new one with the old
/// mark; either is brought to its end by doing it again.
///
/// # Errors
/// `NotProven` if something is lost or damaged: start this version first. `NoStore` if there is none.
pub fn downgrade(settings: &StoreSettings) -> Result<Downgraded, CheckError> {
    let dir = &settings.dir;
    let marked = mark::read(dir)?;
    if marked == Reading::Absent && !dir.join("db").try_exists()? {
        return Err(CheckError::NoStore(dir.clone()));
    }
    if let Reading::Newer(found) = marked {
        return Err(CheckError::NewerFormat(found));
    }
    let _lock = take_lock(dir).map_err(|error| CheckError::NotProven(error.to_string()))?;
    rebuild::finish(settings, marked, &mut Vec::new())?;
    let (raw, plan) = match look(&dir.join("db"), marked, &mut |_, _| {})? {
        Look::Planned(raw, plan) if plan.is_exact() && raw.scars.is_empty() => (raw, plan),
        Look::Planned(..) => {
            return Err(CheckError::NotProven("it is damaged; start this version first".into()));
        }
        Look::First(_) if matches!(marked, Reading::First(_)) => return Ok(Downgraded::default()),
        // It was cut short before its mark.
        Look::First(raw) => {
            mark_as_first(dir, raw.first.unwrap_or_default())?;
            return Ok(Downgraded::default());
        }
        Look::Nothing => return Err(CheckError::NoStore(dir.clone())),
        Look::Newer(found) => return Err(CheckError::NewerFormat(found)),
        Look::Unprovable(_, why) => return Err(CheckError::NotProven(why)),
    };
    let partial = dir.join("db.partial");
    space::remove_folder(&partial)?;
    let target = open_sled(&partial).map_err(io::Error::other)?.map_err(io::Error::from)?;
    // Opened before anything is written: see `open::try_open`.
    let log = File::open(partial.join("db"))?;
    let head = FirstHead { commit: plan.head.commit + 1, last_seq: plan.head.last_seq };
    let mut done = Downgraded::default();
    let again = |value: &[u8]| {
        let too_large = || io::Error::other("a value does not fit the first format");
        record::seal_again(value, FIRST).map(|draft| draft.stamp(0)).ok_or_else(too_large)
    };
    for Value { key, place, .. } in plan.values.iter() {
        done.calls += u64::from(matches!(key, Key::Call(_)));
        target.insert(key.to_bytes(), again(&raw.load(*place)?)?).map_err(io::Error::from)?;
    }
    let value = record::seal(Kind::Head, &head, 24).map(|draft| draft.stamp(0));
    let value = value.ok_or_else(|| io::Error::other("the head is too large"))?;
    target.insert(HEAD_KEY, again(&value)?).map_err(io::Error::from)?;
    target.flush().map_err(io::Error::from)?;
    drop(target);
    log.sync_all()?;
    File::open(partial.join("conf"))?.sync_all()?;
    identity::carry(dir, &partial)?;
    space::sync_folder(&partial)?;
    // Between the two renames there is no store: whoever comes next takes the old one back from its new place.
    let aside = dir.join("db.discard");
    space::rename(&dir.join("db"), &aside)?;
    space::rename(&partial, &dir.join("db"))?;
    mark_as_first(dir, head)?;
    space::rename(&aside, &space::aside(settings, "damaged"))?;
    Ok(done)
}

fn mark_as_first(dir: &Path, head: FirstHead) -> io::Result<()> {
    let next = dir.join("mark.next");
    fs::write(&next, mark::encode_first(head))?;
    File::open(&next)?.sync_all()?;
    space::rename(&next, &dir.join(mark::FILE))
}
