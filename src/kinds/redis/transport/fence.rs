//! The fence: nothing new is written until nothing old can still land.
//!
//! A write that was sent and not answered may be in a dead network and reach the server seconds later,
//! after a newer write to the same key has been acknowledged; it would undo it. Closing the connection
//! does not help: the bytes are on their way. What helps is that the *server* forgets the connection on
//! which they would arrive. So every connection for writes begins like this, before any write passes:
//!
//! ```text
//! connect → HELLO, CLIENT SETNAME fusebox:<instance>:<run>:<n> → acknowledged
//!         → CLIENT LIST → CLIENT KILL ID of every client named fusebox:<instance>:… that is no
//!           connection of this run that lives → CLIENT LIST … until none is left → writes pass
//! ```
//!
//! **Why this suffices.** No write is sent on a connection before the server has acknowledged its name,
//! so whatever could land is in CLIENT LIST under a name of ours. The server runs one command at a
//! time: what an old connection sent has been executed before our CLIENT LIST (then it landed *before*
//! the newer write), or its connection is killed and what arrives on it later is answered with a reset.
//! A connection lives by our own account ([`super::shared::Shared::lives`]) from before its socket is
//! opened until after it is closed, so an abandoned one is never spared, and one that is being set up
//! never killed; another backend's on the same server is spared as well. A new run of the daemon knows none of the
//! names of the one before it: it kills them all. This is done at every connect for writes, whether or not anything is
//! in doubt: one rule, no cases.
//!
//! **If it cannot be done** (CLIENT LIST or KILL refused, or a proxy in between, so that our own name
//! is not in the list), writes wait until twice the backend's `timeout` after the last connection with
//! writes unanswered was abandoned (or after the start), and `status` warns: that is a bet, no proof.
//!
//! **A former name** ([`crate::kinds::former`]) is killed as well, by the first fence alone, of whatever connector and
//! run: afterwards it may be another daemon's. A connection with our name that comes back after it was killed is a
//! twin's ([`crate::kinds::twins::Twins`]).
//!
//! **What it does not cover:** a server that was replaced by another one (a failover): the old one may
//! still execute what it was sent; its data is gone with it.

use std::time::Duration;

use bytes::Bytes;
use fusebox_state::Words;

use super::{
    handshake::{Dialogue, Failed, checked, lost},
    shared::{Shared, prefix_of},
};
use crate::kinds::{
    redis::protocol::resp::{self, Reply},
    twins::since_start,
};

/// How a fence went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fenced {
    /// Nothing old is left; so many connections were killed.
    Clear(usize),
    /// It cannot be found out or done, for this reason: only waiting helps.
    Refused(Words),
}

/// How often the list is read before the server is taken at its word that a client will not go.
const ROUNDS_MAX: usize = 50;

/// A client of the server's, as CLIENT LIST shows it.
#[derive(Debug, PartialEq, Eq)]
struct Client<'a> {
    id: &'a str,
    name: &'a str,
    /// For how many seconds the server has had it.
    age: Option<u64>,
}

/// Kills what earlier connections of this instance left, on a new connection named `own`.
///
/// # Errors
/// The new connection broke, or the server is busy: the fence must be raised another time.
pub(crate) async fn raise(
    dialogue: &mut Dialogue,
    shared: &Shared,
    own: &str,
) -> Result<Fenced, Failed> {
    let list = resp::command(&["CLIENT", "LIST"]);
    let prefix = shared.name_prefix();
    let former = shared.former();
    let before: Vec<String> = former.iter().map(|name| prefix_of(name)).collect();
    let mut killed = 0;
    for _ in 0..ROUNDS_MAX {
        let replies = dialogue.ask(std::slice::from_ref(&list)).await.map_err(|e| lost(&e))?;
        let reply = match checked(replies.into_iter().next().unwrap_or_default())? {
            Ok(reply) => reply,
            Err(refused) => return Ok(Fenced::Refused(refused.error.message)),
        };
        let text = Reply::of(&reply).and_then(|reply| reply.text()).unwrap_or_default();
        let text = String::from_utf8_lossy(text);
        let clients: Vec<Client<'_>> = text.lines().filter_map(client).collect();
        if !clients.iter().any(|client| client.name == own) {
            return Ok(Fenced::Refused("CLIENT LIST does not show this connection".into()));
        }
        let is_old = |client: &&Client<'_>| {
            client.name.starts_with(&prefix) && !shared.lives(client.name)
                || before.iter().any(|prefix| client.name.starts_with(prefix))
        };
        let old: Vec<&Client<'_>> = clients.iter().filter(is_old).collect();
        if old.is_empty() {
            shared.former_are_gone(&former);
            return Ok(Fenced::Clear(killed));
        }
        for client in &old {
            meet(shared, &prefix, client);
        }
        let kill = |client: &&Client<'_>| resp::command(&["CLIENT", "KILL", "ID", client.id]);
        let old: Vec<Bytes> = old.iter().map(kill).collect();
        for reply in dialogue.ask(&old).await.map_err(|error| lost(&error))? {
            match checked(reply)? {
                Ok(_) => killed += 1,
                // It went by itself in between.
                Err(gone) if gone.error.message.whole().contains("No such client") => {}
                Err(refused) => return Ok(Fenced::Refused(refused.error.message)),
            }
        }
        // A server with threads of its own for sockets lets a client go a little later.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(Fenced::Refused("the server still lists clients that were killed".into()))
}

/// Tells of a client under our name that is none of this run's.
fn meet(shared: &Shared, prefix: &str, client: &Client<'_>) {
    let Some((run, number)) = client.name.strip_prefix(prefix).and_then(|it| it.split_once(':'))
    else {
        return;
    };
    let Ok(number) = number.parse() else { return };
    // The server counts whole seconds.
    let young = client.age.is_some_and(|age| Duration::from_secs(age + 1) < since_start().0);
    if !shared.is_own_run(run) {
        shared.settings.twins.met(run, number, young);
    }
}

fn client(line: &str) -> Option<Client<'_>> {
    let field =
        |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let age = field("age").and_then(|age| age.parse().ok());
    Some(Client { id: field("id")?, name: field("name")?, age })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_read_by_its_id_and_name() {
        let line = "id=6 addr=127.0.0.1:56598 laddr=127.0.0.1:7390 fd=7 name=fusebox:a:b:1 age=0";
        assert_eq!(client(line), Some(Client { id: "6", name: "fusebox:a:b:1", age: Some(0) }));
        assert_eq!(client("id=6 name="), Some(Client { id: "6", name: "", age: None }));
        assert_eq!(client("nothing"), None);
    }
}
