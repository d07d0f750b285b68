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
    /// The configuration file [default: /etc/fusebox/fusebox.toml if it is there]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// The folder of stores and caches
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) state_dir: Option<PathBuf>,
    /// The command socket
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) socket: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What is simulated.
#[derive(Debug, Args)]
pub(crate) struct Simulated {
    /// What all chance starts from: the same seed, the same hash [default: any]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Simulated hours of faults, 1 to 8760
    #[arg(long, default_value_t = 24, value_name = "H",
          value_parser = clap::value_parser!(u32).range(1..=8_760))]
    pub(crate) hours: u32,
    /// How many seeds, from that one on
    #[arg(long, default_value_t = 1, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) runs: u32,
    /// Prints all that happens
    #[arg(long, conflicts_with = "json")]
    pub(crate) events: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs the daemon
    Run {
        /// Listen on this TCP address too: health, metrics, status page
        #[arg(long, value_name = "ADDR")]
        http: Option<String>,
        /// How the log is written
        #[arg(long, value_enum, default_value_t)]
        log_format: LogFormat,
        /// End when this process ends, which started it
        #[arg(long, value_name = "PID", hide = true)]
        parent: Option<u32>,
    },
    /// Shows an outage, a killed daemon and a recovery, with stand-ins for Redis, ClickHouse and Firestore
    Demo {
        /// How long it takes, about, and at least 15: the recovery alone takes some 12
        #[arg(long, default_value_t = 20, value_name = "N",
              value_parser = clap::value_parser!(u32).range(3..=600))]
        seconds: u32,
        /// What its random choices start from
        #[arg(long, default_value_t = 1, value_name = "N")]
        seed: u64,
    },
    /// Validates the configuration and prints the effective one, secrets masked
    Check {
        /// Fail only on what would stop the daemon (for `ExecStartPre`)
        #[arg(long)]
        startup: bool,
        #[command(flatten)]
        output: Output,
    },
    /// The state of the system and of every backend
    Status {
        /// Show it as it changes, on the whole terminal; with --json an object a line, every second
        #[arg(long, conflicts_with = "exit_code")]
        watch: bool,
        /// End with 0 for HEALTHY, 1 DEGRADED, 2 CRITICAL, 3 EMERGENCY
        #[arg(long)]
        exit_code: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Why a backend's breaker is in its state
    Explain {
        /// The backend's name, as `fusebox status` shows it
        backend: String,
        #[command(flatten)]
        output: Output,
    },
    /// What happened, or with --follow what happens
    Events(EventsArgs),
    /// Sends a call; for redis a command, such as: fusebox call redis -- GET key
    Call(CallArgs),
    /// Forces, releases or resets a breaker
    Breaker {
        /// The backend's name, as `fusebox status` shows it
        backend: String,
        /// What is done with it
        #[arg(value_enum)]
        order: BreakerOrder,
        /// Why; kept and shown
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// For how long it is forced [default: until released]
        #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
        lasting: Option<Duration>,
    },
    /// Tries to recover now, one backend or every open one
    Recover {
        /// The backend's name [default: every backend whose breaker is open]
        backend: Option<String>,
    },
    /// Sends one trace, and says whether the collector took it
    TraceTest {
        #[command(flatten)]
        output: Output,
    },
    /// Takes a backend offline: no calls, pings or replay until it is online again
    Offline {
        /// The backend's name, as `fusebox status` shows it
        backend: String,
    },
    /// Takes a backend online again
    Online {
        /// The backend's name, as `fusebox status` shows it
        backend: String,
    },
    /// Says that what an alert about an address, a copy or a lost store tells is meant to be
    #[command(subcommand)]
    Backend(BackendOrder),
    /// Faults on purpose, for a while: to see what an outage does before one comes
    #[command(subcommand)]
    Chaos(ChaosOrder),
    /// The queue of writes that wait, and its dead letters
    Queue(QueueArgs),
    /// Does an acknowledged write survive here? Kills, reopens and verifies, on the state directory's own disk
    Selftest {
        /// How long
        #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
        time: Duration,
        #[command(flatten)]
        output: Output,
    },
    /// The real actors through simulated hours of faults: does what they promise hold?
    Simulate(Simulated),
    /// What `selftest` kills
    #[command(hide = true)]
    SelftestWriter {
        /// The store
        dir: PathBuf,
    },
    /// The daemon's configuration
    #[command(subcommand)]
    Config(ConfigOrder),
    /// What the daemon logs; with a filter, changes it until the next start
    LogLevel {
        /// Such as info, or debug,fusebox=trace
        filter: Option<String>,
        /// For how long [default: until the next start]
        #[arg(long = "for", value_name = "DURATION", requires = "filter",
              value_parser = humantime::parse_duration)]
        lasting: Option<Duration>,
        /// Back to what is usual
        #[arg(long, conflicts_with = "filter")]
        usual: bool,
    },
    /// Prints a shell's completions
    Completions {
        /// Which shell
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
    /// Go on with what happens from now on
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// From then on: a duration such as 2h, or a time such as 2026-11-23T16:00:00Z
    #[arg(long, value_name = "WHEN")]
    pub(crate) since: Option<String>,
    /// Only of this backend, and what concerns all
    #[arg(long)]
    pub(crate) backend: Option<String>,
    /// At most so many of the past [default: 20, with --since all]
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
    /// The oldest fallback value to take
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) max_stale: Option<Duration>,
    /// How much it matters when something must be shed
    #[arg(long, value_enum)]
    pub(crate) priority: Option<PriorityArg>,
    /// What a write's reply must promise
    #[arg(long, value_enum)]
    pub(crate) min_ack: Option<MinAckArg>,
    /// The write's name, a ULID
    #[arg(long)]
    pub(crate) op_id: Option<fusebox_state::OpId>,
    #[command(flatten)]
    pub(crate) output: Output,
    /// The call
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
    /// Lets no call through, whatever the backend does
    ForceOpen,
    /// Lets every call through, however often it fails
    ForceClose,
    /// Ends what was forced
    Release,
    /// Closes it, ends what was forced, and forgets what it counted
    Reset,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::enum_variant_names, reason = "they are the commands' own names")]
