//! Requests under a name that is not free.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use futures_util::future::join_all;
use tokio::sync::watch;

use super::*;
use crate::kinds::clickhouse::testing::{PATIENCE, played, settings, until};

#[tokio::test]
async fn however_many_want_the_id_of_a_write_in_doubt_one_task_looks_for_it() {
    let looks = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&looks);
    let (release, held) = watch::channel(true);
    let port = played(move |statement| {
        let (count, mut held) = (Arc::clone(&count), held.clone());
        async move {
            if statement.starts_with("SELECT") {
                count.fetch_add(1, SeqCst);
                return "mine\t0.5\n".to_owned();
            }
            drop(held.wait_for(|held| !*held).await);
            "finished\tmine\tdefault\tINSERT\n".to_owned()
        }
    });
    let shared = Arc::new(Shared::new(Arc::new(settings(port.await, "i", "r"))));
    drop(shared.fence.enter_under(shared.fence.id(), Some("mine".to_owned()), true));
    let names = [Name::Query("mine".to_owned())];
    let deadline = Instant::now() + Duration::from_millis(1);
    let free = join_all((0..1_000).map(|_| are_free(&shared, &names, deadline))).await;
    assert!(free.iter().all(|is_free| !is_free));
    assert_eq!(Arc::strong_count(&shared), 2, "a task for each of them");
    release.send_replace(false);
    let over = timeout_at(Instant::now() + PATIENCE, shared.endings.over(&names));
    over.await.expect("it was killed");
    until("nobody looks any more", || async { Arc::strong_count(&shared) == 1 }).await;
    let looks = looks.load(SeqCst);
    assert!(looks <= 3, "{looks}");
}
