//! Random histories of a server against what its followers receive of them.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::states::{Play, read};
use crate::kinds::firestore::live_queries::{
    board::{Board, Place},
    testing::{consistent, count, current, deleted, put, removed, reset, token},
};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// One thing that happens.
#[derive(Clone, Debug)]
enum Happens {
    /// A document is written, or deleted.
    Write(usize, bool),
    /// The server tells what is new, in one consistent step.
    Tell,
    /// It tells some of it, with a token, and the connection breaks.
    TellHalfAndBreak,
    /// It begins again on the same connection; the order is turned round.
    Reset,
    /// The connection breaks; the next one resumes or tells the whole result.
    Break(bool),
    /// The slow follower reads.
    Read,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        5 => (0..NAMES.len(), prop::bool::weighted(0.7)).prop_map(|(name, put)| Happens::Write(name, put)),
        3 => Just(Happens::Tell),
        1 => Just(Happens::TellHalfAndBreak),
        1 => Just(Happens::Reset),
        1 => any::<bool>().prop_map(Happens::Break),
        1 => Just(Happens::Read),
    ]
}

/// Documents by name: the time of the last write, which is also what is written.
type Documents = BTreeMap<&'static str, i64>;

/// The server, and what it has sent.
#[derive(Default)]
struct Server {
    now: i64,
    documents: Documents,
    told: Documents,
}

impl Server {
    fn write(&mut self, name: usize, put: bool) {
        self.now += 1;
        if put {
            self.documents.insert(NAMES[name], self.now);
        } else {
            self.documents.remove(NAMES[name]);
        }
    }

    /// What is new since it last sent something; deletions in both of their forms.
    fn news(
        &self,
    ) -> Vec<googleapis_tonic_google_firestore_v1::google::firestore::v1::ListenResponse> {
        let changed =
            self.documents.iter().filter(|(name, time)| self.told.get(*name) != Some(time));
        let gone = self.told.keys().filter(|name| !self.documents.contains_key(*name));
        let gone = gone.map(|name| if self.now % 2 == 0 { deleted(name) } else { removed(name) });
        changed.map(|(name, time)| put(name, *time, *time)).chain(gone).collect()
    }

    fn tell(&mut self, play: &mut Play) {
        self.now += 1;
        let mut responses = self.news();
        responses.extend([count(i32::try_from(self.documents.len()).unwrap()), current()]);
        responses.push(consistent(self.now, "t"));
        play.hear(responses);
        self.told = self.documents.clone();
    }

    /// Tells the whole result after a reset or on a new connection.
    fn tell_all(&mut self, play: &mut Play, first: bool) {
        self.now += 1;
        let mut responses = if first { vec![] } else { vec![reset()] };
        responses.extend(self.documents.iter().rev().map(|(name, time)| put(name, *time, *time)));
        responses.extend([current(), consistent(self.now, "t")]);
        play.hear(responses);
        self.told = self.documents.clone();
    }
}

/// A follower that applies what it receives and finds fault with it.
struct Follower {
    place: Place,
    knows: BTreeMap<String, i64>,
    /// What it last received of each name, also of those that are gone.
    last: BTreeMap<String, i64>,
    begun: bool,
    stale: bool,
}

impl Follower {
    fn new() -> Self {
        let (knows, last) = (BTreeMap::new(), BTreeMap::new());
        Self { place: Place::Start, knows, last, begun: false, stale: false }
    }

    fn read(&mut self, board: &Board) {
        for line in read(board, &mut self.place) {
            let mut words = line.split(' ');
            match words.next().unwrap() {
                "snapshot" | "snapshot(stale)" => {
                    assert!(!self.begun, "a follower that keeps up gets one snapshot: {line}");
                    self.begun = true;
                    self.stale = line.starts_with("snapshot(stale)");
                }
                "change" => {
                    assert!(self.stale || line != "change", "an empty change only ends an outage");
                    self.stale = false;
                }
                "stale" => {
                    assert!(!self.stale, "one stale for one outage");
                    self.stale = true;
                }
                other => panic!("{other}"),
            }
            for word in words {
                self.apply(word);
            }
        }
    }

    fn apply(&mut self, word: &str) {
        if let Some(name) = word.strip_prefix('-') {
            assert!(self.knows.remove(name).is_some(), "{name} is removed twice");
            return;
        }
        let (name, n) = word.trim_start_matches(['+', '~']).split_once('=').unwrap();
        let n: i64 = n.parse().unwrap();
        let known = self.knows.insert(name.to_owned(), n);
        assert_eq!(known.is_some(), word.starts_with('~'), "{word} after {known:?}");
        let last = self.last.insert(name.to_owned(), n);
        assert!(last < Some(n), "{name} is told twice or backwards: {n} after {last:?}");
    }
}

proptest! {
    // 400, or as many as PROPTEST_CASES says.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(400)))]

    #[test]
    fn every_final_state_arrives_none_twice_and_none_backwards(
        history in prop::collection::vec(happens(), 1..60),
    ) {
        let (mut play, mut server) = (Play::new(), Server::default());
        let (mut quick, mut slow) = (Follower::new(), Follower::new());
        server.tell_all(&mut play, true);
        for happens in history {
            match happens {
                Happens::Write(name, put) => server.write(name, put),
                Happens::Tell => server.tell(&mut play),
                Happens::TellHalfAndBreak => {
                    let news = server.news();
                    play.hear(news.into_iter().take(2).chain([token("ahead")]).collect());
                    play.reconnect();
                    server.tell(&mut play);
                }
                Happens::Reset => server.tell_all(&mut play, false),
                Happens::Break(true) => {
                    play.reconnect();
                    server.tell(&mut play);
                }
                Happens::Break(false) => {
                    play.board.forget_token();
                    play.reconnect();
                    server.tell_all(&mut play, true);
                }
                Happens::Read => slow.read(&play.board),
            }
            quick.read(&play.board);
        }
        server.tell(&mut play);
        for mut follower in [quick, slow] {
            follower.read(&play.board);
            let told: Vec<i64> = follower.knows.into_values().collect();
            let is: Vec<i64> = server.documents.values().copied().collect();
            prop_assert_eq!(told, is);
            prop_assert!(!follower.stale);
        }
    }
}