pub(crate) enum BackendOrder {
    /// Lets calls that wait for the old address go to the new one
    AcceptRetarget {
        /// The backend's name, as `fusebox status` shows it
        backend: String,
    },
    /// Lets this state directory replay though it is a copy, or has one: no other daemon may replay the same calls
    AcceptClone,
    /// Ends the alert that a backend's store was gone at a start
    AcceptLoss {
        /// The backend's name, as `fusebox status` shows it
        backend: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ChaosOrder {
    /// Lists what is set, with its hits
    Ls {
        /// The backend [default: all]
        backend: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Sets faults in place of those that are set
    Set(Box<ChaosSet>),
    /// Ends them
    Clear {
        /// The backend
        backend: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ChaosSet {
    /// The backend
    pub(crate) backend: String,
    /// What happens: see docs/chaos.md
    #[arg(
        long,
        value_name = "error|reject|timeout|reset_before|reset_after|latency|slow_drip|stale_connection",
        required_unless_present = "file",
        conflicts_with = "file"
    )]
    pub(crate) kind: Option<String>,
    /// To which share of attempts, such as 0.05
    #[arg(long, required_unless_present = "file", conflicts_with = "file")]
    pub(crate) rate: Option<f64>,
    /// How long it takes, for kinds that delay
    #[arg(long, value_name = "DURATION", conflicts_with = "file")]
    pub(crate) latency: Option<String>,
    /// By how much that is more or less
    #[arg(long, value_name = "DURATION", conflicts_with = "file")]
    pub(crate) jitter: Option<String>,
    /// The server's own code, for error and reject
    #[arg(long, conflicts_with = "file")]
    pub(crate) code: Option<String>,
    /// What is struck: read, write, ping or replay [default: reads and writes]
    #[arg(long, conflicts_with = "file")]
    pub(crate) class: Option<String>,
    /// Only what this user calls
    #[arg(long, conflicts_with = "file")]
    pub(crate) uid: Option<u32>,
    /// Only calls with this member in its baggage, such as chaos=1
    #[arg(long, value_name = "MEMBER", conflicts_with = "file")]
    pub(crate) baggage: Option<String>,
    /// Takes the whole order from JSON, several faults perhaps; `-` reads standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// For how long, at most 1h [default: 5m]
    #[arg(long = "for", value_name = "DURATION")]
    pub(crate) lasting: Option<String>,
    /// What decides which attempts are struck [default: random]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// What happens does not count for the breaker
    #[arg(long)]
    pub(crate) no_count: bool,
    /// Why; kept and shown
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Also a critical backend, a rate above 0.5, beside another backend's
    #[arg(long)]
    pub(crate) force: bool,
    /// How many attempts are held up at once [default: 10]
    #[arg(long, value_name = "N")]
    pub(crate) max_active: Option<u32>,
    /// Which state of the system ends them: critical, or with --force emergency or never [default: critical]
    #[arg(long, value_name = "STATE")]
    pub(crate) abort_on: Option<String>,
    /// The share of failed calls that ends them
    #[arg(long, value_name = "SHARE")]
    pub(crate) abort_above: Option<f64>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigOrder {
    /// Prints the settings in effect, secrets masked
    Show {
        /// One line a setting, with the origin of its value
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
        /// Takes it back after this time
        #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
        lasting: Option<Duration>,
        /// Keeps it over restarts
        #[arg(long)]
        persist: bool,
        /// Only shows what would change
        #[arg(long)]
        dry_run: bool,
        /// Takes a value that endangers the service
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Takes back what was changed by `set`
    Unset {
        /// KEYs of the daemon; or a backend, and KEYs of its section
        #[arg(value_name = "[BACKEND] KEY", required = true)]
        settings: Vec<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Reads the configuration again, as SIGHUP does
    Reload,
    /// Prints all settings that there are, with their bounds and defaults; needs no daemon
    Schema {
        /// How
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
    /// A configuration file with every default, explained
    Toml,
    /// The page docs/configuration.md
    Markdown,
}

#[derive(Debug, Args)]
pub(crate) struct QueueArgs {
    /// Which backend's queue [default: all; a call is found by its name]
    #[arg(long, global = true)]
    pub(crate) backend: Option<String>,
    #[command(subcommand)]
    pub(crate) command: QueueCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// Lists what waits
    Ls {
        /// The backend, as --backend
        name: Option<String>,
        /// List dead letters
        #[arg(long)]
        dead: bool,
        /// At most this many
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: u32,
        #[command(flatten)]
        output: Output,
    },
    /// Shows one call
    Show {
        /// The call's name, as `fusebox queue ls` shows it
        op_id: fusebox_state::OpId,
    },
    /// Replays now: forgets backoffs and lifts a pause
    Replay {
        /// The backend, as --backend
        name: Option<String>,
    },
    /// Puts a dead letter back at the tail of its lane
    Requeue {
        /// The dead letter's name, as `fusebox queue ls --dead` shows it
        #[arg(required_unless_present = "from", conflicts_with = "from")]
        op_id: Option<fusebox_state::OpId>,
        /// Also if the lane has been written since
        #[arg(long)]
        force: bool,
        /// You have checked that it was not applied: forgets that it may have been, and sends it as new
        #[arg(long, conflicts_with = "from")]
        not_applied: bool,
        /// Sends the calls of an export or repair as new writes; `-` reads standard input
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        from: Option<PathBuf>,
    },
    /// Discards a call for good
    Discard {
        /// The call's name, as `fusebox queue ls` shows it
        op_id: fusebox_state::OpId,
    },
    /// Gives back the disk space of calls that have left the queue
    Compact {
        /// The backend, as --backend
        name: Option<String>,
        /// Leave nothing of these calls in the state directory: also deletes stores that were set aside
        #[arg(long)]
        purge: bool,
    },
    /// Writes a store's calls as JSON lines; wants no daemon
    Export,
    /// Looks for damage in the stores, changing nothing; wants no daemon
    Check {
        #[command(flatten)]
        output: Output,
    },
    /// Replays what waits in a state directory that no daemon has; exits with 1 if something is left
    Drain(DrainArgs),
    /// Takes the calls of an export or a repair into a queue, at its tail, under their own names
    Import {
        /// The lines; `-` reads standard input
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Also calls whose lane was, or may have been, written since: they will overwrite that
        #[arg(long)]
        force: bool,
        /// Also calls that were accepted for another address
        #[arg(long)]
        retarget: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Writes the stores of a stopped daemon in the format of the release before; wants no daemon
    Downgrade,
    /// Recovers what can be read of a store that was set aside
    Repair {
        /// The folder of the store that was set aside
        #[arg(value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// Give up when nothing has moved for so long
    #[arg(long, default_value = "1m", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) patience: Duration,
    /// The directory is a copy, and no other daemon has or will replay the same calls
    #[arg(long)]
    pub(crate) accept_clone: bool,
    /// Calls that wait for another address go to the one in the configuration
    #[arg(long)]
    pub(crate) accept_retarget: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[cfg(test)]
mod tests;
