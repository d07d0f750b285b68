//! The wire doors: their addresses, who may call, and how much.
//!
//! Without any `[[doors]]` each backend whose kind has a door gets one, on a Unix socket beside the command socket.
//! `doors = []` leaves them out. A socket that systemd hands over shows its family only when it is taken, so that what
//! depends on it is judged [then](DoorSettings::handed), by the same rules.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytesize::ByteSize;
use fusebox_actors::{AckLevel, Priority};
use toml::{Table, Value};

use super::{
    backend::BackendConfig,
    callers,
    checker::{Checker, chosen},
    declared::Declared,
    places::too_long,
    raw::RawDoor,
    section::Section,
    setting::Size,
    words::{
        AUTHS, Auth, EFFECT_REPLY, EffectReply, MIN_ACKS, ON_MISS, ON_UNKNOWN, OnMiss, OnUnknown,
        PRIORITIES, UNAVAILABLE, Unavailable,
    },
};
use crate::ingress::callers::Callers;

#[cfg(test)]
mod tests;

/// The settings that not every door has, and the kinds whose doors have them.
const OF_KINDS: &[(&str, &[&str])] = &[
    ("out_bytes", &["redis", "firestore"]),
    ("out_client", &["redis"]),
    ("pinned", &["redis"]),
    ("unavailable", &["redis"]),
    ("on_unknown", &["redis"]),
    ("on_miss", &["redis"]),
    ("effect_reply", &["redis"]),
    ("projects", &["firestore"]),
];

/// The address at which a door listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DoorAddress {
    /// At a Unix socket of its own.
    Unix(PathBuf),
    /// On TCP.
    Tcp(SocketAddr),
    /// At the socket that is handed over under this name.
    Handed(String),
}

impl fmt::Display for DoorAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Handed(name) => write!(f, "fd:{name}"),
        }
    }
}

/// A wire door's settings, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DoorSettings {
    /// Its place in the file, such as `doors[0]`, for messages. `None` if it is there by default: then it is a warning
    /// if it cannot listen.
    pub(crate) key: Option<String>,
    /// The protocol: the kind of its backend.
    pub(crate) kind: &'static str,
    /// The name of the backend behind it.
    pub(crate) backend: String,
    /// The address at which it listens. No two doors listen at the same address: it is the door's name everywhere.
    pub(crate) listen: DoorAddress,
    /// How callers are known.
    pub(crate) auth: Auth,
    /// Whether that is known: if nothing is asked for, it follows from the family of a socket that is handed over.
    auth_known: bool,
    /// Who is known by a secret, besides the backend's own user.
    pub(crate) callers: Arc<Callers>,
    /// Whether it may listen beyond loopback though others can read what goes over it.
    plaintext: bool,
    /// The most connections at once, from 1 to 1,000,000. One user of this host gets seven eighths of them at most.
    pub(crate) connections: u32,
    /// The most bytes of requests that are held at once, of all connections.
    pub(crate) in_bytes: u64,
    /// The most bytes of replies that are held at once, of all connections.
    pub(crate) out_bytes: u64,
    /// The most bytes of replies that are held for one connection.
    pub(crate) out_client: u64,
    /// The most connections to the backend that belong to one client each.
    pub(crate) pinned: u32,
    /// How long a connection may be idle; `None` is for ever.
    pub(crate) idle_timeout: Option<Duration>,
    /// What the answer to a write must promise; `None` is the first of applied and durable.
    pub(crate) min_ack: Option<AckLevel>,
    /// How long a request may take; `None` is the backend's `timeout` × attempts.
    pub(crate) deadline: Option<Duration>,
    /// Which requests are shed first.
    pub(crate) priority: Priority,
    /// The answer to a request that was not executed.
    pub(crate) unavailable: Unavailable,
    /// The answer to a request that may have been executed.
    pub(crate) on_unknown: OnUnknown,
    /// Which reads of what nothing is known of are answered with nil.
    pub(crate) on_miss: OnMiss,
    /// What is answered to a queued write whose effect is known and whose reply is not.
    pub(crate) effect_reply: EffectReply,
    /// The projects that may be named by those who call as the daemon; empty for the kind's own rule.
    pub(crate) projects: Vec<String>,
}

