//! A door before a server on which no fence can be raised: its connections wait instead until nothing old can land.

use tokio::time::Instant;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(1);

/// Increments `n` until that was done so many times, as each answer says.
async fn increments(client: &mut Wire, times: usize) {
    let mut done = 0;
    while done < times {
        let told = client.ask("INCR n").await;
        assert!(!told.contains("UNKNOWN"), "it was sent and not waited for: {told}");
        done += usize::from(told.starts_with(':'));
    }
}

#[tokio::test]
async fn the_time_of_a_reply_begins_when_the_connection_is_up() {
    const TIMES: usize = 20;
    let user = ["--user", "default", "on", "nopass", "~*", "+@all", "-client|kill", "-client|list"];
    let server = Server::start_with(&user).await;
    let settings = Settings { deadline: Some(PATIENCE), ..door() };
    let world = World::before(server, None, TIMEOUT, settings, &[("redis", 0)]).await;
    // From the start on the first connection waits for twice the timeout. Of that, more than one is still to come.
    let begun = Instant::now();
    until("some of it is over", async || begun.elapsed() >= TIMEOUT / 2).await;
    let (mut one, mut two) = (world.client(), world.client());
    tokio::join!(increments(&mut one, TIMES), increments(&mut two, TIMES));
    assert_eq!(world.server.value("n").await, (2 * TIMES).to_string());
}
