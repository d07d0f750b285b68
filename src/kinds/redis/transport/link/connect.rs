//! How a link comes up, and what is noted when its connection ends.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use fusebox_actors::connector::Aboard;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, timeout},
};

use super::{Link, Purpose, State};
use crate::kinds::redis::{
    protocol::resp,
    transport::{
        driver::{Debts, Driver, Ended, Order, Request},
        fence::{self, Fenced},
        handshake::{self, Failed, Ready, ServerInfo},
        shared::{Living, Shared},
    },
};

/// The first pause after a failed connect, doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(50);

impl Link {
    /// Connects, raises the fence where writes are to pass, and goes up.
    pub(super) async fn connect(self: Arc<Self>, failures: u32) {
        let living = self.shared.new_name();
        let limit = self.shared.settings.timeout;
        let connected = match timeout(limit, handshake::connect(&self.shared, &living.name)).await {
            Ok(connected) => connected,
            Err(_) => Err(Failed::connect(format!("no connection within {limit:?}"))),
        };
        let fenced = match connected {
            Ok(ready) if self.purpose == Purpose::Writes => self.fence(ready, &living.name).await,
            other => other,
        };
        match fenced {
            Ok(ready) => self.go_up(ready, living),
            Err(failed) => {
                tracing::debug!(backend = self.shared.settings.name, error = %failed.error, "no connection");
                drop(living);
                let failures = failures.saturating_add(1);
                let pause = PAUSE_MIN.saturating_mul(1 << failures.min(6)).min(PAUSE_MAX);
                let until = Instant::now() + pause.mul_f64(0.5 + fastrand::f64() / 2.0);
                self.enter(|state| match state {
                    State::Connecting { .. } => {
                        Some(State::Down { until, failures, failed: Some(failed) })
                    }
                    _ => None,
                });
            }
        }
    }

    async fn fence(&self, mut ready: Ready, name: &str) -> Result<Ready, Failed> {
        self.enter(|state| match state {
            State::Connecting { failures, .. } => {
                Some(State::Connecting { failures: *failures, fencing: true })
            }
            _ => None,
        });
        let limit = self.shared.settings.timeout;
        let fenced = if ready.named {
            match timeout(limit, fence::raise(&mut ready.dialogue, &self.shared, name)).await {
                Ok(fenced) => fenced?,
                Err(_) => return Err(Failed::connect(format!("no fence within {limit:?}"))),
            }
        } else {
            Fenced::Refused("CLIENT SETNAME is refused".into())
        };
        let warning = match fenced {
            Fenced::Clear(killed) => {
                if killed > 0 {
                    tracing::info!(
                        backend = self.shared.settings.name,
                        killed,
                        "old connections killed"
                    );
                }
                None
            }
            Fenced::Refused(why) => Some(why.within(|why| {
                format!(
                    "abandoned writes cannot be fenced off ({why}): after a broken connection writes wait \
                     twice the timeout instead"
                )
            })),
        };
        let refused = warning.is_some();
        self.shared.warn("fence", warning);
        if refused {
            let until = *self.shared.abandoned.lock() + limit * 2;
            tokio::time::sleep_until(until).await;
        }
        Ok(ready)
    }

    fn go_up(&self, ready: Ready, living: Living) {
        let Ready { dialogue, info, .. } = ready;
        let (orders, received) = mpsc::unbounded_channel();
        if self.purpose == Purpose::Reads {
            self.learn(&info, &orders);
        }
        self.shared.warn(
            "replica",
            info.replica.then(|| "the server is a replica: it refuses writes".into()),
        );
        *self.shared.server.lock() = Some(info);
        let close = Arc::new(Notify::new());
        let timeout = self.shared.settings.timeout;
        let driver = Driver::new(dialogue, received, Arc::clone(&close), timeout);
        let name = living.name.clone();
        let went_up = self.enter(|state| match state {
            State::Connecting { .. } => Some(State::Up { name, orders, close }),
            _ => None,
        });
        if went_up {
            if self.purpose == Purpose::Writes {
                // Behind the fence.
                self.shared.may_land.store(false, Ordering::Release);
            }
            let link = Weak::clone(&self.myself);
            tokio::spawn(async move {
                let (debts, orders) = driver.run().await;
                let shared = Arc::clone(&living.shared);
                let name = living.name.clone();
                // The socket is closed: from here on the fence may kill what is left of it.
                drop(living);
                ended(&shared, link.upgrade().as_deref(), &name, &debts);
                debts.settle(orders);
            });
        }
    }

    /// Has the server tell its commands, once for each of its runs.
    fn learn(&self, info: &ServerInfo, orders: &mpsc::UnboundedSender<Order>) {
        let mut learnt_of = self.shared.learnt_of.lock();
        if self.shared.commands.has_learnt() && *learnt_of == info.run_id {
            return;
        }
        learnt_of.clone_from(&info.run_id);
        let (reply, told) = oneshot::channel();
        let (command, begun) = (resp::command(&["COMMAND"]), Instant::now());
        let request = Request { command, reply, begun, aboard: Aboard::NOBODY, room: None };
        drop(orders.send(Order::Call(request)));
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            if let Ok(Ended::Reply(reply)) = told.await
                && resp::error_of(&reply).is_none()
            {
                shared.commands.learn(&reply);
            }
        });
    }
}

/// Notes that the connection `name` has ended, before its callers hear of it.
fn ended(shared: &Shared, link: Option<&Link>, name: &str, debts: &Debts) {
    tracing::debug!(backend = shared.settings.name, name, cause = ?debts.cause(), "connection ended");
    let Some(link) = link else { return };
    if link.purpose == Purpose::Writes && debts.in_doubt() {
        *shared.abandoned.lock() = Instant::now();
        shared.may_land.store(true, Ordering::Release);
    }
    link.enter(|state| match state {
        State::Up { name: current, .. } if current == name => {
            Some(State::Down { until: Instant::now(), failures: 0, failed: None })
        }
        _ => None,
    });
}