/// Whose connections a listener takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Those of processes of this host.
    Unix,
    /// Those that come over TCP to this address.
    Tcp(SocketAddr),
}

/// What doors can be before.
pub(super) struct Backing<'a> {
    /// The backends that passed their checks.
    pub(super) backends: &'a [BackendConfig],
    /// The names of those that are enabled.
    pub(super) enabled: &'a [String],
    /// The kinds.
    pub(super) sections: &'a [&'a dyn Section],
    /// All settings that there are.
    pub(super) declared: &'a Declared,
    /// The command socket.
    pub(super) socket: &'a Path,
    /// The address of the TCP listener.
    pub(super) http: Option<SocketAddr>,
}

/// Checks the doors of the file; without any setting, those that are there by default: these are added to `table`.
pub(super) fn check(
    raw: Option<Vec<RawDoor>>,
    backing: &Backing<'_>,
    table: &mut Table,
    checker: &mut Checker,
) -> Vec<Arc<DoorSettings>> {
    let Some(raw) = raw else { return by_default(backing, table, checker) };
    let mut doors = Vec::<Arc<DoorSettings>>::new();
    for (at, raw) in raw.into_iter().enumerate() {
        let base = format!("doors[{at}]");
        let Some(door) = check_one(&base, raw, backing, checker) else { continue };
        leave_out_others(at, door.kind, table, checker);
        let key = format!("{base}.listen");
        if let Some(other) = doors.iter().find(|other| other.listen == door.listen) {
            let other = other.key.clone().unwrap_or_default();
            checker.problem(&key, format_args!("is also that of {other}: {}", door.listen));
        }
        if door.listen == DoorAddress::Unix(backing.socket.to_owned()) {
            checker.problem(&key, "is also that of the command socket: name another one");
        }
        if backing.http.is_some_and(|http| door.listen == DoorAddress::Tcp(http)) {
            checker.problem(&key, "is also that of http.listen: name another one");
        }
        doors.push(Arc::new(door));
    }
    doors
}

fn by_default(
    backing: &Backing<'_>,
    table: &mut Table,
    checker: &mut Checker,
) -> Vec<Arc<DoorSettings>> {
    let has_door = |kind: &str| {
        backing.sections.iter().any(|it| it.name() == kind && it.has_door_by_default())
    };
    let backends = backing.backends.iter().map(|backend| &backend.settings);
    let mut sections = Vec::new();
    for backend in backends.filter(|backend| has_door(backend.kind)) {
        let name = &backend.name;
        let path = beside(backing.socket, name);
        let in_the_way = if path == backing.socket {
            Some("the command socket has this path".to_owned())
        } else {
            too_long(&path).map(|why| format!("the path {why}"))
        };
        if let Some(why) = in_the_way {
            checker.warnings.push(format!("{name} has no door by default: {why}"));
            continue;
        }
        // The command socket may be relative to the folder in which the daemon is started; the address of a door may
        // not.
        let path = std::path::absolute(&path).unwrap_or(path);
        let listen = DoorAddress::Unix(path).to_string();
        let words =
            [("kind", backend.kind.to_owned()), ("backend", name.clone()), ("listen", listen)];
        sections.push(words.map(|(key, word)| (key.to_owned(), Value::String(word))));
    }
    let sections = sections.into_iter().map(|section| Value::Table(Table::from_iter(section)));
    table.insert("doors".to_owned(), Value::Array(sections.collect()));
    backing.declared.lay_beneath(table, false);
    let raw: Vec<RawDoor> =
        table.get("doors").cloned().and_then(|doors| doors.try_into().ok()).unwrap_or_default();
    let doors = raw.into_iter().enumerate().filter_map(|(at, raw)| {
        let door = check_one(&format!("doors[{at}]"), raw, backing, checker)?;
        leave_out_others(at, door.kind, table, checker);
        Some(Arc::new(DoorSettings { key: None, ..door }))
    });
    doors.collect()
}

/// The socket of the backend `name`, beside the command socket.
fn beside(socket: &Path, name: &str) -> PathBuf {
    socket.with_file_name(format!("{name}.sock"))
}

