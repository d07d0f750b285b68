//! Notes of sending: of one call and of a group, and what a crash between their steps leaves.

use super::*;

fn group(members: &[u64], applied: bool) -> Note {
    let group = GroupNote { token: OpId::from_u128(77), members: members.to_vec(), applied };
    Note { evidence: Bytes::from_static(b"baseline"), group: Some(group), ..noted(9) }
}

fn gathered(seq: u64) -> NewCall {
    call_with(seq, Traits::gathered(5), b"row")
}

/// A store with so many calls that may be sent as one.
fn store_of(dir: &Path, calls: u64) -> Opened {
    let opened = Store::open(settings(dir)).unwrap();
    for seq in 1..=calls {
        wait(|done| opened.store.append(gathered(seq), done)).unwrap();
    }
    opened
}

fn reopen(opened: Opened, dir: &Path) -> Opened {
    opened.store.close();
    drop(opened);
    let again = Store::open(settings(dir)).unwrap();
    assert!(again.findings.is_empty(), "{:?}", again.findings);
    again
}

fn seqs(opened: &Opened) -> Vec<u64> {
    opened.calls.iter().map(|call| call.seq).collect()
}

#[test]
fn a_note_keeps_its_evidence_and_can_be_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let opened = store_of(dir.path(), 2);
    let note = Note { evidence: Bytes::from_static(b"uuid 12"), ..noted(9) };
    wait(|done| opened.store.note_sending(1, &note, done)).unwrap();
    wait(|done| opened.store.note_sending(2, &noted(9), done)).unwrap();
    let opened = reopen(opened, dir.path());
    assert_eq!(opened.calls[0].marks().first_sent_at, Some(UnixMillis::new(9)));
    assert_eq!(opened.calls[0].marks().evidence, "uuid 12");
    wait(|done| opened.store.take_back_note(1, done)).unwrap();
    let opened = reopen(opened, dir.path());
    assert_eq!(
        (opened.calls[0].marks().first_sent_at, &*opened.calls[0].marks().evidence),
        (None, &b""[..])
    );
    assert!(opened.calls[1].marks().first_sent_at.is_some());
}

#[test]
fn what_replay_must_know_of_a_call_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let opened = Store::open(settings(dir.path())).unwrap();
    let all = [
        Traits::default(),
        Traits::of(true, false),
        Traits::of(true, true),
        Traits::gathered(u64::MAX),
        Traits::residue(UnixMillis::new(1_790_000_000_123)),
    ];
    for (seq, traits) in (1..).zip(all) {
        wait(|done| opened.store.append(call_with(seq, traits, b"x"), done)).unwrap();
    }
    let opened = reopen(opened, dir.path());
    assert_eq!(opened.calls.iter().map(|call| call.header.traits).collect::<Vec<_>>(), all);
}

#[test]
fn a_group_comes_back_as_a_whole_with_its_token() {
    let dir = tempfile::tempdir().unwrap();
    let opened = store_of(dir.path(), 4);
    wait(|done| opened.store.note_sending(2, &group(&[2, 3, 4], false), done)).unwrap();
    let opened = reopen(opened, dir.path());
    assert_eq!(
        (&opened.calls[0].marks().group, opened.calls[0].marks().first_sent_at),
        (&None, None)
    );
    for call in &opened.calls[1..] {
        let whole = StoredGroup { id: 2, token: OpId::from_u128(77), broken: false };
        assert_eq!(
            (call.marks().group.as_deref(), &*call.marks().evidence),
            (Some(&whole), &b"baseline"[..])
        );
        assert_eq!(call.marks().first_sent_at, Some(UnixMillis::new(9)));
    }
}

/// What an open finds of each call: when it was sent first, and the first call of its group.
fn judged(opened: &Opened) -> Vec<(Option<u64>, Option<u64>)> {
    let judged = opened.calls.iter().map(|call| {
        let group = call.marks().group.as_ref().map(|group| (group.id, group.broken));
        assert!(group.is_none_or(|(_, broken)| !broken), "{call:?}");
        (call.marks().first_sent_at.map(UnixMillis::get), group.map(|(id, _)| id))
    });
    judged.collect()
}

