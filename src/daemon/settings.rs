//! The settings of a running daemon: the file read again, and changes at run time. How these override each other is in
//! [`crate::changes`].

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use fusebox_actors::{AdminError, Clock, EventKind, KeyChange};
use xxhash_rust::xxh3::xxh3_128;

use super::{
    Alone, Daemon,
    blocking::{blocking, unwritten},
    differences::{key_changes, retuned},
};
use crate::{
    changes::{
        self,
        edit::{Edit, Refusal, holds_what_waits},
        timed::Timed,
    },
    config::{Change, Config},
    state_dir::is_in_place,
};

/// What a change at run time has changed, or would.
pub(crate) struct Edited {
    /// The settings in effect afterwards.
    pub(crate) config: Arc<Config>,
    /// What differs from before, what follows from others included.
    pub(crate) changed: Vec<KeyChange>,
}

/// What names the settings in effect: others have another revision.
pub(crate) fn revision(config: &Config) -> String {
    // Writing a table to text does not fail.
    let text = toml::to_string(&config.effective).unwrap_or_default();
    format!("{:032x}", xxh3_128(text.as_bytes()))
}

impl Daemon {
    /// Changes settings at run time, whole or not at all; only looks at what would change if `dry_run`. With `expected`
    /// it is refused unless that is the revision in effect.
    ///
    /// # Errors
    /// Why nothing was changed.
    pub(crate) async fn edit(
        self: &Arc<Self>,
        edit: Edit,
        expected: Option<&str>,
        dry_run: bool,
    ) -> Result<Edited, Refusal> {
        let alone = self.reloading.lock().await;
        let backend = edit.backend.clone();
        let ended = self.edit_alone(&alone, &edit, expected, dry_run).await;
        if !dry_run {
            let result = if ended.is_ok() { "applied" } else { "refused" };
            self.fusebox.count_config_change(backend.as_deref(), result);
        }
        if let Err(why) = &ended {
            tracing::warn!(by = edit.by, backend, %why, "settings were not changed");
        }
        ended
    }

    async fn edit_alone(
        self: &Arc<Self>,
        alone: &Alone,
        edit: &Edit,
        expected: Option<&str>,
        dry_run: bool,
    ) -> Result<Edited, Refusal> {
        let old = self.config.load_full();
        let now = revision(&old);
        if let Some(expected) = expected.filter(|expected| *expected != now) {
            return Err(Refusal::Stale(format!(
                "the settings are at revision {now}, no longer at {expected}: read them again"
            )));
        }
        let next = self.sources.with(&old, edit.changes(&old)?)?;
        if !edit.force {
            self.leave_room(&old, &next)?;
        }
        if dry_run {
            return Ok(Edited { changed: key_changes(&old, &next), config: Arc::new(next) });
        }
        self.take(alone, &old, next, &edit.by, None).await
    }

    /// Refuses a queue's limit that is smaller than it was, and than what waits.
    fn leave_room(&self, old: &Config, next: &Config) -> Result<(), Refusal> {
        for backend in retuned(old, next) {
            let before = old.backends.iter().find(|it| it.settings.name == backend.name);
            if let (Some(before), Some(handle)) = (before, self.fusebox.backend(&backend.name)) {
                holds_what_waits(&before.settings, &backend, handle.held())?;
            }
        }
        Ok(())
    }

    /// Puts settings in effect that differ from `old` by changes at run time alone: on the disk, then in the core, then
    /// published.
    async fn take(
        self: &Arc<Self>,
        alone: &Alone,
        old: &Config,
        next: Config,
        by: &str,
        why: Option<&str>,
    ) -> Result<Edited, Refusal> {
        let is_persisted = |config: &Config| {
            let changes = config.changes.iter().filter(|change| change.persisted);
            changes.cloned().collect::<Vec<_>>()
        };
        let is_written = is_persisted(old) != is_persisted(&next);
        if is_written {
            match write(alone, &next).await {
                // The change ends all the same; the disk is written later.
                Err((error, _)) if why.is_some() => {
                    self.is_stale.store(true, Ordering::Relaxed);
                    tracing::warn!(%error, "a change whose time is over could not be removed from the disk");
                }
                Err((error, may_be_there)) => {
                    return Err(self.give_back(alone, old, may_be_there, &error).await);
                }
                Ok(()) => self.is_stale.store(false, Ordering::Relaxed),
            }
        }
        let system = next.system(self.identity.load().instance.clone());
        if let Err(error) = self.fusebox.retune(system, retuned(old, &next)) {
            return Err(self.give_back(alone, old, is_written, &error).await);
        }
        self.retune_kinds(old, &next);
        let changed = key_changes(old, &next);
        let next = Arc::new(next);
        self.config.store(Arc::clone(&next));
        self.count_overrides();
        self.edited.notify_one();
        for KeyChange { key, from, to } in &changed {
            tracing::info!(by, key, %from, %to, why, "a setting was changed at run time");
        }
        if !changed.is_empty() {
            let kind = EventKind::Settings {
                by: by.to_owned(),
                settings: changed.clone(),
                why: why.map(str::to_owned),
            };
            self.fusebox.events().publish(Clock::system().unix(), None, kind);
        }
        Ok(Edited { config: next, changed })
    }

    /// Gives the connectors what was changed of their kinds' own settings.
    fn retune_kinds(&self, old: &Config, next: &Config) {
        for backend in &next.backends {
            let name = &backend.settings.name;
            let before = old.backends.iter().find(|before| before.settings.name == *name);
            if before.is_some_and(|before| before.own == backend.own) {
                continue;
            }
            if let (Some(handle), Some(kind)) = (self.fusebox.backend(name), self.kind(name)) {
                kind.retune(handle.connector(), &backend.own.table);
            }
        }
    }

