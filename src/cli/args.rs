//! The command line's grammar: help, man page and completions are made from it.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use crate::telemetry::LogFormat;

/// A daemon between a host's programs and the services they depend on.
#[derive(Debug, Parser)]
#[command(
    name = "fusebox",
    version,
    about,
    after_help = "Exit codes: 0 done, 1 the operation failed, 2 usage or configuration, 3 no daemon at \
                  the socket, 4 backend unavailable and no fallback, 5 damage found (queue check)."
)]
pub(crate) struct Cli {
    /// The configuration file [default: /etc/fusebox/fusebox.toml if it exists]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// The state directory, which contains the stores and caches
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) state_dir: Option<PathBuf>,
    /// The path of the command socket
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) socket: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What is simulated.
#[derive(Debug, Args)]
pub(crate) struct Simulated {
    /// The seed of all random choices: the same seed gives the same hash [default: random]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Simulated hours of faults, 1 to 8760
    #[arg(long, default_value_t = 24, value_name = "H",
          value_parser = clap::value_parser!(u32).range(1..=8_760))]
    pub(crate) hours: u32,
    /// How many simulations to run, each with the next seed
    #[arg(long, default_value_t = 1, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) runs: u32,
    /// Print every event
    #[arg(long, conflicts_with = "json")]
    pub(crate) events: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs the daemon
    Run {
        /// Listen also on this TCP address, for health, metrics and the status page
        #[arg(long, value_name = "ADDR")]
        http: Option<String>,
        /// The format of the log
        #[arg(long, value_enum, default_value_t)]
        log_format: LogFormat,
        /// End when this process, which started the daemon, ends
        #[arg(long, value_name = "PID", hide = true)]
        parent: Option<u32>,
    },
    /// Shows an outage, a killed daemon and a recovery, with stand-ins for Redis, ClickHouse and Firestore
    Demo {
        /// About how many seconds the demo takes, at least 15: the recovery alone takes about 12
        #[arg(long, default_value_t = 20, value_name = "N",
              value_parser = clap::value_parser!(u32).range(3..=600))]
        seconds: u32,
        /// The seed of the random choices
        #[arg(long, default_value_t = 1, value_name = "N")]
        seed: u64,
    },
    /// Validates the configuration and prints the effective one, with secrets masked
    Check {
        /// Fail only on errors that would stop the daemon (for `ExecStartPre`)
        #[arg(long)]
        startup: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Shows the state of the system and of every backend
    Status {
        /// Update it continuously, on the whole terminal; with --json, print one object a line, every second
        #[arg(long)]
        watch: bool,
        /// Set the exit code: 0 for HEALTHY, 1 for DEGRADED, 2 for CRITICAL, 3 for EMERGENCY. With --watch, by the
        /// state that was last shown
        #[arg(long)]
        exit_code: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Explains why a backend's breaker is in its state
    Explain {
        /// The backend's name, as `fusebox status` shows it
        backend: String,
        #[command(flatten)]
        output: Output,
    },
    /// Shows past events and, with --follow, new ones
    Events(EventsArgs),
    /// Sends a call; for Redis, a command such as: fusebox call redis -- GET key
    Call(CallArgs),
    /// Forces, releases or resets a breaker
    Breaker {
        /// The backend's name, as `fusebox status` shows it
        backend: String,
        /// What to do with the breaker
        #[arg(value_enum)]
        order: BreakerOrder,
        /// The reason: of a forced state it is stored and shown, of a release or reset it is logged
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// How long the breaker stays forced [default: until it is released]
        #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
        lasting: Option<Duration>,
    },
    /// Tries a recovery now, for one backend or for every open one
    Recover {
        /// The backend's name [default: every backend whose breaker is open]
        backend: Option<String>,
    },
    /// Sends one trace and shows whether the collector accepted it
    TraceTest {
        #[command(flatten)]
        output: Output,
    },
    /// Takes a backend offline: it gets no calls, pings or replay until it is taken online
    Offline {
        /// The backend's name, as `fusebox status` shows it
        backend: String,
    },
    /// Takes a backend online again
    Online {
        /// The backend's name, as `fusebox status` shows it
        backend: String,
    },
    /// Confirms that a changed address, a copied state directory or a lost store is intended
    #[command(subcommand)]
    Backend(BackendOrder),
    /// Causes faults on purpose, for a limited time, to find out what an outage does
    #[command(subcommand)]
    Chaos(ChaosOrder),
    /// Manages the queue of waiting writes, and its dead letters
    Queue(QueueArgs),
    /// Tests whether acknowledged writes survive on the state directory's disk: kills, reopens and verifies
    Selftest {
        /// How long the test runs
        #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
        time: Duration,
        #[command(flatten)]
        output: Output,
    },
    /// Runs the real actors through simulated hours of faults, and checks that their guarantees hold
    Simulate(Simulated),
    /// The process that `selftest` kills
    #[command(hide = true)]
    SelftestWriter {
        /// The folder of the store
        dir: PathBuf,
    },
    /// Shows and changes the daemon's configuration
    #[command(subcommand)]
    Config(ConfigOrder),
    /// Shows the filter of the log; with FILTER, changes it until the next start
    LogLevel {
        /// The new filter, such as info, or debug,fusebox=trace
        filter: Option<String>,
        /// How long the filter applies [default: until the next start]
        #[arg(long = "for", value_name = "DURATION", requires = "filter",
              value_parser = humantime::parse_duration)]
        lasting: Option<Duration>,
        /// Restore the usual filter
        #[arg(long, conflicts_with = "filter")]
        usual: bool,
    },
    /// Prints the completions for a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Prints the man page
    Man,
}

