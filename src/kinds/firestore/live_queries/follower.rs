//! One follower of a stream.

use std::sync::Arc;

use fusebox_actors::connector::{Answer, Follow, StreamEvent};
use tokio::sync::watch;

use super::board::{Board, Place, Reading};

/// Reads the stream's board at its own pace.
pub(super) struct Follower {
    board: Arc<Board>,
    news: watch::Receiver<()>,
    place: Place,
}

impl Follower {
    pub(super) fn new(board: Arc<Board>) -> Self {
        board.arrived();
        Self { news: board.news(), board, place: Place::Start }
    }

    /// A caller that stops waiting loses nothing: the place moves on only with what is returned.
    async fn told(&mut self) -> Option<StreamEvent> {
        loop {
            self.news.mark_unchanged();
            match self.board.read(&mut self.place) {
                Reading::Event(event) => return Some(event),
                Reading::Snapshot(snapshot) => return Some(snapshot.event()),
                Reading::End => return None,
                Reading::Wait => self.news.changed().await.ok()?,
            }
        }
    }
}

impl Follow for Follower {
    fn next(&mut self) -> Answer<'_, Option<StreamEvent>> {
        Box::pin(self.told())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.board.left();
    }
}