    /// A change from `old` could not be written down, or the core takes nothing of it: the disk is as before again, at
    /// once or as soon as it can be written. Returns what its caller gets.
    async fn give_back(
        &self,
        alone: &Alone,
        old: &Config,
        is_written: bool,
        why: &AdminError,
    ) -> Refusal {
        let written = if is_written { write(alone, old).await } else { Ok(()) };
        Refusal::Failed(match written {
            Ok(()) => format!("nothing was changed: {why}"),
            Err((error, _)) => {
                self.is_stale.store(true, Ordering::Relaxed);
                self.edited.notify_one();
                format!(
                    "{why}; and the change could not be removed from the state directory ({error}): until it can be, it \
                     may be in effect after a restart"
                )
            }
        })
    }

    /// Forgets the persisted changes that are not in effect, so that none comes back when the file changes again.
    pub(crate) async fn keep_changes(&self) {
        let alone = self.reloading.lock().await;
        self.keep_those_in_effect(&alone).await;
    }

    /// The same for whoever changes settings just then.
    pub(super) async fn keep_those_in_effect(&self, _: &Alone) {
        self.count_overrides();
        let config = self.config.load_full();
        let is_stale = self.is_stale.load(Ordering::Relaxed);
        let kept = blocking(move || {
            // What is not ours stays until there is something to write.
            let found = changes::file::read(&config.state_dir).unwrap_or_default();
            let is_kept = |change: &Change| config.changes.contains(change);
            // What was not synced may look as it should, and be gone after a power cut.
            if !is_stale && found.odd.is_empty() && found.changes.iter().all(is_kept) {
                return Ok(());
            }
            changes::file::write(&config.state_dir, &config.changes)
        });
        let kept = kept.await;
        self.is_stale.store(kept.is_err(), Ordering::Relaxed);
        if let Err(error) = kept {
            tracing::warn!(%error, "changes of settings that are not in effect could not be removed from the disk");
        }
        self.edited.notify_one();
    }

    /// Shows, as metrics, how many settings are changed at run time, and how many changes cannot be read.
    pub(crate) fn count_overrides(&self) {
        let config = self.config.load();
        let count = |prefix: &str| {
            let of_it = config.changes.iter().filter(|change| change.path.starts_with(prefix));
            of_it.count()
        };
        for backend in &config.backends {
            let name = &backend.settings.name;
            self.fusebox.set_config_overrides(Some(name), count(&format!("backends.{name}.")));
        }
        let of_backends = count("backends.");
        self.fusebox.set_config_overrides(None, config.changes.len() - of_backends);
        self.fusebox.set_config_left_out(config.left_out.len());
    }

    /// Takes back the changes whose time is `over`.
    async fn take_back(self: &Arc<Self>, over: &[Change]) -> Result<(), Refusal> {
        let alone = self.reloading.lock().await;
        let old = self.config.load_full();
        let is_over = |change: &&Change| over.contains(change);
        // A change that does not fit without one whose time is over goes with it.
        let mut next = self.sources.with(&old, Vec::new())?;
        let mut kept = Vec::new();
        for change in old.changes.iter().filter(|change| !is_over(change)) {
            kept.push(change.clone());
            match self.sources.with(&old, kept.clone()) {
                Ok(fitting) => next = fitting,
                Err(why) => {
                    kept.pop();
                    tracing::warn!(key = change.path, %why, "a change of settings is no longer valid: it is undone");
                }
            }
        }
        self.take(&alone, &old, next, "fusebox", Some("its time is over")).await?;
        for change in old.changes.iter().filter(is_over) {
            let backend = change.path.strip_prefix("backends.").and_then(|it| it.split('.').next());
            self.fusebox.count_config_change(backend, "reverted");
        }
        Ok(())
    }
}

/// Writes down the persisted changes of `config`. With an error goes whether they may be on the disk all the same.
async fn write(_: &Alone, config: &Config) -> Result<(), (AdminError, bool)> {
    let (dir, changes) = (config.state_dir.clone(), config.changes.clone());
    match blocking(move || Ok(changes::file::write(&dir, &changes))).await {
        Ok(written) => written.map_err(|error| (unwritten(&error), is_in_place(&error))),
        Err(unended) => Err((unended, true)),
    }
}

/// Takes back changes that were made for a time, when that is over; and writes the disk again if that has failed.
pub(crate) async fn take_back_in_time(daemon: Arc<Daemon>) {
    /// The wall clock may be set forward: how far off a change may then be taken back. A disk that takes nothing is tried
    /// again as often.
    const LOOK: Duration = Duration::from_secs(60);
    let mut timed = Timed::default();
    loop {
        let changed = daemon.edited.notified();
        let (now, wall) = (Instant::now(), SystemTime::now());
        timed.look(&daemon.config.load().changes, now, wall);
        let is_stale = daemon.is_stale.load(Ordering::Relaxed);
        let Some(rest) = timed.first(now, wall).or(is_stale.then_some(LOOK)) else {
            changed.await;
            continue;
        };
        if !rest.is_zero() {
            let is_changed = tokio::select! {
                biased;
                () = changed => true,
                () = tokio::time::sleep(rest.min(LOOK)) => false,
            };
            if is_stale && !is_changed {
                daemon.keep_changes().await;
            }
            continue;
        }
        if let Err(error) = daemon.take_back(&timed.over(now, wall)).await {
            tracing::error!(%error, "a change of settings whose time is over could not be undone");
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }
}
