//! The daemon's face to the world: configuration, doors, command line, and all wiring on one screen.

use std::{path::PathBuf, pin::pin, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use axum::Router;
use fusebox_actors::{Fusebox, trace::TraceSink};
use tokio::{net::TcpListener, task::JoinSet};

mod agreed;
mod alerts;
mod changes;
pub mod cli;
mod config;
mod daemon;
pub mod demo;
mod doors;
mod exact;
mod http_api;
mod ingress;
pub mod kinds;
pub mod net;
mod selftest;
mod signals;
mod since;
mod sources;
mod state_dir;
mod systemd;
mod telemetry;
mod terminal;
mod traces;

use crate::{
    config::{BackendConfig, Config, later},
    daemon::Daemon,
    doors::Bound,
    http_api::{
        http::{GOODBYE, Server},
        routes,
    },
    ingress::{
        handed::Handed,
        listener::Listener,
        peer::Policy,
        socket::{self, OwnSocket},
    },
    signals::Signals,
    sources::Sources,
    state_dir::StateDir,
    traces::Traces,
};

/// The longest that stopping takes.
const GRACE: Duration = Duration::from_secs(25);

/// Runs the daemon until a signal stops it.
///
/// # Errors
/// What kept it from starting.
async fn run(config: Config, sources: Sources) -> anyhow::Result<ExitCode> {
    let test_hooks = sources.env.get("FUSEBOX_TEST_HOOKS") == Some("1");
    let state_dir = Arc::new(StateDir::open(&config.state_dir)?);
    let identity = daemon::identity(&state_dir, &config);
    let (policy, unknown) = Policy::resolve(&config.client_group, &config.admin_group);
    tell(&config, &unknown);
    note_settings(&state_dir, &config);

    // Listening before the stores are open makes callers wait in the backlog instead of failing.
    let Listening { socket, own_socket, api, doors } = Listening::begin(&config, policy).await?;
    let traces =
        Traces::start(&sources.env, config.keep_unsampled, &identity.instance).map(Arc::new);
    let sink = traces.as_ref().map(|traces| Arc::clone(&traces.sink) as Arc<dyn TraceSink>);
    let mut signals = Signals::new()?;
    let specs = daemon::specs(&config.backends, &identity).map_err(anyhow::Error::msg)?;
    let stores: Vec<_> = config.backends.iter().map(BackendConfig::store).collect();
    state_dir.look_for_stores(&stores);
    let mut system = config.system(identity.instance.clone());
    system.copied = state_dir.copied();
    let backends = config.backends.len();
    let begin = async {
        let fusebox = Fusebox::start(system, specs, sink).await?;
        let daemon =
            Daemon::new(fusebox, config, identity, sources, traces.clone(), Arc::clone(&state_dir));
        daemon.remember_stores();
        daemon.tell_losses();
        // Before the API answers: nobody else changes settings so far.
        daemon.keep_changes().await;
        anyhow::Ok(daemon)
    };
    let daemon = tokio::select! {
        started = begin => started?,
        // Recovery, or a slow disk, can take long; breaking it off is no worse than a crash.
        () = signals.stop() => return Ok(ExitCode::SUCCESS),
    };
    let router = routes::router(Arc::clone(&daemon), test_hooks);
    let server = server(router, policy, &daemon);
    let mut serving = JoinSet::new();
    // Before the API answers, so that no page is without the doors.
    let door_sockets = daemon.start_doors(doors, policy, &mut serving)?;
    for listener in api {
        serving.spawn(Arc::clone(&server).serve(listener));
    }
    let mut helpers = JoinSet::new();
    helpers.spawn(systemd::watchdog(Arc::clone(&daemon)));
    helpers.spawn(daemon::outlive_earlier_runs(Arc::clone(&daemon)));
    helpers.spawn(daemon::leave_the_name_to_twins(Arc::clone(&daemon)));
    helpers.spawn(daemon::settings::take_back_in_time(Arc::clone(&daemon)));
    helpers.spawn(daemon::alerts::run_on_alerts(Arc::clone(&daemon)));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), socket = %socket.display(), backends, "ready");
    systemd::ready("serving");

    let code = until_stopped(&daemon, &mut signals).await;
    systemd::stopping(GRACE);
    // From here on a new daemon may take the sockets' places; what is connected is served to its end.
    drop((own_socket, door_sockets));
    daemon.stop();
    daemon.remember_stores();
    finish(&daemon, &mut serving).await;
    if let Some(traces) = traces {
        traces.end().await;
    }
    drop(state_dir);
    tracing::info!("stopped");
    Ok(code)
}

