//! A plain read that a door admits and settles allocates nothing.

#[cfg(test)]
mod allocations {
    use std::{alloc::System, sync::Arc, time::Duration};

    use bytes::Bytes;
    use fusebox_actors::{
        Admission, BackendSettings, BackendSpec, DeadLetterPolicy, Fusebox, Outcome, PlainAccess,
        PlainPlan, Priority, Settled, SystemSettings, WriteFallback,
        connector::{Answer, Attempt, Attempted, Connector, ConnectorStatus, Plan, Refused, Slot},
        trace::CallTrace,
    };
    use fusebox_state::{
        LaneId, Lanes, OpId, Ratio, Target,
        backoff::RetrySettings,
        breaker::{BreakerSettings, SlowCalls},
        cache::CacheSettings,
        queue::QueueLimits,
    };
    use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

    #[global_allocator]
    static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

    /// It is never asked for more than its names: the test sends for itself.
    struct Nothing;

    impl Connector for Nothing {
        fn plan(&self, _: Bytes) -> Result<Plan, Refused> {
            Err(Refused { code: "none", message: String::new(), malformed: true })
        }

        fn attempt<'a>(&'a self, _: Attempt<'a>) -> Answer<'a, Attempted> {
            Box::pin(async { Attempted::answered(Bytes::new()) })
        }

        fn ping(&self, _: Duration) -> Answer<'_, Attempted> {
            Box::pin(async { Attempted::answered(Bytes::new()) })
        }

        fn split(&self, _: &Bytes, _: &[Slot], _: &Bytes) -> Option<Vec<Bytes>> {
            None
        }

        fn join(&self, _: &Bytes, _: Vec<Bytes>) -> Bytes {
            Bytes::new()
        }

        fn forget_tokens(&self, _: Vec<OpId>) {}

        fn status(&self) -> ConnectorStatus {
            ConnectorStatus::default()
        }

        fn target(&self) -> Target {
            "nothing".into()
        }

        fn close(&self) -> Answer<'_, ()> {
            Box::pin(async {})
        }
    }

    fn settings() -> BackendSettings {
        let second = Duration::from_secs(1);
        BackendSettings {
            name: "one".into(),
            kind: "nothing",
            critical: false,
            depends_on: Vec::new(),
            depends_on_optional: Vec::new(),
            timeout: second,
            breaker: BreakerSettings {
                failure_threshold: 3,
                failure_rate: Ratio::new(0.5).unwrap(),
                recovery_timeout: second,
                recovery_timeout_max: second,
                success_threshold: 2,
                window: second * 6,
                auto_recovery: true,
                attempt_timeout: second,
                jitter: Ratio::new(0.0).unwrap(),
                slow: SlowCalls::default(),
            },
            retry: RetrySettings { attempts: 2, base: second, cap: second },
            in_flight_max: 64,
            cache: CacheSettings {
                items: 100,
                bytes: 1 << 20,
                ttl: second * 300,
                max_stale: second * 300,
                entry_max: 16 << 20,
                disk_bytes: 0,
            },
            answer_after: Duration::from_secs(1),
            cache_dir: None,
            queue: QueueLimits {
                items: 1_000,
                bytes: 1 << 20,
                dead_items: 10,
                dead_bytes: 1 << 20,
            },
            disk_floor: 0,
            queue_packed: false,
            queue_dir: None,
            write_fallback: WriteFallback::Queue,
            dead_letter_policy: DeadLetterPolicy::Continue,
        }
    }

    #[tokio::test]
    async fn a_plain_read_admitted_and_settled_allocates_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let system = SystemSettings {
            state_dir: dir.path().to_owned(),
            pings: fusebox_actors::PingSettings::every(Duration::from_secs(3_600)),
            instance: "test".into(),
            copied: None,
        };
        let spec = BackendSpec { settings: settings(), connector: Arc::new(Nothing) };
        let fusebox = Fusebox::start(system, vec![spec], None).await.unwrap();
        let backend = fusebox.backends().remove(0);
        let lane = LaneId::of(b"", b"k");
        let lanes = Lanes::One(lane);
        let read = || {
            let slot = Some((lane, &b"GET k"[..]));
            let plan = PlainPlan {
                lanes: &lanes,
                access: PlainAccess::Read { keyed: true, slot, max_stale: None },
                priority: Priority::Normal,
                operation: "GET",
                trace: CallTrace::new("/door"),
                uid: 7,
                may_be_struck: true,
            };
            let Admission::Go(ticket) = backend.admit(&plan) else { panic!("it may be sent") };
            let cached = Some((&b"GET k"[..], &b"value"[..]));
            let Settled::Done = ticket.settle(Outcome::Answered { cached, until: None }) else {
                panic!("it is answered")
            };
        };
        read();
        // Nothing else runs on this thread; the store's may stir once.
        let fewest = (0..10)
            .map(|_| {
                let region = Region::new(GLOBAL);
                (0..1_000).for_each(|_| read());
                region.change().allocations
            })
            .min();
        assert_eq!(fewest, Some(0));
        assert_eq!(backend.view().calls.successes, 10_001);
        fusebox.shutdown(Duration::from_secs(1)).await;
    }
}
