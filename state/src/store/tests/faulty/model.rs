//! What a store may hold, after all that was asked and answered.

use super::*;

/// Which of two values something may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct May(u8);

impl May {
    const NO: Self = Self(1);
    const YES: Self = Self(2);

    fn is(value: bool) -> Self {
        if value { Self::YES } else { Self::NO }
    }

    fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn admits(self, value: bool) -> bool {
        self.0 & Self::is(value).0 != 0
    }
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    here: May,
    noted: May,
    dead: May,
    /// What its body may be: the name that it depends on, and its length.
    bodies: Vec<(u64, usize)>,
}

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    calls: BTreeMap<u64, Known>,
    facts: BTreeMap<String, Vec<Option<String>>>,
    /// What was asked and not answered, and the state before.
    pending: BTreeMap<String, Before>,
    /// Requeues of which nobody knows whether they happened: the one or the other is there.
    either: Vec<(u64, u64)>,
    highest: u64,
    /// A call that a flipped bit took.
    lost: Option<u64>,
    /// That it is lost was reported.
    told: bool,
}

/// The earlier state.
#[derive(Clone, Debug, Default)]
struct Before {
    calls: Vec<(u64, Option<Known>)>,
    fact: Option<(String, Vec<Option<String>>)>,
}

fn number(word: Option<&str>) -> Result<u64, String> {
    word.and_then(|word| word.parse().ok()).ok_or_else(|| "a word is missing".into())
}

impl Model {
    /// Takes a line of the child in.
    pub(crate) fn hear(&mut self, line: &str) -> Result<(), String> {
        let wrong = |why: String| format!("{why}, says the child in `{line}`");
        match line.split_at_checked(2) {
            Some(("> ", what)) => self.asked(what).map_err(wrong),
            Some(("< ", rest)) => {
                let (result, what) = rest.split_once(' ').ok_or("no result")?;
                self.answered(result, what).map_err(wrong)
            }
            Some(("= ", seqs)) => self.holds(seqs).map_err(wrong),
            Some(("r ", rest)) => {
                let (seq, result) = rest.split_once(' ').ok_or("no result")?;
                let seq = number(Some(seq))?;
                let Some(call) = self.calls.get(&seq) else { return Ok(()) };
                let must = call.here == May::YES;
                let is_bad = result.contains("NotFound") || result.contains("Damaged");
                let sum_of = |&(name, length): &(u64, usize)| {
                    format!("sum {}", crc32fast::hash(&content(name, length)))
                };
                let is_other = result.starts_with("sum ")
                    && !call.bodies.iter().any(|it| sum_of(it) == result);
                if must && is_bad || is_other {
                    return Err(wrong("a call that is there does not read".into()));
                }
                Ok(())
            }
            Some(("! ", what)) => {
                let is_lost = self.lost.is_some() && what.starts_with("[Lost ");
                self.told = is_lost;
                if is_lost { Ok(()) } else { Err(wrong("damage".into())) }
            }
            _ => Ok(()),
        }
    }

    fn asked(&mut self, what: &str) -> Result<(), String> {
        let mut words = what.split(' ');
        let (verb, first) = (words.next().unwrap_or_default(), words.next());
        let mut before = Before::default();
        if verb == "f" {
            let name = first.unwrap_or_default().to_owned();
            let values = self.facts.entry(name.clone()).or_insert_with(|| vec![None]);
            before.fact = Some((name, values.clone()));
            values.push(words.next().map(str::to_owned));
        }
        for (seq, after) in self.effects(what)? {
            before.calls.push((seq, self.calls.get(&seq).cloned()));
            match self.calls.get_mut(&seq) {
                Some(call) => {
                    call.here = call.here.or(after.here);
                    call.noted = call.noted.or(after.noted);
                    call.dead = call.dead.or(after.dead);
                    call.bodies.extend(after.bodies);
                }
                None => {
                    let here = after.here.or(May::NO);
                    self.calls.insert(seq, Known { here, ..after });
                }
            }
        }
        self.pending.insert(what.to_owned(), before);
        Ok(())
    }

    /// What each call that is spoken of is, once this has happened.
    fn effects(&self, what: &str) -> Result<Vec<(u64, Known)>, String> {
        let mut words = what.split(' ');
        let (verb, first, second) = (words.next().unwrap_or_default(), words.next(), words.next());
        if matches!(verb, "f" | "c") {
            return Ok(Vec::new());
        }
        if verb == "x" {
            let gone = |seq: &str| {
                let seq = number(Some(seq))?;
                let call = self.calls.get(&seq).ok_or("unknown")?;
                Ok((seq, Known { here: May::NO, ..call.clone() }))
            };
            return first.unwrap_or_default().split(',').map(gone).collect();
        }
        let seq = number(first)?;
        let fresh = |bodies| Known { here: May::YES, noted: May::NO, dead: May::NO, bodies };
        if verb == "a" {
            let length = usize::try_from(number(second)?).map_err(|error| error.to_string())?;
            return Ok(vec![(seq, fresh(vec![(seq, length)]))]);
        }
        let call = self.calls.get(&seq).ok_or("unknown")?.clone();
        Ok(match verb {
            "n" => vec![(seq, Known { noted: May::YES, ..call })],
            "t" => vec![(seq, Known { noted: May::NO, ..call })],
            "b" => vec![(seq, Known { dead: May::YES, ..call })],
            "v" => vec![(seq, Known { dead: May::NO, ..call })],
            "p" => {
                let length = usize::try_from(number(second)?).map_err(|error| error.to_string())?;
                let bodies = vec![(seq + 1_000_000, length)];
                vec![(seq, Known { noted: May::NO, bodies, ..call })]
            }
            "q" => {
                let new = fresh(call.bodies.clone());
                vec![(seq, Known { here: May::NO, ..call }), (number(second)?, new)]
            }
            other => return Err(format!("{other} is no verb")),
        })
    }