fn check_one(
    base: &str,
    raw: RawDoor,
    backing: &Backing<'_>,
    checker: &mut Checker,
) -> Option<DoorSettings> {
    let backend = check_backend(base, &raw, backing, checker);
    let listen = check_listen(base, raw.listen.as_deref(), checker);
    let (kind, backend) = backend?;
    let written = |word: &str| Value::String(word.to_owned());
    if raw.kind.is_none() {
        checker.followed.push((format!("{base}.kind"), written(kind)));
    }
    if raw.backend.is_none() {
        checker.followed.push((format!("{base}.backend"), written(&backend)));
    }
    let mut door = DoorSettings::of(base, &raw, kind, &backend, listen?);
    check_auth(base, raw.auth.as_deref(), &mut door, checker);
    if let Some(path) = &raw.callers_file {
        match callers::read(path, &mut checker.warnings) {
            Ok(callers) => door.callers = Arc::new(callers),
            Err(problems) => {
                for why in problems {
                    checker.problem(&format!("{base}.callers_file"), why);
                }
            }
        }
        if door.auth != Auth::Token {
            let what = format!("has no effect: auth is {:?}", door.auth.as_str());
            checker.warnings.push(format!("{base}.callers_file {what}"));
        }
    }
    check_limits(base, &raw, &mut door, checker);
    check_kind(base, kind, checker);
    door.projects = raw.projects.unwrap_or_default();
    Some(door)
}

/// The settings that doors of this kind do not have, and the kinds whose doors have them.
fn of_others(kind: &'static str) -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    OF_KINDS.iter().copied().filter(move |(_, kinds)| !kinds.contains(&kind))
}

/// Complains of what the file sets, and only other kinds' doors have.
fn check_kind(base: &str, kind: &'static str, checker: &mut Checker) {
    for (leaf, kinds) in of_others(kind) {
        let key = format!("{base}.{leaf}");
        // A default has no origin.
        if checker.origins.contains_key(&key) {
            let kinds = kinds.join(" or ");
            let what = format!("is only for doors of the kind {kinds}, and this door's is {kind}");
            checker.problem(&key, what);
        }
    }
}

/// Takes out what only other kinds' doors have, so that what is shown of the settings can be set.
fn leave_out_others(at: usize, kind: &'static str, table: &mut Table, checker: &mut Checker) {
    let doors = table.get_mut("doors").and_then(Value::as_array_mut);
    let door = doors.and_then(|doors| doors.get_mut(at)).and_then(Value::as_table_mut);
    if let Some(door) = door {
        for (leaf, _) in of_others(kind) {
            door.remove(leaf);
        }
    }
    let base = format!("doors[{at}].");
    checker.followed.retain(|(path, _)| {
        let leaf = path.strip_prefix(&base);
        leaf.is_none_or(|leaf| of_others(kind).all(|(other, _)| other != leaf))
    });
}

/// The kind and the name of the backend. Each names the other if that is left out.
fn check_backend(
    base: &str,
    raw: &RawDoor,
    backing: &Backing<'_>,
    checker: &mut Checker,
) -> Option<(&'static str, String)> {
    let Some(name) = raw.backend.as_deref().or(raw.kind.as_deref()) else {
        checker.problem(base, format_args!("must name its backend: {base}.backend"));
        return None;
    };
    let mut known = backing.sections.iter().map(|section| section.name());
    if let Some(kind) = &raw.kind
        && !known.any(|known| known == kind)
    {
        let with_door = backing.sections.iter().filter(|section| section.has_door());
        let with_door: Vec<&str> = with_door.map(|section| section.name()).collect();
        let what = format!(
            "{kind:?} has no door in this release, which has doors of: {}",
            with_door.join(", ")
        );
        checker.problem(&format!("{base}.kind"), what);
        return None;
    }
    if !backing.enabled.iter().any(|enabled| enabled == name) {
        let there = backing.enabled.join(", ");
        let what = format!("names {name:?}, which is not an enabled backend; there are: {there}");
        checker.problem(&format!("{base}.backend"), what);
        return None;
    }
    // One that is enabled and is not there was complained of.
    let backend = backing.backends.iter().find(|backend| backend.settings.name == name)?;
    let kind = backend.settings.kind;
    if let Some(asked) = raw.kind.as_deref().filter(|asked| *asked != kind) {
        let what = format!("is {asked:?}, but the kind of the backend {name} is {kind:?}");
        checker.problem(&format!("{base}.kind"), what);
        return None;
    }
    if !backing.sections.iter().any(|section| section.name() == kind && section.has_door()) {
        let what =
            format!("{kind:?} has no door in this release: its calls go over the command socket");
        checker.problem(&format!("{base}.kind"), what);
        return None;
    }
    Some((kind, name.to_owned()))
}

