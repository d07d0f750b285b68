//! What adaptive limits would be, before a server that works on a few calls at once.

use super::*;

/// Callers, each a user of its own, who read, each again as soon as it has its answer, for as long as this lives.
struct Callers(Vec<tokio::task::JoinHandle<()>>);

impl Callers {
    fn of(world: &World, count: u32) -> Self {
        let backend = world.backend();
        let one = |uid| {
            let backend = Arc::clone(&backend);
            tokio::spawn(async move {
                loop {
                    call_of(uid, &backend, "GET a", CallOptions::default()).await.unwrap();
                }
            })
        };
        Self((0..count).map(one).collect())
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

#[tokio::test]
async fn the_limit_that_would_be_is_at_the_knee_of_the_server_and_follows_it() {
    let slow = BackendSettings { timeout: Duration::from_secs(5), ..settings("one") };
    let world = World::start(vec![slow]).await;
    world.server().slots.add_permits(16);
    world.server().set(Mode::Slots);
    let would_be = || world.backend().view().calls.in_flight_limit_would_be;
    assert_eq!(would_be().read, None);
    // Nothing here takes real time, and nothing touches the disk.
    tokio::time::pause();
    let _callers = Callers::of(&world, 64);
    let began = tokio::time::Instant::now();
    // It begins at 20: what it rests at is seen once it had the time to leave.
    while began.elapsed() < Duration::from_secs(20) {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let limit = would_be().read.unwrap();
    assert!((12..=24).contains(&limit), "{limit} before a server of 16");
    world.server().slots.add_permits(16);
    let follows = async {
        while would_be().read.unwrap() < 30 {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let followed = tokio::time::timeout(Duration::from_secs(60), follows).await;
    assert!(followed.is_ok(), "{:?} before a server of 32", would_be());
    assert_eq!(would_be().write, None, "nobody writes");
    let page = world.fusebox.metrics(Format::Prometheus);
    let line = r#"fusebox_attempts_in_flight_limit_would_be{backend="one",class="read"} 3"#;
    assert!(page.contains(line), "{page}");
    let story = world.backend().explain().story;
    let told = "At most 64 attempts are in flight at once; an adaptive limit, which is only shown, would be 3";
    assert!(story.iter().any(|it| it.said().starts_with(told)), "{story:?}");
}
