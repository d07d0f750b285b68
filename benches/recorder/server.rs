//! The servers, each confined to a cgroup of its own.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{
    client::{Client, Wire},
    support::{
        clickhouse::{ClickHouse, Engine},
        poll::wait_for,
        port::Port,
        proc::{require, send},
        recording::Ended,
        redis::RedisServer,
    },
};

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Redis7,
    Valkey9,
    ClickHouse18,
    ClickHouse26,
    Postgres15,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Redis7 => "redis7",
            Self::Valkey9 => "valkey9",
            Self::ClickHouse18 => "clickhouse18",
            Self::ClickHouse26 => "clickhouse26",
            Self::Postgres15 => "postgres15",
        }
    }

    pub(crate) fn wire(self) -> Wire {
        match self {
            Self::Redis7 | Self::Valkey9 => Wire::Redis,
            Self::ClickHouse18 | Self::ClickHouse26 => Wire::ClickHouse,
            Self::Postgres15 => Wire::Postgres,
        }
    }
}

enum Process {
    Redis(RedisServer),
    ClickHouse(ClickHouse),
    Postgres(Postgres),
}

impl Process {
    fn child(&self) -> &Child {
        match self {
            Self::Redis(server) => server.process(),
            Self::ClickHouse(server) => server.process(),
            Self::Postgres(server) => &server.process,
        }
    }
}

pub(crate) struct Server {
    kind: Kind,
    process: Process,
    port: u16,
    group: String,
    /// A server that copies this one, if there is one.
    pub(crate) replica: Option<RedisServer>,
}

impl Server {
    pub(crate) fn start(kind: Kind, place: usize) -> Self {
        let process = match kind {
            Kind::Redis7 => Process::Redis(RedisServer::start()),
            Kind::Valkey9 => Process::Redis(valkey()),
            Kind::ClickHouse18 => Process::ClickHouse(ClickHouse::start(Engine::Old)),
            Kind::ClickHouse26 => Process::ClickHouse(ClickHouse::start(Engine::Current)),
            Kind::Postgres15 => Process::Postgres(Postgres::start()),
        };
        let port = match &process {
            Process::Redis(server) => server.port(),
            Process::ClickHouse(server) => server.port(),
            Process::Postgres(server) => server.port.number(),
        };
        let group = format!("fusebox-recorder-{}-{place}", std::process::id());
        for controller in ["cpu", "blkio"] {
            fs::create_dir_all(folder(controller, &group)).expect("root may make cgroups");
        }
        Self { kind, process, port, group, replica: None }
    }

