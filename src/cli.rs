//! The command line: parses it, runs the command, ends with the right exit code.

use std::{ffi::OsString, process::ExitCode, sync::Arc};

use clap::Parser;

mod args;
mod backends;
mod board;
mod call;
mod chaos;
mod check;
mod doors;
mod events;
mod explain;
mod export_lines;
mod manual;
mod orders;
mod queue;
mod queue_drain;
mod queue_import;
mod queue_offline;
mod schema;
mod selftest;
mod settings;
mod simulate;
mod status;
mod stores;
mod watch;

use crate::{
    config::{Environment, Flags, places},
    demo,
    sources::{Sources, load_config},
    telemetry,
    terminal::{
        client::Client,
        failure::{Done, Failure},
        print::complain,
    },
};
use args::{Cli, Command, Output};

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

/// Runs the command that `arguments` say, the first of which is the program's name. Wrong ones end the process.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match dispatch(Cli::parse_from(arguments)) {
        Ok(code) => code,
        Err(failure) => {
            complain(&format!("fusebox: {failure}"));
            ExitCode::from(failure.code)
        }
    }
}

fn dispatch(cli: Cli) -> Done {
    let Cli { config, state_dir, socket, command } = cli;
    let env = Environment::of_process();
    let mut flags = Flags { config, state_dir, socket, http: None };
    match command {
        Command::Run { http, log_format, parent } => {
            if let Some(parent) = parent {
                die_with(parent)?;
            }
            flags.http = http;
            telemetry::init(log_format);
            run_daemon(Sources { flags, env })
        }
        Command::Demo { seconds, seed } => {
            telemetry::init(telemetry::LogFormat::Plain);
            let options = demo::DemoOptions { seconds, seed };
            Ok(runtime(workers())?.block_on(demo::run(options))?)
        }
        Command::Check { startup, output } => check::run(&flags, &env, startup, output.json),
        Command::Config(args::ConfigOrder::Schema { format }) => schema::print(format),
        Command::Selftest { time, output } => {
            selftest::run(&state_dir_of(&flags, &env)?, time, output.json)
        }
        Command::Simulate(wanted) => simulate::run(wanted),
        Command::SelftestWriter { dir } => selftest::write(&dir),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man => manual::man(),
        Command::Queue(args::QueueArgs { backend, command: args::QueueCommand::Drain(wanted) }) => {
            if flags.state_dir.is_none() {
                return Err(Failure::usage("name the directory with --state-dir"));
            }
            crate::keep_private();
            telemetry::init(telemetry::LogFormat::Plain);
            let config = load_config(&flags, &env)?;
            let host = stores::Host::of(&flags, &env);
            let drained = queue_drain::run(config, &host, backend.as_deref(), wanted);
            let runtime = runtime(workers())?;
            let done = runtime.block_on(drained);
            runtime.shutdown_timeout(std::time::Duration::from_secs(1));
            telemetry::finish();
            done
        }
        Command::Queue(queue) if queue.command.is_offline() => {
            crate::keep_private();
            let host = stores::Host::of(&flags, &env);
            queue_offline::run(queue, &state_dir_of(&flags, &env)?, &host)
        }
        command => {
            let client = Arc::new(Client::new(socket_of(&flags, &env)?));
            let answer = async {
                tokio::select! {
                    done = ask(command, &client) => done,
                    _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(130)),
                }
            };
            runtime(0)?.block_on(answer)
        }
    }
}