#[test]
fn a_group_of_which_one_call_was_noted_later_was_dissolved_though_its_note_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let opened = store_of(dir.path(), 4);
    wait(|done| opened.store.note_sending(1, &group(&[1, 2, 3], false), done)).unwrap();
    // The store was down when the note was to be taken back; then the second call is sent alone.
    let own = Note { evidence: Bytes::from_static(b"its own"), ..noted(11) };
    wait(|done| opened.store.note_sending(2, &own, done)).unwrap();
    let opened = reopen(opened, dir.path());
    let fresh: (Option<u64>, Option<u64>) = (None, None);
    assert_eq!(judged(&opened), [fresh, (Some(11), None), fresh, fresh]);
    assert_eq!(opened.calls[1].marks().evidence, "its own");

    // A half of it, which is sent as one.
    wait(|done| opened.store.note_sending(3, &group(&[3, 4], false), done)).unwrap();
    let opened = reopen(opened, dir.path());
    let half = (Some(9), Some(3));
    assert_eq!(judged(&opened), [fresh, (Some(11), None), half, half]);

    // A newer group holds whatever was noted of its calls before.
    wait(|done| opened.store.note_sending(1, &group(&[1, 2, 3, 4], false), done)).unwrap();
    let opened = reopen(opened, dir.path());
    assert_eq!(judged(&opened), [(Some(9), Some(1)); 4]);
}

#[test]
fn what_is_left_of_a_group_that_was_applied_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let opened = store_of(dir.path(), 4);
    wait(|done| opened.store.note_sending(2, &group(&[2, 3, 4], false), done)).unwrap();
    wait(|done| opened.store.note_sending(2, &group(&[2, 3, 4], true), done)).unwrap();
    wait(|done| opened.store.remove(vec![3], done)).unwrap();
    let opened = reopen(opened, dir.path());
    assert_eq!(seqs(&opened), [1]);
    // The leftovers ride along with what is committed next.
    append(&opened.store, 9, b"more");
    let opened = reopen(opened, dir.path());
    assert_eq!(seqs(&opened), [1, 9]);
    assert_eq!(opened.calls[1].marks().group, None);
}

#[test]
fn a_group_with_a_member_missing_is_in_doubt_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let opened = store_of(dir.path(), 4);
    wait(|done| opened.store.note_sending(2, &group(&[2, 3, 4], false), done)).unwrap();
    // As damage would have it: also if the call is missing beside which the note is stored.
    wait(|done| opened.store.remove(vec![3], done)).unwrap();
    let opened = reopen(opened, dir.path());
    assert_eq!(seqs(&opened), [1, 2, 4]);
    for call in &opened.calls[1..] {
        assert!(
            call.marks().first_sent_at.is_some() && call.marks().group.as_ref().unwrap().broken
        );
    }
}

#[test]
fn a_group_whose_first_call_is_lost_is_in_doubt_until_the_last_of_it_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let opened = store_of(dir.path(), 4);
    wait(|done| opened.store.note_sending(1, &group(&[1, 2, 3], false), done)).unwrap();
    opened.store.close();
    drop(opened);
    let first = contents(dir.path()).remove(&keys::key(keys::CALLS, 1)[..]).unwrap();
    flip_everywhere(dir.path(), &first);
    let in_doubt = |opened: &Opened| -> Vec<(u64, bool)> {
        let judged = opened.calls.iter().map(|call| {
            let is_broken = call.marks().group.as_ref().is_some_and(|group| group.broken);
            assert_eq!(call.marks().first_sent_at.is_some(), is_broken, "{call:?}");
            (call.seq, is_broken)
        });
        judged.collect()
    };
    let opened = Store::open(settings(dir.path())).unwrap();
    let lost = matches!(&opened.findings[..], [Finding::Lost { calls, .. }] if *calls == [1]);
    assert!(lost, "{:?}", opened.findings);
    assert_eq!(in_doubt(&opened), [(2, true), (3, true), (4, false)]);
    let opened = reopen(opened, dir.path());
    assert_eq!(in_doubt(&opened), [(2, true), (3, true), (4, false)]);
    // As those of any group are: the first of them last.
    wait(|done| opened.store.remove(vec![3, 2], done)).unwrap();
    let opened = reopen(opened, dir.path());
    assert_eq!(in_doubt(&opened), [(4, false)]);
}

