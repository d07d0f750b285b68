//! How a link comes up, and what is noted when its connection ends.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use fusebox_actors::connector::Aboard;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::Instant,
};

use super::{Link, Purpose, State};
use crate::kinds::redis::{
    protocol::resp,
    transport::{
        driver::{Debts, Driver, Ended, Order, Request},
        handshake::{Failed, Ready},
        open::{self, Opened},
        server_info::ServerInfo,
        shared::Shared,
    },
};

/// The first pause after a failed connect, doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(50);

impl Link {
    /// Connects, raises the fence if writes are to pass, and goes up.
    pub(super) async fn connect(self: Arc<Self>, failures: u32) {
        match self.open().await {
            Ok(opened) => self.go_up(opened),
            Err(failed) => {
                tracing::debug!(backend = self.shared.settings.name, error = %failed.error, "no connection");
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

    async fn open(&self) -> Result<Opened, Failed> {
        let opened = open::open(&self.shared, self.protocol).await?;
        if self.purpose == Purpose::Reads {
            return Ok(opened);
        }
        self.enter(|state| match state {
            State::Connecting { failures, .. } => {
                Some(State::Connecting { failures: *failures, fencing: true })
            }
            _ => None,
        });
        open::fenced(&self.shared, opened).await
    }

    fn go_up(&self, opened: Opened) {
        let Opened { ready: Ready { dialogue, info, .. }, living, covers } = opened;
        let (orders, received) = mpsc::unbounded_channel();
        if self.purpose == Purpose::Reads {
            self.learn(&info, &orders);
        }
        self.shared.met(info);
        let close = Arc::new(Notify::new());
        let timeout = self.shared.settings.timeout;
        let driver = Driver::new(dialogue, received, Arc::clone(&close), timeout);
        let name = living.name.clone();
        let went_up = self.enter(|state| match state {
            State::Connecting { .. } => Some(State::Up { name, orders, close, covers }),
            _ => None,
        });
        if went_up {
            if self.purpose == Purpose::Writes {
                self.shared.fence_stands(covers);
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
        shared.lost();
    }
    link.enter(|state| match state {
        State::Up { name: current, .. } if current == name => {
            Some(State::Down { until: Instant::now(), failures: 0, failed: None })
        }
        _ => None,
    });
}