    /// Gives the server a replica of its own.
    pub(crate) fn copy(&mut self) {
        let replica = valkey();
        let port = self.port.to_string();
        let done: String = replica.query(&["REPLICAOF", "127.0.0.1", &port]);
        assert_eq!(done, "OK");
        drop(self.replica.replace(replica));
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.kind.wire(), SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)))
    }

    /// The share of a processor that it has.
    pub(crate) fn share(&self) -> f64 {
        if self.kind == Kind::ClickHouse26 { 0.5 } else { 0.15 }
    }

    /// Puts the server into its cgroup.
    pub(crate) fn confine(&self) {
        self.limit(self.share());
        let process = self.process.child().id();
        let parents: Vec<u32> = children(process);
        for controller in ["cpu", "blkio"] {
            for process in parents.iter().copied().chain([process]) {
                let file = folder(controller, &self.group).join("cgroup.procs");
                let moved = fs::write(file, process.to_string());
                // What has ended meanwhile needs no limit.
                assert!(moved.is_ok() || !Path::new(&format!("/proc/{process}")).exists());
            }
        }
    }

    /// Gives it this share of a processor, in slices of 10 ms, or longer ones if there is too little for that.
    pub(crate) fn limit(&self, share: f64) {
        let period = (1_200.0 / share).clamp(10_000.0, 400_000.0);
        let folder = folder("cpu", &self.group);
        let set = |file: &str, value: f64| {
            fs::write(folder.join(file), (value as i64).to_string())
                .expect("a cgroup takes a limit");
        };
        // The order in which neither is ever more than the other allows.
        set("cpu.cfs_quota_us", -1.0);
        set("cpu.cfs_period_us", period);
        set("cpu.cfs_quota_us", (period * share).max(1_000.0));
    }

    /// Lets it write so often a second.
    pub(crate) fn limit_writes(&self, a_second: u32) {
        let disk = std::env::var("FUSEBOX_RECORDER_DISK").unwrap_or_else(|_| "254:0".into());
        let file = folder("blkio", &self.group).join("blkio.throttle.write_iops_device");
        fs::write(file, format!("{disk} {a_second}")).expect("a cgroup takes a limit");
    }

    pub(crate) fn send(&self, signal: Signal) {
        send(self.process.child(), signal);
    }

    /// Takes every limit away, so that it ends soon.
    pub(crate) fn release(&self) {
        self.limit(1.0);
        self.limit_writes(0);
        self.send(Signal::SIGCONT);
        if let Some(replica) = &self.replica {
            replica.thaw();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        match &mut self.process {
            Process::Redis(server) => server.kill_9(),
            Process::ClickHouse(server) => server.kill_9(),
            Process::Postgres(server) => server.end(),
        }
        for controller in ["cpu", "blkio"] {
            let folder = folder(controller, &self.group);
            crate::support::poll::look_for(Duration::from_secs(5), || fs::remove_dir(&folder).ok());
        }
    }
}

fn folder(controller: &str, group: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(controller).join(group)
}

fn children(of: u32) -> Vec<u32> {
    let listed = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|id| id.parse().ok()).collect()
}

fn valkey() -> RedisServer {
    let program = std::env::var_os("FUSEBOX_RECORDER_VALKEY");
    RedisServer::start_as(Path::new(
        &program.expect("FUSEBOX_RECORDER_VALKEY: valkey-server's path"),
    ))
}

/// Debian's `PostgreSQL`, which does not run as root.
struct Postgres {
    process: Child,
    port: Port,
    _folder: TempDir,
}

impl Postgres {
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("fusebox-postgres-").tempdir();
        let folder = folder.expect("a temporary folder");
        let data = folder.path().join("data");
        let owner = nix::unistd::User::from_name("postgres").ok().flatten().expect("user postgres");
        fs::create_dir(&data).expect("its folder");
        for folder in [folder.path(), &data] {
            nix::unistd::chown(folder, Some(owner.uid), Some(owner.gid)).expect("root may");
        }
        let port = Port::lease();
        let command = |program: &str| {
            let at = Path::new("/usr/lib/postgresql/15/bin").join(program);
            let mut command =
                Command::new(if at.exists() { at } else { require(program, "postgresql") });
            command.uid(owner.uid.as_raw()).gid(owner.gid.as_raw()).arg("-D").arg(&data);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.current_dir(folder.path());
            command
        };
        let made = command("initdb").args(["-A", "trust", "-U", "postgres", "-N"]).status();
        assert!(made.is_ok_and(|status| status.success()), "initdb");
        let process = command("postgres")
            .args(["-p", &port.number().to_string(), "-c", "listen_addresses=127.0.0.1"])
            .args(["-c", "unix_socket_directories=", "-c", "shared_buffers=32MB"])
            .args(["-c", "max_connections=80"])
            .spawn()
            .expect("postgres starts");
        wait_for("PostgreSQL answers", Duration::from_secs(30), || {
            let mut client = Client::new(Wire::Postgres, port.address());
            let ended = client.ask("SELECT 1", Duration::from_secs(5));
            (ended == Ended::Answered).then_some(())
        });
        Self { process, port, _folder: folder }
    }

    fn end(&mut self) {
        // Its children end with it.
        send(&self.process, Signal::SIGQUIT);
        self.process.wait().expect("postgres can be waited for");
    }
}
