//! What is left to do of earlier calls, changed by a later one that was applied.

use std::sync::Arc;

use fusebox_state::Lanes;

use crate::{
    connector::{Connector, QueuedWrite, ResidueAfter, SharedConnector},
    queue::Queue,
};

/// Changes the residues in `lanes` by `seq`, which was applied and is still in them. They are read on a thread that may
/// block. To be awaited for one call after the other: two that were applied together may change the same residue.
///
/// # Panics
/// If the connector does: then the call is not taken out, and is replayed again.
pub(super) async fn change(
    queue: &Arc<Queue>,
    connector: &SharedConnector,
    seq: u64,
    lanes: &Lanes,
) {
    let mut residues = queue.index().residues_in(lanes);
    residues.retain(|residue| *residue != seq);
    if residues.is_empty() {
        return;
    }
    let (ground, queue) = (queue.ground().clone(), Arc::clone(queue));
    let connector = Arc::clone(connector);
    let changing = move || changed(&queue, &*connector, seq, residues);
    if let Err(error) = ground.run(changing).await
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}

fn changed(queue: &Arc<Queue>, connector: &dyn Connector, seq: u64, residues: Vec<u64>) {
    let Ok(store) = queue.store() else { return };
    for residue in residues {
        let (Ok(body), Ok(own)) = (store.body(residue), store.body(seq)) else { continue };
        let (accepted_at, due) = {
            let index = queue.index();
            let Some(entry) = index.get(residue) else { continue };
            (entry.header.accepted_at, entry.header.traits.due())
        };
        match connector.residue_after(&QueuedWrite { body, accepted_at, due }, &own) {
            ResidueAfter::Kept => {}
            ResidueAfter::Void => queue.applied(residue, None, || ()),
            ResidueAfter::Changed(changed) => queue.replace(residue, changed, None, || ()),
        }
    }
}
