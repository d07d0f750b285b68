//! What a door answers by itself: who a client is, and how it wants to be spoken to. Answered also while the backend is
//! down, so that clients can connect then.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::{
    class::Local,
    settings::Guest,
    telling::{self, Protocol},
};
use crate::{ingress::peer::Who, kinds::redis::protocol::resp};

/// The first client's number: beyond any that a server gives, and exact as a double.
pub(super) const FIRST_ID: u64 = 1 << 52;

/// What a client has said of itself.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: u64,
    /// `None` until it has authenticated.
    pub(super) who: Option<Who>,
    /// The name of the caller whose credentials it gave, if these say who it is.
    caller: Option<Box<str>>,
    /// Who it was when it connected.
    first: Option<Who>,
    /// It may not write.
    pub(super) reads_only: bool,
    pub(super) protocol: Protocol,
    pub(super) name: Vec<u8>,
    library: Vec<u8>,
    library_version: Vec<u8>,
    /// The database that it is in.
    pub(super) database: u32,
    /// It has selected that itself.
    pub(super) has_selected: bool,
    /// The addresses that it connected from and to, if that was over TCP.
    peer: Option<(SocketAddr, SocketAddr)>,
    /// When it connected.
    since: Instant,
    pub(super) replies: Replies,
}

/// Which replies a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replies {
    All,
    None,
    /// All but that of the next command.
    SkipNext,
}

/// What a door knows of the server.
pub(super) struct Server {
    /// Its version; one that every client understands before the server was met.
    pub(super) version: String,
    pub(super) resp3: bool,
}

/// What follows from a local command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// It is answered so.
    Answered(Bytes),
    /// It has no answer.
    Silent,
    /// It is answered so, and the connection is closed.
    Close(Bytes),
    /// These credentials are to be looked at first; then the rest is [`Session::greeted`], if it was HELLO.
    Authenticate { user: Option<Vec<u8>>, secret: Vec<u8>, hello: Option<Hello> },
    /// Another database was asked for.
    Select(u32),
    /// All that was said is forgotten.
    Reset,
}

/// What HELLO asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hello {
    protocol: Option<i64>,
    name: Option<Vec<u8>>,
}

impl Session {
    pub(super) fn new(id: u64, who: Option<Who>, database: u32) -> Self {
        Self {
            id,
            who,
            caller: None,
            first: who,
            reads_only: false,
            protocol: Protocol::Resp2,
            name: Vec::new(),
            library: Vec::new(),
            library_version: Vec::new(),
            database,
            has_selected: false,
            peer: None,
            since: Instant::now(),
            replies: Replies::All,
        }
    }

    /// It connected from one address to another.
    pub(super) fn came_from(&mut self, peer: Option<(SocketAddr, SocketAddr)>) {
        self.peer = peer;
    }

    /// Whether the client wants no reply to the command at hand. To be asked once for each.
    pub(super) fn takes_no_reply(&mut self) -> bool {
        match self.replies {
            Replies::All => false,
            Replies::None => true,
            Replies::SkipNext => {
                self.replies = Replies::All;
                true
            }
        }
    }

    /// It is in this database now, as it wanted.
    pub(super) fn select(&mut self, database: u32) {
        (self.database, self.has_selected) = (database, true);
    }

    /// It has given credentials that are somebody's.
    pub(super) fn greet(&mut self, guest: Guest) {
        let Guest { name, who, reads_only, is_backends_own } = guest;
        let stays = is_backends_own && self.who.is_some() && !self.reads_only;
        if !stays {
            (self.who, self.caller) = (Some(who), Some(name.into()));
        }
        self.reads_only = reads_only;
    }

    /// Who it is, in words for the log.
    pub(super) fn caller(&self) -> String {
        match (&self.caller, self.who) {
            (Some(name), _) => format!("caller {name:?}"),
            (None, Some(who)) => who.to_string(),
            (None, None) => "nobody".to_owned(),
        }
    }

    /// Forgets all that was said.
    pub(super) fn reset(&mut self, database: u32) {
        let (peer, since) = (self.peer, self.since);
        *self = Self { peer, since, ..Self::new(self.id, self.first, database) };
    }

