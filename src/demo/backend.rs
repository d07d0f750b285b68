//! The backends of the demo: one of each kind, by what it keeps.

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    /// Redis.
    Keys,
    /// ClickHouse.
    Rows,
    /// Firestore.
    Documents,
}

impl Backend {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Keys, Self::Rows, Self::Documents];

    /// Its name in the configuration and the API.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Keys => "redis",
            Self::Rows => "clickhouse",
            Self::Documents => "firestore",
        }
    }

    /// The file name of its door's socket.
    pub(super) fn door(self) -> String {
        format!("{}.sock", self.name())
    }

    /// Its name for people.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Keys => "Redis",
            Self::Rows => "ClickHouse",
            Self::Documents => "Firestore",
        }
    }
}

/// One of something for each backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Each<T> {
    keys: T,
    rows: T,
    documents: T,
}

impl<T> Each<T> {
    /// What `make` makes for each.
    pub(super) fn of(mut make: impl FnMut(Backend) -> T) -> Self {
        let [keys, rows, documents] = Backend::ALL.map(&mut make);
        Self { keys, rows, documents }
    }

    /// What belongs to `backend`.
    pub(super) fn get(&self, backend: Backend) -> &T {
        match backend {
            Backend::Keys => &self.keys,
            Backend::Rows => &self.rows,
            Backend::Documents => &self.documents,
        }
    }

    /// What belongs to `backend`, to be changed.
    pub(super) fn get_mut(&mut self, backend: Backend) -> &mut T {
        match backend {
            Backend::Keys => &mut self.keys,
            Backend::Rows => &mut self.rows,
            Backend::Documents => &mut self.documents,
        }
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Backend, &T)> {
        Backend::ALL.map(|backend| (backend, self.get(backend))).into_iter()
    }
}