/// The commands that speak to the daemon.
async fn ask(command: Command, client: &Arc<Client>) -> Done {
    match command {
        Command::Status { watch: true, exit_code, output: Output { json: true } } => {
            watch::lines(client, exit_code).await
        }
        Command::Status { watch: true, exit_code, .. } => watch::run(client, exit_code).await,
        Command::Status { exit_code, output, .. } => {
            status::status(client, exit_code, output).await
        }
        Command::Explain { backend, output } => explain::explain(client, &backend, output).await,
        Command::Events(wanted) => events::run(client, wanted).await,
        Command::Call(call) => call::run(client, call).await,
        Command::Breaker { backend, order, reason, lasting } => {
            orders::breaker(client, &backend, order, reason, lasting).await
        }
        Command::TraceTest { output } => orders::trace_test(client, output.json).await,
        Command::Recover { backend } => orders::recover(client, backend.as_deref()).await,
        Command::Offline { backend } => orders::offline(client, &backend, true).await,
        Command::Online { backend } => orders::offline(client, &backend, false).await,
        Command::Backend(args::BackendOrder::AcceptRetarget { backend }) => {
            orders::accept_retarget(client, &backend).await
        }
        Command::Backend(args::BackendOrder::AcceptClone) => orders::accept_clone(client).await,
        Command::Backend(args::BackendOrder::AcceptLoss { backend }) => {
            orders::accept_loss(client, &backend).await
        }
        Command::LogLevel { filter, lasting, usual } => {
            orders::log_level(client, filter, lasting, usual).await
        }
        Command::Chaos(order) => chaos::run(client, order).await,
        Command::Config(order) => settings::run(client, order).await,
        Command::Queue(queue) => queue::run(client, queue).await,
        Command::Run { .. }
        | Command::Demo { .. }
        | Command::Check { .. }
        | Command::Selftest { .. }
        | Command::Simulate(_)
        | Command::SelftestWriter { .. }
        | Command::Completions { .. }
        | Command::Man => Err(Failure::usage("this command does not use a daemon")),
    }
}

fn run_daemon(sources: Sources) -> Done {
    let config = sources.load(&[])?;
    let runtime = runtime(workers())?;
    let ended = runtime.block_on(crate::run(config, sources));
    // Whatever a blocking thread still does must not keep a stopped daemon alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    telemetry::finish();
    Ok(ended?)
}

/// Makes the kernel kill this process when `parent`, which started it, is gone: nobody may have been
/// left to do it.
fn die_with(parent: u32) -> Result<(), Failure> {
    use nix::sys::{prctl, signal::Signal};
    prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|error| Failure::failed(format!("cannot be tied to process {parent}: {error}")))?;
    if std::os::unix::process::parent_id() != parent {
        return Err(Failure::failed(format!("process {parent} is gone already")));
    }
    Ok(())
}

/// Two at most: the daemon's work is short, and its host has other things to do.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(2))
}

/// A runtime of so many workers; 0 is the calling thread alone.
fn runtime(workers: usize) -> Result<tokio::runtime::Runtime, Failure> {
    let built = match workers {
        0 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        workers => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .thread_name("fusebox")
            .enable_all()
            .build(),
    };
    built.map_err(|error| Failure::failed(format!("cannot start a runtime: {error}")))
}

/// The state directory of a command that reads stores itself. Wants no valid configuration: a store
/// must be readable if the file is broken.
fn state_dir_of(flags: &Flags, env: &Environment) -> Result<std::path::PathBuf, Failure> {
    if let Some(dir) = &flags.state_dir {
        return Ok(dir.clone());
    }
    let configured = load_config(flags, env).ok().map(|config| config.state_dir);
    let found = configured.or_else(|| places::state_dir(env));
    found.ok_or_else(|| Failure::usage("no state directory is known: name it with --state-dir"))
}

/// The socket at which the daemon is expected.
fn socket_of(flags: &Flags, env: &Environment) -> Result<std::path::PathBuf, Failure> {
    if let Some(socket) = &flags.socket {
        return Ok(socket.clone());
    }
    let config = load_config(flags, env).ok();
    if let Some(config) = config.filter(|config| config.socket_asked) {
        return Ok(config.socket);
    }
    let state_dir = state_dir_of(flags, env).ok();
    let found = places::socket_to_call(env, state_dir.as_deref());
    found.ok_or_else(|| Failure::usage("no socket is known: name it with --socket"))
}
