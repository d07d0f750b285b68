//! What a backend shows of itself, read from what calls borrow. Nothing here asks an actor.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use fusebox_state::{
    OpId, SpanRef, Words,
    breaker::TransitionRecord,
    predict::Bounds,
    queue::{Entry, Phase, QueueIndex},
    store::CallStore,
};

use crate::{
    backend_shared::BackendShared,
    prediction::Conditions,
    recent::Sample,
    roster::Roster,
    settings::BackendSettings,
    trace,
    view::{
        BackendHealthView, BackendView, BreakerView, CacheView, CallsView, ForcedView, Place,
        QueuePage, QueueView, QueuedCallView, WouldBeView,
    },
};

impl BackendShared {
    /// The breaker.
    pub fn breaker_view(&self) -> BreakerView {
        let circuit = &self.circuit;
        let (clock, settings) = (circuit.clock, circuit.settings.load());
        let now = clock.now();
        let shot = circuit.breaker.snapshot(now);
        let free = shot.forced.is_none() && !shot.offline;
        let last_transition = self.transitions(1).pop();
        // The breaker's own memory of when begins with the daemon's run.
        let entered = last_transition.as_ref().filter(|last| last.transition.to == shot.state);
        let since = clock.to_unix(shot.since);
        BreakerView {
            state: shot.state.into(),
            underlying: shot.underlying.into(),
            since: entered.map_or(since, |last| last.at),
            open_until: shot.open_until.filter(|_| free).map(|until| clock.to_unix(until)),
            exponent: shot.exponent,
            window_calls: shot.counts.calls(),
            window_failures: shot.counts.failures,
            failure_rate: shot.counts.failure_rate(),
            failure_threshold: settings.breaker.failure_threshold,
            failure_rate_threshold: settings.breaker.failure_rate.get(),
            window_slow: shot.counts.slow,
            slow_rate: shot.counts.slow_rate(),
            slow_call_ms: settings.breaker.slow.after.as_millis().try_into().unwrap_or(u64::MAX),
            slow_rate_threshold: settings.breaker.slow.rate.get(),
            window_seconds: settings.breaker.window.as_secs_f64(),
            success_threshold: settings.breaker.success_threshold,
            pings_failed: shot.pings_failed,
            last_transition,
            transitions: circuit.metrics.transitions.get(),
            forced: shot.forced.map(|force| ForcedView {
                state: if force.open { "open" } else { "closed" }.into(),
                reason: force.reason,
                since: clock.to_unix(force.since),
                until: force.until.map(|until| clock.to_unix(until)),
            }),
        }
    }

    /// The newest `limit` transitions, newest last, also of earlier runs.
    pub fn transitions(&self, limit: usize) -> Vec<TransitionRecord> {
        self.queue.history.newest(limit)
    }

    fn calls_view(&self) -> CallsView {
        let metrics = &self.circuit.metrics;
        let by_source: BTreeMap<_, _> =
            metrics.by_source().map(|(source, calls)| (source.into(), calls)).collect();
        let (successes, failures) = (metrics.success.get(), metrics.failure.get());
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let success_rate = match successes + failures {
            0 => 1.0,
            all => successes as f64 / all as f64,
        };
        CallsView {
            total: by_source.values().sum(),
            by_source,
            successes,
            failures,
            neutral: metrics.neutral.get(),
            rejected: metrics.rejected.get(),
            retries: metrics.retried.get(),
            success_rate,
            in_flight: self.circuit.bulkhead.in_flight(),
            in_flight_limit: self.circuit.bulkhead.max(),
            in_flight_limit_would_be: self.would_be(),
            response_ms: metrics.times.since_start(),
        }
    }

    pub(crate) fn would_be(&self) -> WouldBeView {
        let limits = &self.circuit.limits;
        WouldBeView { read: limits.would_be(false), write: limits.would_be(true) }
    }

    /// What an operator must act on.
    pub(crate) fn alerts(&self) -> Vec<Words> {
        self.with_dead_letters(self.queue.alerts())
    }

    /// `alerts`, and that dead letters wait.
    fn with_dead_letters(&self, mut alerts: Vec<Words>) -> Vec<Words> {
        let dead = self.queue.index().dead().0;
        if dead > 0 {
            let name = &self.circuit.name;
            let told = format!(
                "{dead} dead letters wait for an operator: `fusebox queue ls --dead --backend {name}`"
            );
            alerts.push(told.into());
        }
        alerts
    }

    fn cache_view(&self) -> CacheView {
        let cache = self.cache.load();
        let (entries, bytes, ..) = cache.stats();
        let metrics = &self.circuit.metrics;
        CacheView {
            entries,
            bytes,
            file_bytes: cache.shelf().map_or(0, |shelf| shelf.used()),
            hits: metrics.cache_hit.get(),
            misses: metrics.cache_miss.get(),
        }
    }