    fn answered(&mut self, result: &str, what: &str) -> Result<(), String> {
        // The present state: other answers may have come in between.
        let after = self.effects(what)?;
        let before = self.pending.remove(what).ok_or("nobody asked")?;
        match result {
            "ok" => {
                for (seq, known) in after {
                    if known.here == May::YES {
                        self.highest = self.highest.max(seq);
                    }
                    let verb = what.as_bytes().first().copied().unwrap_or_default();
                    let Some(call) = self.calls.get_mut(&seq) else { continue };
                    match verb {
                        b'a' | b'q' => *call = known,
                        b'x' => call.here = May::NO,
                        b'n' | b't' => call.noted = known.noted,
                        b'b' | b'v' => call.dead = known.dead,
                        _ => (call.noted, call.bodies) = (known.noted, known.bodies),
                    }
                }
                if let Some((name, _)) = before.fact {
                    let value = what.split(' ').nth(2).map(str::to_owned);
                    self.facts.insert(name, vec![value]);
                }
            }
            "no" => {
                for (seq, known) in before.calls {
                    let absent =
                        Known { here: May::NO, noted: May::NO, dead: May::NO, bodies: Vec::new() };
                    self.calls.insert(seq, known.unwrap_or(absent));
                }
                if let Some((name, values)) = before.fact {
                    self.facts.insert(name, values);
                }
            }
            _ => {
                let mut words = what.split(' ').skip(1);
                if what.starts_with("q ") {
                    self.either.push((number(words.next())?, number(words.next())?));
                }
            }
        }
        Ok(())
    }

    /// What the store says that it holds is the truth from now on.
    fn holds(&mut self, seqs: &str) -> Result<(), String> {
        let found: Result<Vec<u64>, _> =
            seqs.split(' ').filter(|word| !word.is_empty()).map(str::parse).collect();
        let found = found.map_err(|error| error.to_string())?;
        self.compare(&found)?;
        let open: Vec<u64> =
            self.pending.values().flat_map(|it| it.calls.iter().map(|it| it.0)).collect();
        for (seq, call) in self.calls.iter_mut().filter(|(seq, _)| !open.contains(seq)) {
            call.here = May::is(found.contains(seq));
        }
        Ok(())
    }

    fn compare(&self, found: &[u64]) -> Result<(), String> {
        for seq in found {
            if !self.calls.get(seq).is_some_and(|call| call.here.admits(true)) {
                return Err(format!("{seq} is back"));
            }
        }
        let is_missing =
            |(seq, call): &(&u64, &Known)| !call.here.admits(false) && !found.contains(seq);
        if let Some((seq, _)) = self.calls.iter().find(is_missing) {
            return Err(format!("{seq} is lost"));
        }
        for (old, new) in &self.either {
            let could = [old, new].map(|seq| self.calls.get(seq).map(|call| call.here));
            // Both may have been removed since.
            if could.iter().all(|here| here.is_some_and(|here| here.0 == 3))
                && !found.contains(old)
                && !found.contains(new)
            {
                return Err(format!("neither {old} nor {new} is there"));
            }
        }
        Ok(())
    }

    /// Compares a store with what may be there.
    pub(crate) fn judge(&self, opened: &Opened) -> Result<(), String> {
        let damage: Vec<_> = opened.findings.iter().filter(|it| it.is_damage()).collect();
        // What was reported may be reported again: better twice than not at all.
        let is_right = match (self.lost, &damage[..]) {
            (None, []) => true,
            (Some(_), []) => self.told,
            (Some(seq), [Finding::Lost { calls, .. }]) => *calls == [seq],
            _ => false,
        };
        if !is_right {
            return Err(format!("it tells of damage: {damage:?}"));
        }
        self.compare(&seqs(opened))?;
        if opened.last_seq < self.highest {
            return Err(format!("it would give out {} again", opened.last_seq + 1));
        }
        for call in &opened.calls {
            let Some(known) = self.calls.get(&call.seq) else { continue };
            let read = opened.store.body(call.seq).map_err(|error| error.to_string())?;
            if !known.bodies.iter().any(|(name, length)| read == content(*name, *length)) {
                return Err(format!("{} has another body", call.seq));
            }
            if !known.noted.admits(call.marks().first_sent_at.is_some()) {
                return Err(format!("{} has or lacks a note: {known:?}", call.seq));
            }
            if !known.dead.admits(call.marks().dead.is_some()) {
                return Err(format!("{} is dead or not: {known:?}", call.seq));
            }
        }
        for (name, values) in &self.facts {
            let found = opened.store.fact(name).map(|it| String::from_utf8_lossy(&it).into_owned());
            if !values.contains(&found) {
                return Err(format!("{name} is {found:?}, and may be {values:?}"));
            }
        }
        Ok(())
    }

    /// Calls that are there for certain.
    pub(crate) fn certain(&self) -> Vec<u64> {
        let certain = self.calls.iter().filter(|(_, call)| call.here == May::YES);
        certain.map(|(seq, _)| *seq).collect()
    }

    /// A flipped bit took the call.
    pub(crate) fn lose(&mut self, seq: u64) {
        self.lost = Some(seq);
        if let Some(call) = self.calls.get_mut(&seq) {
            call.here = May::NO;
        }
    }

    /// The loss was reported: it need not be reported again.
    pub(crate) fn was_told(&mut self) {
        self.told = true;
    }
}