fn check_listen(base: &str, text: Option<&str>, checker: &mut Checker) -> Option<DoorAddress> {
    let key = format!("{base}.listen");
    let such = "such as unix:/run/fusebox/redis.sock, 127.0.0.1:6380 or fd:redis";
    let Some(text) = text else {
        checker.problem(&key, format_args!("must be set to an address, {such}"));
        return None;
    };
    if let Some(path) = text.strip_prefix("unix:") {
        // `unix:///path`, as URLs write it, is the same.
        let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
        if !path.is_absolute() {
            checker
                .problem(&key, format_args!("must be an absolute path after unix:, got {text:?}"));
            return None;
        }
        if let Some(why) = too_long(&path) {
            checker.problem(&key, why);
        }
        return Some(DoorAddress::Unix(path));
    }
    if let Some(name) = text.strip_prefix("fd:").filter(|name| !name.is_empty()) {
        return Some(DoorAddress::Handed(name.to_owned()));
    }
    let address = text.parse().ok().map(DoorAddress::Tcp);
    if address.is_none() {
        checker.problem(&key, format_args!("must be an address, {such}, got {text:?}"));
    }
    address
}

fn check_auth(base: &str, asked: Option<&str>, door: &mut DoorSettings, checker: &mut Checker) {
    let key = format!("{base}.auth");
    let usual = match &door.listen {
        DoorAddress::Unix(_) => Auth::Peer,
        DoorAddress::Tcp(_) | DoorAddress::Handed(_) => Auth::Token,
    };
    if asked.is_some_and(|asked| AUTHS.iter().all(|(word, _)| *word != asked)) {
        // It was complained of.
        return;
    }
    door.auth_known = asked.is_some() || !matches!(door.listen, DoorAddress::Handed(_));
    door.auth = asked.map_or(usual, |asked| chosen(asked, usual, AUTHS));
    if asked.is_none() && door.auth_known {
        checker.followed.push((key, Value::String(usual.as_str().to_owned())));
    }
    let family = match &door.listen {
        DoorAddress::Unix(_) => Family::Unix,
        DoorAddress::Tcp(address) => Family::Tcp(*address),
        DoorAddress::Handed(_) => return,
    };
    match door.judged(family) {
        Ok(warning) => checker.warnings.extend(warning),
        Err((leaf, why)) => checker.problem(&format!("{base}.{leaf}"), why),
    }
}

/// What is bounded by other settings.
fn check_limits(base: &str, raw: &RawDoor, door: &mut DoorSettings, checker: &mut Checker) {
    let key = |leaf: &str| format!("{base}.{leaf}");
    door.pinned = checker.or(&key("pinned"), raw.pinned, || door.connections);
    if door.pinned > door.connections {
        let what =
            format!("must be at most connections ({}), got {}", door.connections, door.pinned);
        checker.problem(&key("pinned"), what);
    }
    let of_all = ByteSize::b(door.out_bytes);
    let usual = || of_all.min(ByteSize::mib(32));
    let out_client = checker.or(&key("out_client"), raw.out_client.map(|size| size.0), usual);
    let least = ByteSize::kib(64);
    door.out_client = checker.between(&key("out_client"), out_client, least, of_all).as_u64();
    if let Some(time) = door.idle_timeout {
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(365 * 86_400));
        checker.between(&key("idle_timeout"), time, least, most);
    }
}