    /// What a local command comes to.
    pub(super) fn local(&mut self, local: Local, args: &[&[u8]], server: &Server) -> Then {
        let arg = |at: usize| args.get(at).copied().unwrap_or_default();
        match local {
            Local::Hello => return self.hello(args, server),
            Local::Auth => {
                let (user, secret) = match args {
                    [_, secret] => (None, secret.to_vec()),
                    [_, user, secret] => (Some(user.to_vec()), secret.to_vec()),
                    _ => return answered(telling::error("ERR syntax error")),
                };
                return Then::Authenticate { user, secret, hello: None };
            }
            Local::Select => {
                let number = std::str::from_utf8(arg(1)).ok().and_then(|it| it.parse::<i64>().ok());
                return match number.map(u32::try_from) {
                    Some(Ok(number)) => Then::Select(number),
                    Some(Err(_)) => answered(telling::error("ERR DB index is out of range")),
                    None => answered(telling::error("ERR value is not an integer or out of range")),
                };
            }
            Local::SetName => {
                if !is_word(arg(2)) {
                    let why =
                        "ERR Client names cannot contain spaces, newlines or special characters.";
                    return answered(telling::error(why));
                }
                self.name = arg(2).to_vec();
            }
            Local::GetName => return answered(self.bulk_or_nil(&self.name)),
            Local::SetInfo => {
                let value = arg(3);
                let option = arg(2).to_ascii_lowercase();
                if !is_word(value) {
                    let why = format!(
                        "ERR {} cannot contain spaces, newlines or special characters.",
                        String::from_utf8_lossy(&option)
                    );
                    return answered(telling::error(&why));
                }
                match option.as_slice() {
                    b"lib-name" => self.library = value.to_vec(),
                    b"lib-ver" => self.library_version = value.to_vec(),
                    other => {
                        let other = String::from_utf8_lossy(other);
                        return answered(telling::error(&format!(
                            "ERR Unrecognized option '{other}'"
                        )));
                    }
                }
            }
            Local::Id => return answered(Bytes::from(format!(":{}\r\n", self.id))),
            Local::Info | Local::List => return answered(bulk(self.info().as_bytes())),
            Local::Reply => {
                self.replies = match arg(2).to_ascii_lowercase().as_slice() {
                    b"on" => Replies::All,
                    b"off" => Replies::None,
                    b"skip" if self.replies == Replies::None => Replies::None,
                    b"skip" => Replies::SkipNext,
                    _ => return answered(telling::error("ERR syntax error")),
                };
                if self.replies != Replies::All {
                    return Then::Silent;
                }
            }
            Local::Ok => {}
            Local::Echo => return answered(bulk(arg(1))),
            Local::Quit => return Then::Close(Bytes::from_static(b"+OK\r\n")),
            Local::Reset => return Then::Reset,
        }
        answered(Bytes::from_static(b"+OK\r\n"))
    }

    fn hello(&mut self, args: &[&[u8]], server: &Server) -> Then {
        let mut hello = Hello::default();
        let mut rest = args.get(1..).unwrap_or_default().iter();
        if let Some(version) = rest.next() {
            let version = std::str::from_utf8(version).ok().and_then(|text| text.parse().ok());
            let Some(version) = version else {
                let why = "ERR Protocol version is not an integer or out of range";
                return answered(telling::error(why));
            };
            if !(2..=3).contains(&version) || version == 3 && !server.resp3 {
                return answered(telling::error("NOPROTO unsupported protocol version"));
            }
            hello.protocol = Some(version);
        }
        let mut credentials = None;
        while let Some(option) = rest.next() {
            if option.eq_ignore_ascii_case(b"AUTH")
                && let (Some(user), Some(secret)) = (rest.next(), rest.next())
            {
                credentials = Some((user.to_vec(), secret.to_vec()));
            } else if option.eq_ignore_ascii_case(b"SETNAME")
                && let Some(name) = rest.next()
            {
                if !is_word(name) {
                    let why =
                        "ERR Client names cannot contain spaces, newlines or special characters.";
                    return answered(telling::error(why));
                }
                hello.name = Some(name.to_vec());
            } else {
                let option = String::from_utf8_lossy(option);
                let why = format!("ERR Syntax error in HELLO option '{option}'");
                return answered(telling::error(&why));
            }
        }
        match credentials {
            Some((user, secret)) => {
                Then::Authenticate { user: Some(user), secret, hello: Some(hello) }
            }
            None if self.who.is_none() => answered(telling::error(
                "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> \
                 AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol \
                 version at the same time",
            )),
            None => answered(self.greeted(hello, server)),
        }
    }

