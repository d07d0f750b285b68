//! The scripts that a server is to know: those that clients of a door have run or loaded lately.
//!
//! A server forgets its scripts when it restarts. A client of its own would see its connection break then, and load its
//! scripts again. A client of a door stays connected, and sends `EVALSHA` as before.
//!
//! ```text
//!   EVAL, SCRIPT LOAD succeeded ──▶ kept ──▶ loaded by each handshake that meets another run of the server
//!   SCRIPT FLUSH succeeded ───────▶ none is kept
//! ```
//! # Invariants
//! 1. No connection goes up at a run of the server before that run was sent every script that was kept by then.
//! 2. At most [`COUNT_MAX`] scripts of [`BYTES_MAX`] bytes together are kept; what was used longest ago goes. `EVALSHA`
//!    names a script without its text, and keeps none: who has run a script by its text is taken to run it on.
//! 3. There is one store for each account at a server, as a script belongs to no database: what one account may not load
//!    another may. Nothing of it is on the disk.
//! 4. What the server does not load is no reason not to connect: its client gets `NOSCRIPT`, as without a door.
//! 5. Of a server that does not say which run it is, nobody knows whether it has restarted: it is sent none.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, LazyLock, Weak},
};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::kinds::redis::protocol::{commands::Spec, resp};

const COUNT_MAX: usize = 1_000;
const BYTES_MAX: usize = 4 << 20;

/// The stores of the servers that are in use, by the servers' addresses and the accounts there.
static STORES: LazyLock<Mutex<HashMap<Account, Weak<Scripts>>>> = LazyLock::new(Mutex::default);

/// The address of a server, and the user there.
type Account = (String, Option<String>);

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Scripts(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// Each script with its place in `used`.
    texts: HashMap<Bytes, u64>,
    /// The one that was used longest ago first.
    used: BTreeMap<u64, Bytes>,
    next: u64,
    bytes: usize,
    /// The run of the server that has all of them.
    run_id: Option<String>,
}

/// What a command does to the scripts that a server knows, if it succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Does {
    /// The server knows the script that is this argument of it.
    Teaches(usize),
    /// The server forgets all.
    Flushes,
}

impl Does {
    /// What a call of `spec` does; `None` for nothing.
    pub(crate) fn of(spec: &Spec) -> Option<Self> {
        match &*spec.name {
            "eval" | "eval_ro" => Some(Self::Teaches(1)),
            "script|load" => Some(Self::Teaches(2)),
            "script|flush" => Some(Self::Flushes),
            _ => None,
        }
    }
}

impl Scripts {
    /// The store of that user at the server at that address.
    pub(crate) fn at(address: &str, user: Option<&str>) -> Arc<Self> {
        let account = (address.to_owned(), user.map(str::to_owned));
        let mut stores = STORES.lock();
        if let Some(store) = stores.get(&account).and_then(Weak::upgrade) {
            return store;
        }
        stores.retain(|_, store| store.strong_count() > 0);
        let store = Arc::<Self>::default();
        stores.insert(account, Arc::downgrade(&store));
        store
    }

    /// A request that does that has succeeded.
    pub(crate) fn done(&self, does: Does, request: &[u8]) {
        match does {
            Does::Flushes => self.0.lock().forget(),
            Does::Teaches(at) => {
                let args = resp::arguments(request).unwrap_or_default();
                if let Some(text) = args.get(at).filter(|text| text.len() <= BYTES_MAX) {
                    self.0.lock().keep(text);
                }
            }
        }
    }

    /// What a connection to that run of the server sends before it goes up.
    pub(crate) fn to_load(&self, run_id: Option<&str>) -> Vec<Bytes> {
        let kept = self.0.lock();
        if run_id.is_none() || run_id == kept.run_id.as_deref() {
            return Vec::new();
        }
        kept.used.values().map(|text| resp::command(&[&b"SCRIPT"[..], b"LOAD", text])).collect()
    }

    /// That run of the server has got them.
    pub(crate) fn loaded(&self, run_id: Option<String>) {
        self.0.lock().run_id = run_id;
    }
}

impl Kept {
    fn keep(&mut self, text: &[u8]) {
        let place = self.next;
        self.next += 1;
        let (text, former) = match self.texts.get_key_value(text) {
            Some((text, former)) => (text.clone(), Some(*former)),
            None => (Bytes::copy_from_slice(text), None),
        };
        match former {
            Some(former) => drop(self.used.remove(&former)),
            None => self.bytes += text.len(),
        }
        self.texts.insert(text.clone(), place);
        self.used.insert(place, text);
        while self.texts.len() > COUNT_MAX || self.bytes > BYTES_MAX {
            let Some((_, oldest)) = self.used.pop_first() else { break };
            self.texts.remove(&oldest);
            self.bytes -= oldest.len();
        }
    }

    fn forget(&mut self) {
        let (run_id, next) = (self.run_id.take(), self.next);
        *self = Self { next, run_id, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Bytes {
        resp::command(&["SCRIPT", "LOAD", text])
    }

    fn eval(scripts: &Scripts, text: &str) {
        scripts.done(Does::Teaches(1), &resp::command(&["EVAL", text, "0"]));
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let scripts = Scripts::default();
        let texts: Vec<String> = (0..COUNT_MAX).map(|number| format!("return {number}")).collect();
        for text in &texts {
            eval(&scripts, text);
        }
        eval(&scripts, &texts[0]);
        eval(&scripts, "return");
        let kept = scripts.to_load(Some("new"));
        assert_eq!(kept.len(), COUNT_MAX);
        assert_eq!(kept[0], load(&texts[2]), "the second has gone, and the first was used again");
        assert_eq!(kept[COUNT_MAX - 2..], [load(&texts[0]), load("return")]);
    }

    #[test]
    fn they_are_bounded_by_their_bytes_too() {
        let scripts = Scripts::default();
        eval(&scripts, "return 1");
        eval(&scripts, &"x".repeat(BYTES_MAX + 1));
        assert_eq!(scripts.to_load(Some("new")), [load("return 1")]);
        let large = "y".repeat(BYTES_MAX);
        eval(&scripts, &large);
        assert_eq!(scripts.to_load(Some("new")), [load(&large)]);
    }

    #[test]
    fn a_run_of_the_server_gets_them_once_until_another_one_is_met() {
        let scripts = Scripts::default();
        scripts.loaded(Some("first".into()));
        scripts.done(Does::Teaches(2), &load("return 1"));
        assert!(scripts.to_load(Some("first")).is_empty());
        assert_eq!(scripts.to_load(Some("second")).len(), 1);
        assert!(scripts.to_load(None).is_empty());
        scripts.done(Does::Flushes, &resp::command(&["SCRIPT", "FLUSH"]));
        assert!(scripts.to_load(Some("second")).is_empty());
    }

    #[test]
    fn databases_of_one_server_share_them() {
        let (one, other) = (Scripts::at("here:1", None), Scripts::at("here:1", None));
        eval(&one, "return 1");
        assert_eq!(other.to_load(Some("new")).len(), 1);
        assert!(Scripts::at("here:1", Some("u")).to_load(Some("new")).is_empty());
        assert!(Scripts::at("here:2", None).to_load(Some("new")).is_empty());
        drop((one, other));
        assert!(Scripts::at("here:1", None).to_load(Some("new")).is_empty());
    }
}