#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Output {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Continue with new events
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Show events since then: a duration such as 2h, or a time such as 2026-11-23T16:00:00Z
    #[arg(long, value_name = "WHEN")]
    pub(crate) since: Option<String>,
    /// Show only events of this backend, and events that concern all backends
    #[arg(long)]
    pub(crate) backend: Option<String>,
    /// Show at most this many past events [default: 20; with --since, all]
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u32>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct CallArgs {
    /// The backend's name, as `fusebox status` shows it
    pub(crate) backend: String,
    /// Give up after this long
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) deadline: Option<Duration>,
    /// The greatest age that a value from the cache may have
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) max_stale: Option<Duration>,
    /// The priority of the call: when the system must shed calls, it sheds those of priority low
    #[arg(long, value_enum)]
    pub(crate) priority: Option<PriorityArg>,
    /// What the reply to a write must promise
    #[arg(long, value_enum)]
    pub(crate) min_ack: Option<MinAckArg>,
    /// The `op_id` of the write, a ULID
    #[arg(long)]
    pub(crate) op_id: Option<fusebox_state::OpId>,
    #[command(flatten)]
    pub(crate) output: Output,
    /// The call, as its kind of backend writes it
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub(crate) args: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PriorityArg {
    Low,
    Normal,
    Critical,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum MinAckArg {
    Applied,
    Durable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BreakerOrder {
    /// Lets no call through, even if the backend works
    ForceOpen,
    /// Lets every call through, even if calls fail
    ForceClose,
    /// Ends the forced state
    Release,
    /// Closes it, ends the forced state and resets the counts
    Reset,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::enum_variant_names, reason = "they are the commands' own names")]
pub(crate) enum BackendOrder {
    /// Lets calls that wait for the old address go to the new address
    AcceptRetarget {
        /// The backend's name, as `fusebox status` shows it
        backend: String,
    },
    /// Allows replay although this state directory is a copy or was copied: no other daemon may replay the same calls
    AcceptClone,
    /// Ends the alert that a backend's store was missing at a start
    AcceptLoss {
        /// The backend's name, as `fusebox status` shows it
        backend: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ChaosOrder {
    /// Lists the faults that are set, and how often each was used
    Ls {
        /// The backend [default: all]
        backend: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Sets faults, which replace those that are set
    Set(Box<ChaosSet>),
    /// Ends all faults of a backend
    Clear {
        /// The backend
        backend: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ChaosSet {
    /// The backend
    pub(crate) backend: String,
    /// The kind of fault: see docs/chaos.md
    #[arg(
        long,
        value_name = "error|reject|timeout|reset_before|reset_after|latency|slow_drip|stale_connection",
        required_unless_present = "file",
        conflicts_with = "file"
    )]
    pub(crate) kind: Option<String>,
    /// The share of attempts that the fault affects, such as 0.05
    #[arg(long, required_unless_present = "file", conflicts_with = "file")]
    pub(crate) rate: Option<f64>,
    /// The delay, for kinds that delay attempts
    #[arg(long, value_name = "DURATION", conflicts_with = "file")]
    pub(crate) latency: Option<String>,
    /// By how much the delay varies
    #[arg(long, value_name = "DURATION", conflicts_with = "file")]
    pub(crate) jitter: Option<String>,
    /// The server's own error code, for error and reject
    #[arg(long, conflicts_with = "file")]
    pub(crate) code: Option<String>,
    /// Which attempts the fault affects: read, write, ping or replay [default: reads and writes]
    #[arg(long, conflicts_with = "file")]
    pub(crate) class: Option<String>,
    /// Only calls of the user with this uid
    #[arg(long, conflicts_with = "file")]
    pub(crate) uid: Option<u32>,
    /// Only calls with this member in their baggage, such as chaos=1
    #[arg(long, value_name = "MEMBER", conflicts_with = "file")]
    pub(crate) baggage: Option<String>,
    /// Read the whole order, with one or more faults, from a JSON file; `-` reads standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// How long the faults last, at most 1h [default: 5m]
    #[arg(long = "for", value_name = "DURATION")]
    pub(crate) lasting: Option<String>,
    /// The seed that decides which attempts are affected [default: random]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Failures that the faults cause do not count for the breaker
    #[arg(long)]
    pub(crate) no_count: bool,
    /// The reason, which is stored and shown
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Allow a critical backend, a rate above 0.5, and faults of more than one backend at a time
    #[arg(long)]
    pub(crate) force: bool,
    /// How many attempts may be delayed at once [default: 10]
    #[arg(long, value_name = "N")]
    pub(crate) max_active: Option<u32>,
    /// The state of the system that ends the faults: critical, or with --force, emergency or never [default: critical]
    #[arg(long, value_name = "STATE")]
    pub(crate) abort_on: Option<String>,
    /// The share of failed calls above which the faults end
    #[arg(long, value_name = "SHARE")]
    pub(crate) abort_above: Option<f64>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigOrder {
    /// Prints the settings in effect, with secrets masked
    Show {
        /// Print one line for each setting, with the origin of its value
        #[arg(long)]
        sources: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Changes settings of the running daemon
    Set {
        /// KEY=VALUE of the daemon, such as `health.interval=10s`; or a backend, and KEY=VALUE of its section, such as
        /// `redis breaker.failure_threshold=7`
        #[arg(value_name = "[BACKEND] KEY=VALUE", required = true)]
        settings: Vec<String>,
        /// Undo the change after this time
        #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
        lasting: Option<Duration>,
        /// Keep the change after a restart
        #[arg(long)]
        persist: bool,
        /// Only show what would change
        #[arg(long)]
        dry_run: bool,
        /// Accept a value that endangers the service
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Undoes changes that were made with `set`
    Unset {
        /// KEYs of the daemon; or a backend, and KEYs of its section
        #[arg(value_name = "[BACKEND] KEY", required = true)]
        settings: Vec<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Reads the configuration again, as SIGHUP does
    Reload,
    /// Prints all settings with their bounds and defaults; needs no daemon
    Schema {
        /// The format
        #[arg(long, value_enum, default_value_t)]
        format: SchemaFormat,
    },
}

/// How `fusebox config schema` prints.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum SchemaFormat {
    /// A JSON schema, for editors
    #[default]
    Json,
    /// A configuration file with every default and an explanation of each setting
    Toml,
    /// The page docs/configuration.md
    Markdown,
}

#[derive(Debug, Args)]
pub(crate) struct QueueArgs {
    /// The backend whose queue is meant [default: all; a call is found by its `op_id`]
    #[arg(long, global = true)]
    pub(crate) backend: Option<String>,
    #[command(subcommand)]
    pub(crate) command: QueueCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// Lists the waiting calls
    Ls {
        /// The backend, the same as --backend
        name: Option<String>,
        /// List dead letters
        #[arg(long)]
        dead: bool,
        /// List at most this many
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: u32,
        #[command(flatten)]
        output: Output,
    },
    /// Shows one call
    Show {
        /// The call's `op_id`, as `fusebox queue ls` shows it
        op_id: fusebox_state::OpId,
    },
    /// Replays now: ends the waiting time before a retry, and a pause
    Replay {
        /// The backend, the same as --backend
        name: Option<String>,
    },
    /// Puts a dead letter back at the tail of its lane
    Requeue {
        /// The dead letter's `op_id`, as `fusebox queue ls --dead` shows it
        #[arg(required_unless_present = "from", conflicts_with = "from")]
        op_id: Option<fusebox_state::OpId>,
        /// Requeue the call even if its lane was, or may have been, written since
        #[arg(long)]
        force: bool,
        /// You have checked that the call was not applied: send it as a new call
        #[arg(long, conflicts_with = "from")]
        not_applied: bool,
        /// The same as `fusebox queue import FILE`
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        from: Option<PathBuf>,
    },
    /// Discards a call for good
    Discard {
        /// The call's `op_id`, as `fusebox queue ls` shows it
        op_id: fusebox_state::OpId,
    },
    /// Frees the disk space of calls that have left the queue
    Compact {
        /// The backend, the same as --backend
        name: Option<String>,
        /// Leave nothing of these calls in the state directory: delete also stores that were set aside
        #[arg(long)]
        purge: bool,
    },
    /// Writes the calls of the stores as JSON lines; needs no daemon
    Export {
        /// The folder of one store, such as one that is not used any more [default: all that the state directory uses]
        #[arg(value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
    /// Looks for damage in the stores and changes nothing; needs no daemon
    Check {
        #[command(flatten)]
        output: Output,
    },
    /// Replays the waiting calls of a state directory that no daemon uses; exits with 1 if some are left
    Drain(DrainArgs),
    /// Adds the calls of an export or a repair to the end of a queue, each with its own `op_id`
    Import {
        /// The file with the exported lines; `-` reads standard input
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Import also calls whose lane was, or may have been, written since: they will overwrite these writes
        #[arg(long)]
        force: bool,
        /// Import also calls that were accepted for another address
        #[arg(long)]
        retarget: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Writes the stores of a stopped daemon in the format of the previous release; needs no daemon
    Downgrade,
    /// Writes the calls that can be read from stores that were set aside as JSON lines; needs no daemon
    Repair {
        /// The folder of a store that was set aside [default: every one in the state directory]
        #[arg(value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// Give up if there is no progress for this long
    #[arg(long, default_value = "1m", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) patience: Duration,
    /// Replay although the directory is a copy: no other daemon has the same calls or will replay them
    #[arg(long)]
    pub(crate) accept_clone: bool,
    /// Send calls that wait for another address to the address in the configuration
    #[arg(long)]
    pub(crate) accept_retarget: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[cfg(test)]
mod tests;
