//! Random histories of one store against a plain map.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Remove(usize),
    Send(usize),
    Bury(usize),
    Requeue(usize),
    Compact,
    FailSync,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop_oneof![0..600_usize, 3_600..4_200_usize, 8_000..140_000_usize].prop_map(Step::Append),
        3 => any::<usize>().prop_map(Step::Remove),
        1 => any::<usize>().prop_map(Step::Send),
        2 => any::<usize>().prop_map(Step::Bury),
        2 => any::<usize>().prop_map(Step::Requeue),
        1 => Just(Step::Compact),
        1 => Just(Step::FailSync),
        1 => Just(Step::Reopen),
    ]
}

/// What a call should be.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    op_id: OpId,
    body: Vec<u8>,
    sent: bool,
    dead: bool,
}

struct Run {
    dir: tempfile::TempDir,
    store: Option<(Opened, Faults, mpsc::Receiver<StoreEvent>)>,
    model: BTreeMap<u64, Kept>,
    next: u64,
}

impl Run {
    fn store(&self) -> &Store {
        &self.store.as_ref().unwrap().0.store
    }

    fn pick(&self, of: usize, dead: bool) -> Option<u64> {
        let seqs: Vec<_> =
            self.model.iter().filter(|(_, kept)| kept.dead || !dead).map(|(seq, _)| *seq).collect();
        seqs.get(of % seqs.len().max(1)).copied()
    }

    fn take(&mut self, step: &Step) {
        let seq = self.next;
        match *step {
            Step::Append(length) => {
                self.next += 1;
                let body = body(seq, length);
                append(self.store(), seq, &body);
                let op_id = call(seq, b"").header.op_id;
                self.model.insert(seq, Kept { op_id, body, sent: false, dead: false });
            }
            Step::Remove(of) => {
                let Some(seq) = self.pick(of, false) else { return };
                wait(|done| self.store().remove(vec![seq], done)).unwrap();
                self.model.remove(&seq);
            }
            Step::Send(of) => {
                let Some(seq) = self.pick(of, false) else { return };
                wait(|done| self.store().note_sending(seq, &noted(3), done)).unwrap();
                self.model.get_mut(&seq).unwrap().sent = true;
            }
            Step::Bury(of) => {
                let Some(seq) = self.pick(of, false) else { return };
                wait(|done| self.store().bury(seq, mark(DeadReason::GaveUp), done)).unwrap();
                self.model.get_mut(&seq).unwrap().dead = true;
            }
            Step::Requeue(of) => {
                let Some(old) = self.pick(of, true) else { return };
                self.next += 1;
                wait(|done| self.store().requeue(old, seq, false, done)).unwrap();
                let kept = self.model.remove(&old).unwrap();
                self.model.insert(seq, Kept { sent: false, dead: false, ..kept });
            }
            Step::Compact => wait(|done| self.store().compact(done)).unwrap(),
            Step::FailSync => {
                let (opened, faults, events) = self.store.as_ref().unwrap();
                faults.fail_sync(1);
                while faults.is_armed() {
                    // Unless a commit that nobody waits for fails before it.
                    drop(wait(|done| opened.store.put_fact("fails", vec![], done)));
                }
                while !matches!(events.recv_timeout(PATIENCE), Ok(StoreEvent::Reopened { .. })) {}
            }
            Step::Reopen => {
                drop(self.store.take());
                self.store = Some(open_with_faults(self.dir.path()));
                let opened = &self.store.as_ref().unwrap().0;
                assert_eq!(seqs(opened), self.model.keys().copied().collect::<Vec<_>>());
                assert!(opened.last_seq >= self.next - 1, "no sequence is given out twice");
                // Of a small log sled may have freed the first segment while no header knows the second to be stable.
                let harmless = |it: &Finding| matches!(it, Finding::Healed { .. });
                assert!(opened.findings.iter().all(harmless), "{:?}", opened.findings);
                assert_eq!(opened.last_seq, self.next - 1);
            }
        }
    }

    fn compare(&self) {
        for (seq, kept) in &self.model {
            let call = self.store().call(*seq).unwrap();
            let found = Kept {
                op_id: call.header.op_id,
                body: self.store().body(*seq).unwrap().to_vec(),
                sent: call.first_sent_at.is_some(),
                dead: call.dead.is_some(),
            };
            assert!(found == *kept, "sequence {seq}");
        }
    }
}

proptest! {
    // A tenth of the others' cases, as each writes to the disk: 25, or by PROPTEST_CASES.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(10) / 10))]

    #[test]
    fn the_store_is_a_map_that_survives(steps in prop::collection::vec(step(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let store = Some(open_with_faults(dir.path()));
        let mut run = Run { dir, store, model: BTreeMap::new(), next: 1 };
        for step in &steps {
            run.take(step);
        }
        run.compare();
        run.take(&Step::Reopen);
        run.compare();
    }
}