/// Earlier releases wrote such heads after the first call of a group was lost.
#[test]
fn a_head_that_counts_the_note_of_a_group_without_its_first_call_is_proven() {
    let dir = tempfile::tempdir().unwrap();
    let opened = store_of(dir.path(), 4);
    wait(|done| opened.store.note_sending(1, &group(&[1, 2, 3], false), done)).unwrap();
    opened.store.close();
    drop(opened);
    let store = dir.path().join("store");
    let mut head = mark::read(&store).unwrap().head().unwrap();
    head.commit += 1;
    head.digests.calls.take(head::Class::Calls.hash(1));
    tamper(dir.path(), |db| {
        record_gone(db, &[1], head.commit);
        db.remove(keys::key(keys::CALLS, 1)).unwrap();
        db.insert(keys::HEAD_KEY, head::encode(&head).unwrap()).unwrap();
    });
    mark::replace(&store, &head).unwrap();
    let in_doubt = |opened: &Opened| -> Vec<(u64, bool)> {
        let is_broken = |call: &FoundCall| call.marks().group.as_ref().is_some_and(|it| it.broken);
        opened.calls.iter().map(|call| (call.seq, is_broken(call))).collect()
    };
    let opened = Store::open(settings(dir.path())).unwrap();
    assert!(!opened.findings.iter().any(Finding::is_damage), "{:?}", opened.findings);
    assert_eq!(in_doubt(&opened), [(2, true), (3, true), (4, false)]);
    opened.store.close();
    drop(opened);
    rebuild::suspect(&store);
    let opened = Store::open(settings(dir.path())).unwrap();
    assert_eq!(in_doubt(&opened), [(2, true), (3, true), (4, false)]);
}

/// sled may use the space of what took a note back before that of the note.
#[test]
fn a_note_whose_call_is_gone_says_nothing_though_it_names_others() {
    let (mut ledger, mut log) = (ledger::Ledger::default(), Vec::new());
    for seq in [2, 4, 6, 9] {
        let encoded = queue::encode(&gathered(seq)).unwrap();
        ledger.written(&keys::key(keys::CALLS, seq), encoded.says, 1);
        log.push(encoded.header.stamp(1));
    }
    for seq in [1, 3, 5] {
        ledger.never_was(seq);
        log.push(note::encode(seq, &group(&[seq, 9], false)).unwrap().stamp(1));
    }
    ledger.written(&keys::key(keys::SENDING, 4), ledger::Says::Itself, 1);
    log.push(note::encode(4, &noted(9)).unwrap().stamp(1));
    log.extend(ledger.take_touched(2).into_iter().map(|(_, value)| value));
    let head = ledger.head(2, 9, None);
    log.push(head::encode(&head).unwrap());
    let raw = raw::Raw::of(log.into_iter());
    let plan = plan::plan(&raw, head).unwrap();
    assert!(plan.is_exact(), "{:?}", plan.lost);
    let is_noted = |seq: &u64| plan.values.contains(&raw::Key::Note(*seq));
    assert_eq!((1..=9).filter(is_noted).collect::<Vec<u64>>(), [4]);
}

#[test]
fn a_group_is_one_dead_letter_and_revived_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let opened = store_of(dir.path(), 3);
    wait(|done| opened.store.note_sending(1, &group(&[1, 2, 3], false), done)).unwrap();
    // A burial that a crash cut short.
    wait(|done| opened.store.bury(2, mark(DeadReason::Ambiguous), done)).unwrap();
    let opened = reopen(opened, dir.path());
    assert!(opened.calls.iter().all(|call| call.marks().dead.is_some()));
    wait(|done| opened.store.revive(&[1, 2, 3], done)).unwrap();
    let opened = reopen(opened, dir.path());
    assert!(
        opened.calls.iter().all(|call| call.marks().dead.is_none() && call.marks().group.is_some())
    );
}

