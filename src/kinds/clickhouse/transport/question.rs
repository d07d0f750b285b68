//! Questions of fusebox's own that go on when who asked them leaves.
//!
//! What must be known before a call can be sent (what the server can do, what a table remembers, whether anything old
//! could still land) is asked by one task for all who want to know it. Who waits for the answer waits as long as its
//! own deadline lets it; when it leaves, the answer is there for the next one. So callers in a hurry learn as much
//! together as one that has time.
//!
//! ```text
//!  nobody asks ──▶ asked, by the first ◀── joined by others, left by any ──▶ answered: kept by its owner, given to who waits
//! ```
//! **How many at once:** whoever begins one lends its place, which comes back with the answer; so there are no more
//! than attempts, whoever waits.
//!
//! **How long:** [`limit`]. One in a dead network is joined no longer than until a ping fails
//! ([`Questions::ask_anew`]).

use std::{collections::HashMap, hash::Hash, sync::Arc, time::Duration};

use fusebox_actors::connector::Aboard;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::http::Http;

/// What a question gets, however little time who asks it has.
const LEAST: Duration = Duration::from_secs(5);

/// How long a question may take that is asked by one who has `time`, of a backend with this `timeout`.
pub(crate) fn limit(time: Duration, timeout: Duration) -> Duration {
    time.max(LEAST).min(timeout)
}

type Asked<T> = watch::Receiver<Option<T>>;

/// Those that are under way, by what they ask about.
pub(crate) struct Questions<K, T>(Arc<Mutex<HashMap<K, Asked<T>>>>);

impl<K, T> Default for Questions<K, T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, T> Questions<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// The answer about `key`: of the question that is under way, or of `question`, which goes on in the place that
    /// `aboard` lends. `None` if the connector is closed first.
    pub(crate) async fn ask(
        &self,
        key: K,
        http: &Http,
        aboard: impl FnOnce() -> Aboard,
        question: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let mut asked = self.joined(key, http, aboard, question);
        let answer = asked.wait_for(Option::is_some).await.ok()?;
        answer.clone()
    }

    fn joined(
        &self,
        key: K,
        http: &Http,
        aboard: impl FnOnce() -> Aboard,
        question: impl Future<Output = T> + Send + 'static,
    ) -> Asked<T> {
        let mut all = self.0.lock();
        if let Some(asked) = all.get(&key) {
            return asked.clone();
        }
        let (sender, asked) = watch::channel(None);
        all.insert(key.clone(), asked.clone());
        let end = End { all: Arc::clone(&self.0), key, asked: asked.clone() };
        let (mut closes, place) = (http.under_way(), aboard());
        tokio::spawn(async move {
            let answer = tokio::select! {
                answer = question => Some(answer),
                _ = closes.wait_for(|closed| *closed) => None,
            };
            // Who asks from here on asks again.
            drop((end, place));
            sender.send_replace(answer);
        });
        asked
    }

    /// Nobody joins what is under way any more.
    pub(crate) fn ask_anew(&self) {
        self.0.lock().clear();
    }
}

/// The end of a question, however it comes.
struct End<K: Eq + Hash, T> {
    all: Arc<Mutex<HashMap<K, Asked<T>>>>,
    key: K,
    asked: Asked<T>,
}

impl<K: Eq + Hash, T> Drop for End<K, T> {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if all.get(&self.key).is_some_and(|asked| asked.same_channel(&self.asked)) {
            all.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        time::Duration,
    };

    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::kinds::clickhouse::testing::settings;

    #[tokio::test(start_paused = true)]
    async fn an_answer_comes_though_everybody_who_asked_has_left_and_is_asked_for_once() {
        let (questions, http) = (Questions::default(), Http::new(settings(1, "i", "r").into()));
        let asked = Arc::new(AtomicU32::new(0));
        let question = || {
            let asked = Arc::clone(&asked);
            async move {
                sleep(Duration::from_millis(100)).await;
                asked.fetch_add(1, Ordering::Relaxed) + 1
            }
        };
        let ask = || questions.ask("t", &http, Aboard::default, question());
        for _ in 0..9 {
            assert!(timeout(Duration::from_millis(10), ask()).await.is_err());
        }
        assert_eq!(ask().await, Some(1), "the first one's");
        assert_eq!(ask().await, Some(2), "what is over is asked anew");
        let other = questions.ask("u", &http, Aboard::default, question());
        assert_eq!(tokio::join!(ask(), other), (Some(3), Some(4)));
        drop(timeout(Duration::from_millis(10), ask()).await);
        questions.ask_anew();
        assert_eq!(ask().await, Some(6), "not the one that was under way");
        let (waiting, ()) = tokio::join!(ask(), http.close());
        assert_eq!(waiting, None);
        assert!(questions.0.lock().is_empty());
    }

    #[tokio::test]
    async fn one_that_panics_is_over() {
        let (questions, http) = (Questions::default(), Http::new(settings(1, "i", "r").into()));
        let panics = async { panic!("as a test wants") };
        assert_eq!(questions.ask(1, &http, Aboard::default, panics).await, None::<u32>);
        assert_eq!(questions.ask(1, &http, Aboard::default, async { 2 }).await, Some(2));
    }
}
