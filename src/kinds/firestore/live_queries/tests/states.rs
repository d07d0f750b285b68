//! What followers receive of scripted responses.

use googleapis_tonic_google_firestore_v1::google::firestore::v1::ListenResponse;
use std::time::Duration;

use crate::kinds::firestore::live_queries::{
    board::{Board, Place, Reading},
    events::Cause,
    news::News,
    round::{Round, Step},
    testing::*,
};

/// A board with its connection, and what was heard there.
pub(super) struct Play {
    pub(super) board: Board,
    pub(super) round: Round,
    upstream: Scripted,
}

impl Play {
    pub(super) fn new() -> Self {
        Self { board: Board::new(), round: Round::new(false), upstream: Scripted::new() }
    }

    /// The last step.
    pub(super) fn hear(&mut self, responses: Vec<ListenResponse>) -> Step {
        let mut last = Step::Wait;
        for response in responses {
            let news = News::of(response, &self.upstream);
            last = self.board.hear(&mut self.round, news, &self.upstream);
        }
        last
    }

    /// The connection breaks, and another one begins at the server's token.
    pub(super) fn reconnect(&mut self) {
        self.board.broken("cut");
        self.round = Round::new(!self.board.resume().token.is_empty());
    }

    /// The same, from the beginning.
    fn restart(&mut self) {
        self.board.forget_token();
        self.reconnect();
    }
}

/// Everything that there is for a follower.
pub(super) fn read(board: &Board, place: &mut Place) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        match board.read(place) {
            Reading::Event(event) => lines.push(line(&event)),
            Reading::Snapshot(snapshot) => lines.push(line(&snapshot.event())),
            Reading::Wait => return lines,
            Reading::End => {
                lines.push("end".into());
                return lines;
            }
        }
    }
}

/// A board that is current with `a` and `b`, and a follower that has its snapshot.
fn current_with_two() -> (Play, Place) {
    let mut play = Play::new();
    play.hear(vec![put("a", 1, 1), put("b", 2, 2), current(), consistent(10, "t1")]);
    let mut place = Place::Start;
    assert_eq!(read(&play.board, &mut place), ["snapshot a=1 b=2"]);
    (play, place)
}

#[test]
fn begins_with_a_snapshot_once_the_state_is_consistent() {
    let (mut play, mut place) = (Play::new(), Place::Start);
    let none: [&str; 0] = [];
    for response in [put("b", 2, 2), put("a", 1, 1), consistent(9, ""), current()] {
        play.hear(vec![response]);
        assert_eq!(read(&play.board, &mut place), none);
    }
    play.hear(vec![consistent(10, "")]);
    assert_eq!(read(&play.board, &mut place), ["snapshot a=1 b=2"]);
    assert_eq!(read(&play.board, &mut place), none);
}

#[test]
fn tells_what_changed_once_it_is_consistent() {
    let (mut play, mut place) = current_with_two();
    play.hear(vec![put("a", 11, 3), put("c", 12, 4), deleted("b"), put("a", 13, 5)]);
    assert_eq!(read(&play.board, &mut place).len(), 0);
    play.hear(vec![consistent(14, ""), consistent(15, "")]);
    assert_eq!(read(&play.board, &mut place), ["change +c=4 ~a=5 -b"]);
}

#[test]
fn every_way_of_leaving_a_result_is_a_removal() {
    let (mut play, mut place) = current_with_two();
    play.hear(vec![put("c", 11, 3), consistent(11, "")]);
    play.hear(vec![
        changed_away("a", 12),
        deleted("b"),
        removed("c"),
        deleted("never"),
        consistent(13, ""),
    ]);
    assert_eq!(read(&play.board, &mut place), ["change +c=3", "change -a -b -c"]);
}

#[test]
fn a_document_that_goes_and_comes_back_unchanged_is_not_told() {
    let (mut play, mut place) = current_with_two();
    play.hear(vec![removed("a"), put("a", 1, 1), consistent(11, "")]);
    assert_eq!(read(&play.board, &mut place).len(), 0);
}

#[test]
fn a_reset_with_reordered_and_older_documents_tells_only_the_difference() {
    let (mut play, mut place) = current_with_two();
    play.hear(vec![put("a", 11, 3), put("c", 11, 4), consistent(12, "")]);
    assert_eq!(read(&play.board, &mut place), ["change +c=4 ~a=3"]);
    // The result again, in another order; `a` as it was before, `b` gone, `c` written again.
    play.hear(vec![reset(), put("c", 13, 5), put("a", 1, 1)]);
    assert_eq!(read(&play.board, &mut place).len(), 0);
    play.hear(vec![current(), consistent(14, "")]);
    assert_eq!(read(&play.board, &mut place), ["change ~c=5 -b"]);
}

#[test]
fn a_change_within_one_tick_of_a_coarse_clock_is_told() {
    let (mut play, mut place) = current_with_two();
    play.hear(vec![put("a", 1, 7), consistent(11, "")]);
    assert_eq!(read(&play.board, &mut place), ["change ~a=7"]);
}