    /// HELLO is granted: its answer.
    pub(super) fn greeted(&mut self, hello: Hello, server: &Server) -> Bytes {
        match hello.protocol {
            Some(2) => self.protocol = Protocol::Resp2,
            Some(3) => self.protocol = Protocol::Resp3,
            _ => {}
        }
        if let Some(name) = hello.name {
            self.name = name;
        }
        let is_3 = self.protocol == Protocol::Resp3;
        let mut out = BytesMut::new();
        resp::write_head(&mut out, if is_3 { '%' } else { '*' }, if is_3 { 7 } else { 14 });
        let number = if is_3 { 3 } else { 2 };
        for (key, value) in [
            ("server", Ok("redis")),
            ("version", Ok(server.version.as_str())),
            ("proto", Err(number)),
            ("id", Err(self.id)),
            ("mode", Ok("standalone")),
            ("role", Ok("master")),
        ] {
            resp::write_bulk(&mut out, key.as_bytes());
            match value {
                Ok(text) => resp::write_bulk(&mut out, text.as_bytes()),
                Err(number) => out.extend_from_slice(format!(":{number}\r\n").as_bytes()),
            }
        }
        resp::write_bulk(&mut out, b"modules");
        resp::write_head(&mut out, '*', 0);
        out.freeze()
    }

    /// The client as CLIENT INFO and CLIENT LIST show it. What belongs to a server's own connections is as if there was
    /// nothing of it.
    pub(super) fn info(&self) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let resp = if self.protocol == Protocol::Resp3 { 3 } else { 2 };
        format!(
            "id={} addr={} laddr={} fd=-1 name={} age={} idle=0 flags=N db={} sub=0 psub=0 ssub=0 multi=-1 qbuf=0 \
             qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=0 tot-mem=0 events=r cmd=client|info \
             user=default redir=-1 resp={resp} lib-name={} lib-ver={}\n",
            self.id,
            address(self.peer.map(|(from, _)| from)),
            address(self.peer.map(|(_, to)| to)),
            text(&self.name),
            self.since.elapsed().as_secs(),
            self.database,
            text(&self.library),
            text(&self.library_version)
        )
    }

    fn bulk_or_nil(&self, text: &[u8]) -> Bytes {
        match (text, self.protocol) {
            (b"", Protocol::Resp2) => Bytes::from_static(b"$-1\r\n"),
            (b"", Protocol::Resp3) => Bytes::from_static(b"_\r\n"),
            (text, _) => bulk(text),
        }
    }
}

fn bulk(text: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(text.len() + 16);
    resp::write_bulk(&mut out, text);
    out.freeze()
}

/// An address as a server shows it.
fn address(of: Option<SocketAddr>) -> String {
    of.map_or_else(|| "unix:0".to_owned(), |of| of.to_string())
}

fn answered(answer: Bytes) -> Then {
    Then::Answered(answer)
}