impl DoorSettings {
    /// As they are written.
    fn of(
        base: &str,
        raw: &RawDoor,
        kind: &'static str,
        backend: &str,
        listen: DoorAddress,
    ) -> Self {
        Self {
            key: Some(base.to_owned()),
            kind,
            backend: backend.to_owned(),
            listen,
            auth: Auth::Peer,
            auth_known: true,
            callers: Arc::default(),
            plaintext: raw.plaintext,
            connections: raw.connections,
            in_bytes: raw.in_bytes.bytes(),
            out_bytes: raw.out_bytes.bytes(),
            out_client: raw.out_client.map_or(0, Size::bytes),
            pinned: raw.connections,
            idle_timeout: Some(raw.idle_timeout.0).filter(|time| !time.is_zero()),
            min_ack: chosen(&raw.min_ack, None, MIN_ACKS),
            deadline: raw.deadline.map(|time| time.0),
            priority: chosen(&raw.priority, Priority::Normal, PRIORITIES),
            unavailable: chosen(&raw.unavailable, Unavailable::Loading, UNAVAILABLE),
            on_unknown: chosen(&raw.on_unknown, OnUnknown::Error, ON_UNKNOWN),
            on_miss: chosen(&raw.on_miss, OnMiss::Get, ON_MISS),
            effect_reply: chosen(&raw.effect_reply, EffectReply::Assume, EFFECT_REPLY),
            projects: Vec::new(),
        }
    }

    /// These settings for a socket that was handed over and is of this family, and what should be looked at.
    ///
    /// # Errors
    /// The setting that does not fit, and why.
    pub(crate) fn handed(&self, family: Family) -> Result<(Self, Option<String>), String> {
        let mut door = self.clone();
        if !door.auth_known || door.key.is_none() {
            door.auth = if family == Family::Unix { Auth::Peer } else { Auth::Token };
        }
        door.auth_known = true;
        let warning = door.judged(family).map_err(|(leaf, why)| match &door.key {
            Some(key) => format!("{key}.{leaf} {why}"),
            None => format!("{leaf} {why}"),
        })?;
        Ok((door, warning))
    }

    /// Whether it takes a socket that is handed over under this name: the one that it asks for or, if it is there by
    /// default, one that is named as its backend. Nobody else would accept from that.
    pub(crate) fn takes(&self, name: &str) -> bool {
        match &self.listen {
            DoorAddress::Handed(asked) => asked == name,
            DoorAddress::Unix(_) | DoorAddress::Tcp(_) => {
                self.key.is_none() && self.backend == name
            }
        }
    }

    /// The same door beside the command socket at `socket`, if it is there by default.
    pub(crate) fn beside(&self, socket: &Path) -> Self {
        let mut door = self.clone();
        if door.key.is_none() {
            door.listen = DoorAddress::Unix(beside(socket, &door.backend));
        }
        door
    }

    /// What should be looked at if it listens there.
    ///
    /// # Errors
    /// The setting that does not fit, and why, as the end of a sentence.
    fn judged(&self, family: Family) -> Result<Option<String>, (&'static str, String)> {
        let Family::Tcp(address) = family else {
            return match self.auth {
                Auth::Peer | Auth::Token => Ok(None),
                Auth::Open => {
                    let why = "\"open\" is only for TCP: on a Unix socket, callers are identified by their user";
                    Err(("auth", why.to_owned()))
                }
            };
        };
        let is_loopback = address.ip().to_canonical().is_loopback();
        if !is_loopback && !self.plaintext {
            return Err((
                "listen",
                format!(
                    "must be a loopback address, got {address}: on any other address, others can read the traffic; \
                     plaintext = true accepts that"
                ),
            ));
        }
        match self.auth {
            Auth::Token => Ok(None),
            Auth::Peer => {
                let why =
                    "\"peer\" is only for Unix sockets: over TCP, the caller's user is not known";
                Err(("auth", why.to_owned()))
            }
            Auth::Open if is_loopback => Ok(Some(format!(
                "every process of this host may call {} over {address}: that door's auth is \"open\"",
                self.backend
            ))),
            Auth::Open => {
                let why = "\"open\" is only for loopback: on any other address, callers must send a secret";
                Err(("auth", why.to_owned()))
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A Redis door at `/nowhere`, for so many connections.
    pub(crate) fn door(auth: Auth, connections: u32) -> DoorSettings {
        let listen = DoorAddress::Unix("/nowhere".into());
        let mut table = Table::from_iter([("doors".into(), vec![Table::new()].into())]);
        Declared::new(&[]).lay_beneath(&mut table, false);
        let raw: Vec<RawDoor> = table["doors"].clone().try_into().unwrap();
        let usual = DoorSettings::of("doors[0]", &raw[0], "redis", "redis", listen);
        DoorSettings { auth, connections, out_client: 32 << 20, ..usual }
    }
}