#[test]
fn a_result_read_before_the_published_one_waits_for_the_server_to_catch_up() {
    let (mut play, mut place) = current_with_two();
    play.hear(vec![put("c", 11, 3), consistent(12, "")]);
    assert_eq!(read(&play.board, &mut place), ["change +c=3"]);
    play.restart();
    play.hear(vec![put("a", 1, 1), put("b", 2, 2), current(), consistent(10, "old")]);
    assert_eq!(read(&play.board, &mut place), ["stale"]);
    assert_eq!(play.board.resume().token, "", "the token of a state that was not published");
    play.hear(vec![put("c", 11, 3), consistent(13, "new")]);
    assert_eq!(read(&play.board, &mut place), ["change"]);
    assert_eq!(play.board.resume().token, "new");
}

#[test]
fn an_outage_is_told_once_and_its_end_too_even_where_nothing_changed() {
    let (mut play, mut place) = current_with_two();
    play.reconnect();
    play.reconnect();
    assert_eq!(read(&play.board, &mut place), ["stale"]);
    let mut newcomer = Place::Start;
    assert_eq!(read(&play.board, &mut newcomer), ["snapshot(stale) a=1 b=2"]);
    play.hear(vec![current(), consistent(20, "t2")]);
    assert_eq!(read(&play.board, &mut place), ["change"]);
    assert_eq!(read(&play.board, &mut newcomer), ["change"]);
}

#[test]
fn deletes_and_changes_during_an_outage_arrive_with_and_without_a_token() {
    let (mut play, mut place) = current_with_two();
    play.reconnect();
    play.hear(vec![put("b", 15, 8), deleted("a"), current(), consistent(20, "t2")]);
    assert_eq!(read(&play.board, &mut place), ["stale", "change ~b=8 -a"]);
    play.restart();
    play.hear(vec![put("c", 22, 9), current(), consistent(30, "t3")]);
    assert_eq!(read(&play.board, &mut place), ["stale", "change +c=9 -b"]);
}

#[test]
fn a_connection_that_breaks_before_its_state_is_consistent_leaves_nothing_behind() {
    let (mut play, mut place) = current_with_two();
    play.hear(vec![put("a", 11, 5), deleted("b"), token("ahead")]);
    play.reconnect();
    assert_eq!((play.board.resume().token, play.board.resume().documents), ("t1".into(), 2));
    assert_eq!(read(&play.board, &mut place), ["stale"]);
    play.hear(vec![put("a", 11, 5), deleted("b"), current(), consistent(20, "t2")]);
    assert_eq!(read(&play.board, &mut place), ["change ~a=5 -b"]);
}

#[test]
fn an_existence_filter_is_held_against_what_is_known() {
    let (mut play, _) = current_with_two();
    assert!(matches!(play.hear(vec![count(2)]), Step::Wait));
    assert!(matches!(play.hear(vec![deleted("a"), count(1)]), Step::Wait));
    assert!(matches!(play.hear(vec![count(2)]), Step::Mismatch));
    play.hear(vec![reset(), put("a", 1, 1)]);
    assert!(matches!(play.hear(vec![count(1)]), Step::Wait), "the whole result counts alone");
    assert!(matches!(play.hear(vec![count(2)]), Step::Mismatch));
}

#[test]
fn a_follower_that_lags_gets_a_snapshot_in_place_of_what_it_missed() {
    let (mut play, mut slow) = current_with_two();
    let (mut keeping_up, mut told) = (slow, 0);
    for n in 0..3_000 {
        play.hear(vec![put("a", 20 + n, n), consistent(20 + n, "")]);
        told += read(&play.board, &mut keeping_up).len();
    }
    assert_eq!(told, 3_000);
    assert_eq!(read(&play.board, &mut slow), ["snapshot a=2999 b=2"]);
    play.hear(vec![deleted("a"), consistent(4_000, "")]);
    assert_eq!(read(&play.board, &mut slow), ["change -a"]);
}

#[test]
fn a_server_that_was_never_there_makes_an_empty_stale_snapshot() {
    let (mut play, mut place) = (Play::new(), Place::Start);
    play.reconnect();
    assert_eq!(read(&play.board, &mut place), ["snapshot(stale)"]);
    play.hear(vec![put("a", 1, 1), current(), consistent(10, "")]);
    assert_eq!(read(&play.board, &mut place), ["change +a=1"]);
}

#[test]
fn after_a_long_outage_newcomers_get_a_snapshot_and_the_others_the_difference() {
    let (mut play, mut place) = current_with_two();
    play.board.broken("cut");
    play.board.shed(Duration::from_secs(60));
    assert_eq!(play.board.resume().token, "t1", "it is not that long yet");
    play.board.shed(Duration::ZERO);
    play.reconnect();
    let mut newcomer = Place::Start;
    assert_eq!(read(&play.board, &mut newcomer), ["snapshot(stale)"]);
    play.hear(vec![put("b", 2, 2), put("c", 30, 3), current(), consistent(40, "t2")]);
    assert_eq!(read(&play.board, &mut place), ["stale", "change +c=3 -a"]);
    assert_eq!(read(&play.board, &mut newcomer), ["snapshot b=2 c=3"]);
}

#[test]
fn a_stream_that_is_refused_says_why_and_ends() {
    let (play, mut place) = current_with_two();
    let cause = Cause { code: "INVALID_ARGUMENT", message: "no".into() };
    play.board.end(cause.clone());
    assert_eq!(read(&play.board, &mut place), ["stale INVALID_ARGUMENT", "end"]);
    let mut newcomer = Place::Start;
    assert_eq!(
        read(&play.board, &mut newcomer),
        ["snapshot(stale)", "stale INVALID_ARGUMENT", "end"]
    );
    assert_eq!(play.board.cause(), Some(cause));
}