#[test]
fn a_requeue_keeps_the_doubt_if_it_is_asked_to() {
    for keep in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let opened = store_of(dir.path(), 1);
        let note = Note { evidence: Bytes::from_static(b"e"), ..noted(9) };
        wait(|done| opened.store.note_sending(1, &note, done)).unwrap();
        wait(|done| opened.store.bury(1, mark(DeadReason::Ambiguous), done)).unwrap();
        wait(|done| opened.store.requeue(1, 2, keep, done)).unwrap();
        let opened = reopen(opened, dir.path());
        let [call] = opened.calls.as_slice() else { panic!("{:?}", opened.calls) };
        assert_eq!(
            (call.seq, &call.marks().dead, call.header.traits.gather()),
            (2, &None, Some(5))
        );
        assert_eq!(call.marks().first_sent_at, keep.then(|| UnixMillis::new(9)));
        assert_eq!(call.marks().evidence, if keep { "e" } else { "" });
    }
}

#[test]
fn a_call_that_was_sent_before_it_was_queued_is_never_found_without_its_note() {
    let dir = tempfile::tempdir().unwrap();
    let opened = Store::open(settings(dir.path())).unwrap();
    let note = Note { evidence: Bytes::from_static(b"live"), ..noted(4) };
    let sent = NewCall { note: Some(note), ..call(1, &body(1, 9_000)) };
    wait(|done| opened.store.append(sent, done)).unwrap();
    let opened = reopen(opened, dir.path());
    assert_eq!(opened.calls[0].marks().first_sent_at, Some(UnixMillis::new(4)));
    assert_eq!(opened.calls[0].marks().evidence, "live");
}

#[test]
fn a_call_is_replaced_in_its_place_whatever_its_size_was() {
    let dir = tempfile::tempdir().unwrap();
    let opened = Store::open(settings(dir.path())).unwrap();
    append(&opened.store, 1, &body(1, 50_000));
    append(&opened.store, 2, b"two");
    wait(|done| opened.store.note_sending(1, &noted(9), done)).unwrap();
    let due = Traits::residue(UnixMillis::new(5));
    let residue = call_with(1, due, b"what is left");
    wait(|done| opened.store.replace(&residue, done)).unwrap();
    assert_eq!(opened.store.body(1).unwrap(), "what is left");
    let opened = reopen(opened, dir.path());
    assert_eq!(seqs(&opened), [1, 2]);
    assert_eq!((opened.calls[0].header.traits, opened.calls[0].marks().first_sent_at), (due, None));
    assert_eq!(opened.store.body(1).unwrap(), "what is left");
    let missing = wait(|done| opened.store.replace(&NewCall { seq: 7, ..residue.clone() }, done));
    assert_eq!(missing, Err(StoreError::NotFound { seq: 7 }));
    let large = NewCall { body: body(2, 5_000).into(), ..residue };
    assert!(matches!(
        wait(|done| opened.store.replace(&large, done)),
        Err(StoreError::TooLarge { .. })
    ));
}

#[test]
fn an_illegible_note_puts_all_that_it_may_have_named_in_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let opened = store_of(dir.path(), 3);
    wait(|done| opened.store.append(call(4, b"other"), done)).unwrap();
    wait(|done| opened.store.note_sending(1, &group(&[1, 2, 3], false), done)).unwrap();
    opened.store.close();
    drop(opened);
    let note = contents(dir.path()).remove(&keys::key(keys::SENDING, 1)[..]).unwrap();
    flip_everywhere(dir.path(), &note);
    let opened = Store::open(settings(dir.path())).unwrap();
    for call in &opened.calls[..3] {
        assert!(
            call.marks().first_sent_at.is_some() && call.marks().group.as_ref().unwrap().broken,
            "{call:?}"
        );
    }
    assert_eq!(opened.calls[3].marks().first_sent_at, None);
}