    /// A reading of what goes on, for the recent figures.
    pub(crate) fn sample(&self) -> Sample {
        let mut sample = Sample::of(&self.circuit.metrics, self.circuit.clock.now());
        sample.replaying = self.queue.is_replaying();
        let index = self.queue.index();
        (sample.calls, sample.bytes) = (index.len() as u64, index.bytes());
        sample
    }

    /// Keeps a reading, follows what limits would be, and looks ahead; to be called about every second.
    pub(crate) fn keep_sample(&self) {
        let sample = self.sample();
        let limits = self.queue.index().limits();
        let pace = self.circuit.recent.pace(&sample, limits.items.into(), limits.bytes);
        self.circuit.recent.keep(sample);
        let rule = self.connector.load().limit_rule();
        self.circuit.limits.look(rule, self.circuit.clock.now());
        self.look_ahead(pace.full_seconds.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))));
    }

    /// Predicts by the settings of this moment, and counts what earlier predictions came to.
    fn look_ahead(&self, full_in: Option<Duration>) {
        let circuit = &self.circuit;
        let settings = circuit.settings.load();
        let bounds = Bounds {
            timeout: settings.timeout,
            failure_rate: settings.breaker.failure_rate,
            in_flight_max: circuit.bulkhead.max(),
        };
        let conditions = Conditions {
            now: circuit.clock.now(),
            in_flight: circuit.bulkhead.in_flight(),
            full_in,
            is_struck: circuit.chaos.armed().is_some(),
            window: settings.breaker.window,
            is_held_up: !circuit.breaker.is_operational()
                || circuit.breaker.forced_since().is_some(),
        };
        circuit.metrics.scored(circuit.forecast.look(&conditions, &bounds));
    }

    /// The 99th percentile of the last minute's response times; `None` if there was no attempt.
    pub(crate) fn recent_p99(&self) -> Option<Duration> {
        self.circuit.recent.p99()
    }

    pub(crate) fn queue_view(&self, settings: &BackendSettings, sample: &Sample) -> QueueView {
        let unix = self.circuit.clock.unix();
        let status = self.queue.store().map(CallStore::status);
        let index = self.queue.index();
        let age = index
            .oldest()
            .map_or(0, |oldest| u64::try_from(unix.since(oldest).as_millis()).unwrap_or(u64::MAX));
        let (calls, bytes, limits) = (index.len() as u64, index.bytes(), index.limits());
        let (fill_percent, lanes, dead) =
            (index.fill_percent(), index.occupied_lanes() as u64, index.dead().0 as u64);
        drop(index);
        let pace = self.circuit.recent.pace(sample, limits.items.into(), limits.bytes);
        let (disk_bytes, store_refuses, findings) = match status {
            Ok(status) => (
                status.disk_bytes,
                status.refusing,
                status.findings.iter().map(ToString::to_string).collect(),
            ),
            Err(error) => (0, Some(error.to_string()), Vec::new()),
        };
        QueueView {
            calls,
            bytes,
            limit_calls: limits.items.into(),
            limit_bytes: limits.bytes,
            fill_percent,
            oldest_age_ms: age,
            lanes,
            dead_letters: dead,
            became_dead: self.circuit.metrics.dead.get(),
            refused: self.circuit.metrics.refused.get(),
            disk_bytes,
            replay_paused: self.queue.paused().map(str::to_owned),
            replayed: self.circuit.metrics.replayed.get(),
            enqueued_per_second: pace.enqueued_per_second,
            replayed_per_second: pace.replayed_per_second,
            drain_seconds: pace.drain_seconds,
            full_seconds: pace.full_seconds,
            store_refuses,
            findings,
            write_fallback: settings.write_fallback.into(),
            dead_letter_policy: settings.dead_letter_policy.into(),
        }
    }

    /// The backend in full; `entries` are all of them, for what impairs it.
    pub(crate) fn view(&self, entries: &Roster) -> BackendView {
        let settings = self.circuit.settings.load();
        let connector = self.connector.load();
        let sample = self.sample();
        let alerts = self.queue.alerts_by_subject().into_iter();
        let (subjects, words) = alerts.map(|(alert, words)| (alert.as_str().into(), words)).unzip();
        BackendView {
            name: settings.name.clone(),
            kind: settings.kind.into(),
            target: connector.target(),
            critical: settings.critical,
            operational: self.circuit.breaker.is_operational(),
            offline: self.circuit.holds().is_offline(),
            opening: self.circuit.holds().opening,
            alerts: self.with_dead_letters(words),
            alert_subjects: subjects,
            breaker: self.breaker_view(),
            calls: self.calls_view(),
            cache: self.cache_view(),
            queue: self.queue_view(&settings, &sample),
            connector: connector.status(),
            depends_on: settings.depends_on.clone(),
            impaired_by: entries.impaired_by(self),
            restarts: self.circuit.restarts.load(Ordering::Relaxed),
            recent: self.circuit.recent.view(&sample),
            next_ping_at: self.circuit.next_ping().map(|at| self.circuit.clock.to_unix(at)),
            chaos: self.circuit.chaos.view(),
            prediction: self.circuit.forecast.view(self.circuit.clock),
        }
    }

    /// The backend in short.
    pub(crate) fn health_view(&self, entries: &Roster) -> BackendHealthView {
        let (state, holds) = (self.circuit.breaker.state().0, self.circuit.holds());
        BackendHealthView {
            breaker: state.into(),
            operational: self.circuit.breaker.is_operational(),
            critical: self.circuit.settings.load().critical,
            offline: holds.is_offline(),
            opening: holds.opening,
            queued: self.queue.waiting(),
            chaos: self.circuit.chaos.armed().is_some(),
            impaired_by: entries.impaired_by(self),
        }
    }

    /// A page of the queue, in order of acceptance: what comes after a place. Blocks on the disk.
    pub fn queue_page(&self, dead: bool, after: Option<Place>, limit: usize) -> QueuePage {
        let unix = self.circuit.clock.unix();
        let index = self.queue.index();
        let start = after.map_or(0, Place::sequence);
        let total = if dead { index.dead().0 } else { index.len() } as u64;
        let calls = index
            .page(dead, start)
            // A group is one dead letter.
            .filter(|(seq, entry)| !dead || entry.details().group.is_none_or(|first| first == *seq))
            .take(limit.saturating_add(1))
            .map(|(seq, entry)| queued_view(seq, entry, dead, unix, &index));
        let mut calls: Vec<QueuedCallView> = calls.collect();
        drop(index);
        let more = calls.len() > limit;
        calls.truncate(limit);
        for call in &mut calls {
            call.lane = self.label_of(call.sequence);
        }
        let next = calls.last().filter(|_| more).map(|call| Place::of(call.sequence));
        QueuePage { total, calls, next }
    }

    /// The place of a call in the list of the waiting calls, or in that of the dead letters. `None` if it is not
    /// in that list.
    pub fn place_of(&self, dead: bool, op_id: OpId) -> Option<Place> {
        let found = self.queue.index().find(op_id);
        found.filter(|(_, is_dead)| *is_dead == dead).map(|(seq, _)| Place::of(seq))
    }

    /// A queued call or dead letter, without its body. Blocks on the disk.
    pub fn queued_call(&self, op_id: OpId) -> Option<QueuedCallView> {
        let unix = self.circuit.clock.unix();
        let (seq, mut view) = {
            let index = self.queue.index();
            let (seq, dead) = index.find(op_id)?;
            (seq, queued_view(seq, index.get(seq)?, dead, unix, &index))
        };
        let store = self.queue.store().ok()?;
        view.lane = self.label_of(seq);
        if let Ok(stored) = store.call(seq) {
            view.traceparent = stored.traceparent;
            let recorded = view.traceparent.as_deref().and_then(SpanRef::parse);
            view.replay_trace_id = recorded
                .filter(|span| span.sampled)
                .map(|_| format!("{:032x}", trace::replay_trace_id(op_id)));
        }
        Some(view)
    }

    /// The body of the queued call or dead letter with that sequence. `None` if it cannot be read, or is no longer
    /// there. Blocks on the disk.
    pub fn queued_body(&self, sequence: u64) -> Option<Bytes> {
        self.queue.store().ok()?.body(sequence).ok()
    }

    /// The lanes of a queued call for people, as the store has them.
    fn label_of(&self, seq: u64) -> String {
        let store = self.queue.store();
        let call = store.ok().and_then(|store| store.call(seq).ok());
        call.map_or_else(|| "unknown".into(), |call| call.label.into())
    }
}

fn queued_view(
    sequence: u64,
    entry: &Entry,
    dead: bool,
    now: fusebox_state::UnixMillis,
    index: &QueueIndex,
) -> QueuedCallView {
    let group = entry.details().group.and_then(|id| index.group(id));
    let state = match entry.phase {
        _ if dead => "dead",
        Phase::Sending | Phase::Removing => "sending",
        Phase::BackingOff => "retry",
        Phase::Committing | Phase::Waiting => "pending",
    };
    QueuedCallView {
        op_id: entry.header.op_id,
        sequence,
        lane: String::new(),
        state: state.into(),
        attempts: entry.attempts(),
        enqueued_at: entry.header.accepted_at,
        age_ms: u64::try_from(now.since(entry.header.accepted_at).as_millis()).unwrap_or(u64::MAX),
        bytes: entry.size(),
        last_error: entry.details().last_error.clone(),
        uid: entry.header.uid,
        traceparent: None,
        replay_trace_id: None,
        expires_at: (),
        in_doubt: entry.state.is_in_doubt(),
        calls: group.map_or(1, |group| group.members.len()),
    }
}