/// Logs what should be looked at, and what is worth knowing, of the configuration.
fn tell(config: &Config, unknown_groups: &[String]) {
    config.tell_warnings(unknown_groups);
    for note in &config.notes {
        tracing::info!("{note}");
    }
}

/// Notes in the state directory which settings there are, for an earlier release that is installed over this one.
fn note_settings(state_dir: &StateDir, config: &Config) {
    let path = state_dir.path();
    let noted = match later::note(path, &config.declared) {
        Ok(None) => return,
        Ok(Some(note)) => state_dir::replace(path, later::NAME, &note),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = noted {
        tracing::warn!(%error, "the list of this release's settings could not be saved: an earlier release may refuse \
                                some of them");
    }
}

/// What listens.
struct Listening {
    /// The path of the API's own socket.
    socket: PathBuf,
    /// That socket, if it was made and not handed over.
    own_socket: Option<OwnSocket>,
    /// The API's listeners.
    api: Vec<Listener>,
    /// The wire doors'.
    doors: Vec<Bound>,
}

impl Listening {
    /// Listens at the addresses of `config`. Whatever this process makes afterwards is for its own user alone.
    ///
    /// # Errors
    /// A socket that cannot be listened at.
    async fn begin(config: &Config, policy: Policy) -> anyhow::Result<Self> {
        let mut handed = Handed::of_process();
        let (unix, own_socket) = if let Some(listener) = handed.command(&config.doors)? {
            (listener, None)
        } else {
            let (listener, own) = socket::bind(&config.socket, policy.clients)?;
            (listener, Some(own))
        };
        // If it was handed over, the configuration may name another place.
        let socket = unix.local_addr()?;
        let socket = socket.as_pathname().unwrap_or(&config.socket).to_owned();
        let doors = doors::bind(&config.doors, &socket, policy.clients, &mut handed).await?;
        // The sockets have the modes that they are to have.
        keep_private();
        let mut api = vec![Listener::Unix(unix)];
        if let Some(http) = &config.http {
            let tcp = TcpListener::bind(http.listen).await;
            let tcp = tcp.with_context(|| format!("cannot listen at {}", http.listen))?;
            api.push(Listener::Tcp(tcp));
        }
        Ok(Self { socket, own_socket, api, doors })
    }
}

/// What serves the daemon's listeners.
fn server(router: Router, policy: Policy, daemon: &Arc<Daemon>) -> Arc<Server> {
    let gate = Arc::clone(&daemon.gate);
    let of_tls = Arc::clone(daemon);
    Server::new(router, policy, gate, daemon.stopping(), Box::new(move || of_tls.tls()))
}

/// What this process makes from here on is for its own user alone, whatever umask it was started with.
fn keep_private() {
    use nix::sys::stat::{Mode, umask};
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
}

/// Waits for the signal that stops the daemon, or for its core to fail. Reloads on SIGHUP, and breaks that off for
/// either.
async fn until_stopped(daemon: &Arc<Daemon>, signals: &mut Signals) -> ExitCode {
    let reload = async || {
        systemd::reloading();
        // The reload itself reports its result.
        drop(daemon.reload("SIGHUP").await);
        systemd::ready("serving");
    };
    tokio::select! {
        () = signals.obey(reload) => ExitCode::SUCCESS,
        why = daemon.fusebox.failed() => {
            tracing::error!(why, "the core failed: the process ends and must be restarted");
            ExitCode::FAILURE
        }
    }
}

/// Serves what is connected to its end, and ends the core, within [`GRACE`] and little more.
async fn finish(daemon: &Daemon, serving: &mut JoinSet<()>) {
    let stopping = async {
        let mut gone = pin!(async { while serving.join_next().await.is_some() {} });
        // Calls that come while connections end are carried like any other.
        let early = tokio::time::timeout(GOODBYE * 2, &mut gone).await;
        daemon.fusebox.shutdown(GRACE.saturating_sub(GOODBYE * 2)).await;
        if early.is_err() {
            gone.await;
        }
    };
    if tokio::time::timeout(GRACE + Duration::from_secs(2), stopping).await.is_err() {
        tracing::warn!("stopped before everything was done");
    }
}
