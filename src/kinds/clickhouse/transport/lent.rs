//! What a connector has on the wire and others drive.
//!
//! The rest of an answer comes only as fast as it is read, and its reader may stop at any time. Nothing may wait for
//! that. So the connector keeps hold of what it lends, and ends it without its reader.
//!
//! ```text
//!  Lent ── polled by its reader ──▶ taken back at its end, or dropped with its reader
//!    │ Lendings::end
//!    ▼
//!  dropped at once; a reader that waits is woken, and finds nothing
//! ```

use std::{
    collections::BTreeMap,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;

/// What a connector has lent and can end.
#[derive(Default)]
pub(super) struct Lendings(Arc<Mutex<All>>);

#[derive(Default)]
struct All {
    has_ended: bool,
    next: u64,
    lent: BTreeMap<u64, Arc<dyn Ends>>,
}

/// What can be ended without its reader.
trait Ends: Send + Sync {
    fn end(&self);
}

/// Something that its reader polls, for as long as it is not ended.
pub(super) struct Lent<T> {
    slot: Arc<Mutex<Slot<T>>>,
    number: u64,
    all: Arc<Mutex<All>>,
}

struct Slot<T> {
    /// `None` once it has ended.
    value: Option<T>,
    /// Who waits for it.
    reader: Option<Waker>,
}

impl<T: Send> Ends for Mutex<Slot<T>> {
    fn end(&self) {
        let (value, reader) = {
            let mut slot = self.lock();
            (slot.value.take(), slot.reader.take())
        };
        drop(value);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl Lendings {
    /// Lends `value`. Once what was lent has been ended, it ends at once.
    pub(super) fn lend<T: Send + 'static>(&self, value: T) -> Lent<T> {
        let slot = Arc::new(Mutex::new(Slot { value: Some(value), reader: None }));
        let (number, has_ended) = {
            let mut all = self.0.lock();
            let number = all.next;
            all.next += 1;
            if !all.has_ended {
                let ends = Arc::clone(&slot);
                all.lent.insert(number, ends);
            }
            (number, all.has_ended)
        };
        if has_ended {
            slot.end();
        }
        Lent { slot, number, all: Arc::clone(&self.0) }
    }

    /// Ends all that is lent, and all that will be.
    pub(super) fn end(&self) {
        let lent = {
            let mut all = self.0.lock();
            all.has_ended = true;
            std::mem::take(&mut all.lent)
        };
        for one in lent.into_values() {
            one.end();
        }
    }
}

impl<T> Lent<T> {
    /// Polls it by `step`. `None` if it has ended.
    pub(super) fn poll<R>(
        &self,
        cx: &mut Context<'_>,
        step: impl FnOnce(&mut T, &mut Context<'_>) -> Poll<R>,
    ) -> Poll<Option<R>> {
        let mut slot = self.slot.lock();
        let Some(value) = slot.value.as_mut() else { return Poll::Ready(None) };
        let polled = step(value, cx);
        if polled.is_pending() {
            slot.reader = Some(cx.waker().clone());
        }
        polled.map(Some)
    }

    /// Takes it back: nobody else ends it any more. `None` if it has ended.
    pub(super) fn take(&self) -> Option<T> {
        self.slot.lock().value.take()
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        let ends = self.all.lock().lent.remove(&self.number);
        drop(ends);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{task::yield_now, time::timeout};

    use super::*;
    use crate::kinds::clickhouse::testing::PATIENCE;

    #[test]
    fn what_nobody_reads_ends_all_the_same() {
        let (lendings, value) = (Lendings::default(), Arc::new(()));
        let lend = || lendings.lend(Arc::clone(&value));
        let (read, dropped, unread) = (lend(), lend(), lend());
        assert!(read.take().is_some());
        drop(dropped);
        assert_eq!(lendings.0.lock().lent.len(), 2, "its reader has left");
        assert_eq!(Arc::strong_count(&value), 2);
        lendings.end();
        assert_eq!(Arc::strong_count(&value), 1, "nobody has polled it");
        assert!(unread.take().is_none());
        let late = lend();
        assert_eq!(Arc::strong_count(&value), 1, "and nothing is lent any more");
        assert!(late.take().is_none());
    }

    #[tokio::test]
    async fn a_reader_that_waits_is_woken() {
        let lendings = Lendings::default();
        let lent = lendings.lend(());
        let reader =
            tokio::spawn(
                async move { poll_fn(|cx| lent.poll(cx, |(), _| Poll::<()>::Pending)).await },
            );
        // It waits from here on.
        yield_now().await;
        lendings.end();
        assert_eq!(timeout(PATIENCE, reader).await.unwrap().unwrap(), None);
    }
}
