//! What is closed to us: the server, or objects in it. There is an alert for as long as anything is.

use std::collections::{BTreeMap, BTreeSet};

use fusebox_state::{Moment, Words};

/// Something that is closed.
struct Pause {
    /// When it is tried again.
    until: Moment,
    /// What operators are to read.
    alert: Words,
}

/// All that is closed.
#[derive(Default)]
pub(super) struct Blocked {
    server: Option<Pause>,
    /// By [`Entry::object`](fusebox_state::queue::Entry::object).
    objects: BTreeMap<u32, Pause>,
}

impl Blocked {
    /// The server is closed, and is left alone until then.
    pub(super) fn close_server(&mut self, until: Moment, alert: Words) {
        self.server = Some(Pause { until, alert });
    }

    /// An object is closed, and is left alone until then.
    pub(super) fn close(&mut self, object: u32, until: Moment, alert: Words) {
        // A server that refuses an object answers.
        self.server = None;
        self.objects.insert(object, Pause { until, alert });
    }

    /// A call for this object was applied: it is open, and so is the server.
    pub(super) fn opened(&mut self, object: u32) {
        self.server = None;
        self.objects.remove(&object);
    }

    /// Everything may be tried at once. It stays closed until a call is applied.
    pub(super) fn try_again(&mut self, now: Moment) {
        self.server.iter_mut().chain(self.objects.values_mut()).for_each(|pause| pause.until = now);
    }

    /// The objects that are closed.
    pub(super) fn objects(&self) -> BTreeSet<u32> {
        self.objects.keys().copied().collect()
    }

    /// Forgets objects for which no call waits.
    pub(super) fn forget(&mut self, gone: &BTreeSet<u32>) {
        self.objects.retain(|object, _| !gone.contains(object));
    }

    /// Whether any object is closed.
    pub(super) fn has_objects(&self) -> bool {
        !self.objects.is_empty()
    }

    /// Whether the server is left alone.
    pub(super) fn server_rests(&self, now: Moment) -> bool {
        self.server.as_ref().is_some_and(|pause| pause.until > now)
    }

    /// Until when an object is left alone, if it is.
    pub(super) fn rests_until(&self, object: u32, now: Moment) -> Option<Moment> {
        self.objects.get(&object).map(|pause| pause.until).filter(|until| *until > now)
    }

    /// The alert, while anything is closed.
    pub(super) fn alert(&self) -> Option<Words> {
        let first = self.server.as_ref().or_else(|| self.objects.values().next());
        first.map(|pause| pause.alert.clone())
    }
}
