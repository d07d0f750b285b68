//! What bounds the calls in flight: their number, and the bytes of their bodies.
//!
//! Nothing waits at a gate: who finds it full is refused at once and may come again.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::refusal::Full;

/// Calls in flight.
const CALLS: usize = 512;
/// Bytes of bodies in flight, in units of [`UNIT`].
const UNITS: usize = 256 << 10;
/// A body is counted in KiB: a semaphore's permits are too few for bytes.
const UNIT: u64 = 1_024;
/// Listeners to events.
const LISTENERS: usize = 64;

/// The gate.
pub(crate) struct Gate {
    calls: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    listeners: Arc<Semaphore>,
}

/// A call's place; given back when dropped.
pub(crate) struct Place {
    _call: OwnedSemaphorePermit,
    bytes: Option<OwnedSemaphorePermit>,
    /// Where more of them come from.
    all_bytes: Arc<Semaphore>,
}

impl Default for Gate {
    fn default() -> Self {
        Self::with(CALLS, UNITS)
    }
}

impl Gate {
    /// A gate for so many calls and KiB.
    pub(crate) fn with(calls: usize, units: usize) -> Self {
        Self {
            calls: Arc::new(Semaphore::new(calls)),
            bytes: Arc::new(Semaphore::new(units)),
            listeners: Arc::new(Semaphore::new(LISTENERS)),
        }
    }

    /// A place for one call.
    ///
    /// # Errors
    /// All are taken.
    pub(crate) fn enter(&self) -> Result<Place, Full> {
        let call = Arc::clone(&self.calls).try_acquire_owned();
        let call = call.map_err(|_| Full("too many calls are in flight"))?;
        Ok(Place { _call: call, bytes: None, all_bytes: Arc::clone(&self.bytes) })
    }

    /// A place for a listener to events.
    ///
    /// # Errors
    /// All are taken.
    pub(crate) fn listen(&self) -> Result<OwnedSemaphorePermit, Full> {
        Arc::clone(&self.listeners)
            .try_acquire_owned()
            .map_err(|_| Full("too many are listening to events"))
    }

    /// Bytes that may still be taken.
    #[cfg(test)]
    pub(crate) fn bytes_left(&self) -> u64 {
        self.bytes.available_permits() as u64 * UNIT
    }
}

impl Place {
    /// Counts `bytes` more to this call. A body of less than a KiB weighs nothing: the number of calls bounds those.
    ///
    /// # Errors
    /// So many are not left.
    pub(crate) fn count(&mut self, bytes: u64) -> Result<(), Full> {
        let units = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX);
        if units == 0 {
            return Ok(());
        }
        let more = Arc::clone(&self.all_bytes).try_acquire_many_owned(units);
        let more = more.map_err(|_| Full("too many bytes are in flight"))?;
        match &mut self.bytes {
            Some(held) => held.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_bytes_are_bounded_and_come_back() {
        let gate = Gate::with(1, 4);
        let mut place = gate.enter().expect("the only place");
        assert_eq!(gate.enter().err(), Some(Full("too many calls are in flight")));
        assert_eq!(place.count(4 << 10), Ok(()));
        assert_eq!((place.count(1 << 10).is_err(), place.count(UNIT - 1)), (true, Ok(())));
        drop(place);
        assert_eq!(gate.bytes_left(), 4 << 10);
        assert!(gate.enter().is_ok());
    }
}
