//! A cached reply in a file, on its way to its caller.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_state::{
    ErrorClass,
    cache::{Hit, Value},
    shelf::{Reading, Shelved},
};
use tokio::task::spawn_blocking;

use crate::{
    connector::{Answer, AttemptError, Tail},
    error_code::OwnCode,
};

/// What of a file has not been answered yet.
pub(super) struct Filed(Option<Reading>);

/// The hits with their replies at hand, and what follows of the one in a file. One whose file cannot be read
/// within `left`, or is one of several, is none.
pub(super) async fn filed(
    hits: Vec<Option<Hit>>,
    left: Duration,
) -> (Vec<Option<Hit<Bytes>>>, Option<Filed>) {
    let alone = hits.len() == 1;
    let (mut here, mut rest) = (Vec::with_capacity(hits.len()), None);
    for hit in hits {
        here.push(match hit {
            Some(Hit { value: Value::Memory(value), age, fresh }) => {
                Some(Hit { value, age, fresh })
            }
            Some(Hit { value: Value::File(file), age, fresh }) if alone => {
                let begun = tokio::time::timeout(left, Filed::begin(file)).await.ok().flatten();
                begun.map(|(value, filed)| {
                    rest = Some(filed);
                    Hit { value, age, fresh }
                })
            }
            _ => None,
        });
    }
    (here, rest)
}

impl Filed {
    /// The beginning of a reply, and what follows.
    async fn begin(file: Arc<Shelved>) -> Option<(Bytes, Self)> {
        let open = move || -> io::Result<_> {
            let mut reading = file.open()?;
            Ok((reading.next_block()?.unwrap_or_default(), Self(Some(reading))))
        };
        match spawn_blocking(open).await.map_err(io::Error::other).flatten() {
            Ok(begun) => Some(begun),
            Err(error) => {
                tracing::warn!(%error, "a cached reply cannot be read");
                None
            }
        }
    }
}

impl Tail for Filed {
    fn next(&mut self) -> Answer<'_, Option<Result<Bytes, AttemptError>>> {
        Box::pin(async {
            let mut reading = self.0.take()?;
            let read = spawn_blocking(move || (reading.next_block(), reading)).await;
            match read.map(|(block, reading)| (block, Some(reading))) {
                Ok((Ok(block), reading)) => {
                    self.0 = reading;
                    block.map(Ok)
                }
                Ok((Err(error), _)) => Some(Err(unreadable(&error))),
                Err(error) => Some(Err(unreadable(&io::Error::other(error)))),
            }
        })
    }
}

fn unreadable(error: &io::Error) -> AttemptError {
    tracing::warn!(%error, "a cached reply is incomplete");
    AttemptError::own(ErrorClass::NotExecuted, OwnCode::Store, "the cached reply cannot be read")
}