/// What may be a client's name.
fn is_word(text: &[u8]) -> bool {
    text.iter().all(|byte| (b'!'..=b'~').contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHO: Who = Who { uid: 7, admin: false, by_token: false };

    fn server() -> Server {
        Server { version: "7.2.1".into(), resp3: true }
    }

    fn session() -> Session {
        Session::new(FIRST_ID, Some(WHO), 0)
    }

    fn say(session: &mut Session, local: Local, command: &str) -> Then {
        let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        session.local(local, &args, &server())
    }

    #[track_caller]
    fn text(then: Then) -> String {
        let Then::Answered(answer) = then else { panic!("{then:?}") };
        String::from_utf8(answer.to_vec()).unwrap()
    }

    #[test]
    fn hello_answers_in_the_protocol_that_it_asks_for() {
        let mut session = session();
        let three = text(say(&mut session, Local::Hello, "HELLO 3 SETNAME me"));
        assert!(three.starts_with("%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n"), "{three}");
        assert!(three.contains("$5\r\nproto\r\n:3\r\n") && three.contains("$5\r\n7.2.1\r\n"));
        assert!(three.contains(&format!("$2\r\nid\r\n:{FIRST_ID}\r\n")));
        assert_eq!((session.protocol, session.name.as_slice()), (Protocol::Resp3, &b"me"[..]));
        let two = text(say(&mut session, Local::Hello, "HELLO 2"));
        assert!(two.starts_with("*14\r\n") && two.contains("$5\r\nproto\r\n:2\r\n"), "{two}");
        assert_eq!(resp::Reply::of(two.as_bytes()).unwrap().items().unwrap().count(), 14);
        let same = text(say(&mut session, Local::Hello, "HELLO"));
        assert!(same.starts_with("*14\r\n"));
    }

    #[test]
    fn hello_refuses_in_redis_words() {
        let mut unknown = Session::new(FIRST_ID, None, 0);
        for (session, command, word) in [
            (&mut session(), "HELLO 4", "-NOPROTO unsupported protocol version\r\n"),
            (
                &mut session(),
                "HELLO x",
                "-ERR Protocol version is not an integer or out of range\r\n",
            ),
            (&mut session(), "HELLO 3 NAME x", "-ERR Syntax error in HELLO option 'NAME'\r\n"),
            (&mut session(), "HELLO 3 AUTH x", "-ERR Syntax error in HELLO option 'AUTH'\r\n"),
            (&mut unknown, "HELLO 3", "-NOAUTH HELLO must be called with the client already"),
        ] {
            let told = text(say(session, Local::Hello, command));
            assert!(told.starts_with(word), "{command}: {told}");
        }
        let then = say(&mut unknown, Local::Hello, "HELLO 3 AUTH ada secret SETNAME me");
        let hello = Some(Hello { protocol: Some(3), name: Some(b"me".to_vec()) });
        let (user, secret) = (Some(b"ada".to_vec()), b"secret".to_vec());
        assert_eq!(then, Then::Authenticate { user, secret, hello });
        let old = Server { version: "5.0.0".into(), resp3: false };
        let then = session().local(Local::Hello, &[b"HELLO", b"3"], &old);
        assert!(text(then).starts_with("-NOPROTO"));
    }

    #[test]
    fn a_client_is_what_it_says_of_itself() {
        let mut session = session();
        assert_eq!(text(say(&mut session, Local::GetName, "CLIENT GETNAME")), "$-1\r\n");
        assert_eq!(text(say(&mut session, Local::SetName, "CLIENT SETNAME a")), "+OK\r\n");
        assert_eq!(text(say(&mut session, Local::GetName, "CLIENT GETNAME")), "$1\r\na\r\n");
        assert_eq!(
            text(say(&mut session, Local::SetInfo, "CLIENT SETINFO LIB-NAME py")),
            "+OK\r\n"
        );
        let told = text(say(&mut session, Local::SetInfo, "CLIENT SETINFO LIB-X py"));
        assert_eq!(told, "-ERR Unrecognized option 'lib-x'\r\n");
        let info = text(say(&mut session, Local::Info, "CLIENT INFO"));
        for field in [" addr=unix:0 ", " name=a ", " db=0 ", " user=default ", " lib-name=py "] {
            assert!(info.contains(field), "{field}: {info}");
        }
        assert_eq!(say(&mut session, Local::Reply, "CLIENT REPLY SKIP"), Then::Silent);
        assert_eq!(session.replies, Replies::SkipNext);
        assert_eq!(say(&mut session, Local::Select, "SELECT 3"), Then::Select(3));
        for (wrong, told) in [
            ("-1", "-ERR DB index is out of range\r\n"),
            ("4294967296", "-ERR DB index is out of range\r\n"),
            ("x", "-ERR value is not an integer or out of range\r\n"),
        ] {
            let then = say(&mut session, Local::Select, &format!("SELECT {wrong}"));
            assert_eq!(text(then), told, "{wrong}");
        }
        assert_eq!(
            say(&mut session, Local::Quit, "QUIT"),
            Then::Close(Bytes::from_static(b"+OK\r\n"))
        );
    }
}
