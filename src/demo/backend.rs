//! The backends of the demo: one of each kind.

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    Redis,
    ClickHouse,
    Firestore,
}

impl Backend {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Redis, Self::ClickHouse, Self::Firestore];

    /// Its name in the configuration and the API.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::ClickHouse => "clickhouse",
            Self::Firestore => "firestore",
        }
    }

    /// Its name for people.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Redis => "Redis",
            Self::ClickHouse => "ClickHouse",
            Self::Firestore => "Firestore",
        }
    }
}

/// One of something for each backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Each<T> {
    redis: T,
    clickhouse: T,
    firestore: T,
}

impl<T> Each<T> {
    /// What `make` makes for each.
    pub(super) fn of(mut make: impl FnMut(Backend) -> T) -> Self {
        let [redis, clickhouse, firestore] = Backend::ALL.map(&mut make);
        Self { redis, clickhouse, firestore }
    }

    /// What belongs to `backend`.
    pub(super) fn get(&self, backend: Backend) -> &T {
        match backend {
            Backend::Redis => &self.redis,
            Backend::ClickHouse => &self.clickhouse,
            Backend::Firestore => &self.firestore,
        }
    }

    /// What belongs to `backend`, to be changed.
    pub(super) fn get_mut(&mut self, backend: Backend) -> &mut T {
        match backend {
            Backend::Redis => &mut self.redis,
            Backend::ClickHouse => &mut self.clickhouse,
            Backend::Firestore => &mut self.firestore,
        }
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Backend, &T)> {
        Backend::ALL.map(|backend| (backend, self.get(backend))).into_iter()
    }
}
