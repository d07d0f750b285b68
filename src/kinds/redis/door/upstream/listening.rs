//! What a connection that listens receives, and how a subscription ends.
//!
//! A subscription has no reply of its own: it is answered by one confirmation for each of its channels, among the
//! messages, or by one error. Each confirmation says how many subscriptions there are. So a subscription stays in the
//! ring until its last confirmation, and it is always known whether the connection listens.

use super::{entry::Note, ring::Ring};
use crate::kinds::redis::{protocol::resp::Reply, transport::handshake::Protocol};

/// What is subscribed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Channels,
    Patterns,
    Shards,
}

/// What a subscription, or its end, waits for.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::kinds::redis::door) struct Awaited {
    kind: Kind,
    /// Confirmations that are still to come; `None` if it is as many as there are subscriptions.
    left: Option<u64>,
}

impl Awaited {
    /// What a command waits for. `None` if it is none of these.
    pub(in crate::kinds::redis::door) fn of(args: &[&[u8]]) -> Option<Self> {
        let (name, channels) = args.split_first()?;
        let kind = kind_of(&name.to_ascii_lowercase())?;
        let left = (!channels.is_empty()).then_some(channels.len() as u64);
        Some(Self { kind, left })
    }

    /// A subscription of that kind is confirmed, of which there were so many. True for the last one.
    pub(super) fn is_over(&mut self, kind: Kind, before: u64) -> bool {
        if self.kind != kind {
            return false;
        }
        let left = self.left.get_or_insert(before.max(1));
        *left = left.saturating_sub(1);
        *left == 0
    }
}

/// How many subscriptions a connection has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Subscriptions {
    channels: u64,
    patterns: u64,
    shards: u64,
}

impl Subscriptions {
    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }

    pub(super) fn of(self, kind: Kind) -> u64 {
        match kind {
            Kind::Channels => self.channels,
            Kind::Patterns => self.patterns,
            Kind::Shards => self.shards,
        }
    }

    /// A confirmation says that there are so many: of channels and patterns together, or of shards.
    pub(super) fn confirmed(&mut self, kind: Kind, count: u64) {
        match kind {
            Kind::Channels => self.channels = count.saturating_sub(self.patterns),
            Kind::Patterns => self.patterns = count.saturating_sub(self.channels),
            Kind::Shards => self.shards = count,
        }
    }
}

/// What a listener receives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    Message,
    /// A subscription, or its end, and how many there are now.
    Confirmed(Kind, u64),
}

/// What a list of RESP2, or a push of RESP3, tells a listener. `None` if it is something else.
pub(super) fn told(frame: &[u8]) -> Option<Told> {
    let (Reply::Array(mut items) | Reply::Push(mut items)) = Reply::of(frame)? else { return None };
    let Reply::Bulk(word) = Reply::of(items.next()?)? else { return None };
    if matches!(word, b"message" | b"pmessage" | b"smessage") {
        return Some(Told::Message);
    }
    let kind = kind_of(word)?;
    let Reply::Int(count) = Reply::of(items.nth(1)?)? else { return None };
    Some(Told::Confirmed(kind, u64::try_from(count).unwrap_or_default()))
}

/// What a word in lower case is about.
fn kind_of(word: &[u8]) -> Option<Kind> {
    Some(match word {
        b"subscribe" | b"unsubscribe" => Kind::Channels,
        b"psubscribe" | b"punsubscribe" => Kind::Patterns,
        b"ssubscribe" | b"sunsubscribe" => Kind::Shards,
        _ => return None,
    })
}

/// What is known of a connection that may listen.
pub(super) struct Listener<'a> {
    pub(super) ring: &'a mut Ring,
    pub(super) subscriptions: &'a mut Subscriptions,
    pub(super) monitors: bool,
    pub(super) protocol: Protocol,
}

impl Listener<'_> {
    /// Whether a frame goes to a listener instead of answering a request; then, whether it ends the oldest one, which
    /// is a subscription.
    pub(super) fn hears(self, frame: &[u8]) -> Option<bool> {
        if self.monitors {
            return Some(false);
        }
        let subscribes = matches!(self.ring.oldest_note(), Some(Note::Subscription(_)));
        let is_push = frame.starts_with(b">");
        let is_list = self.protocol == Protocol::Two
            && frame.starts_with(b"*")
            && (subscribes || !self.subscriptions.is_empty());
        if !is_push && !is_list {
            return None;
        }
        match told(frame) {
            Some(Told::Message) => Some(false),
            Some(Told::Confirmed(kind, count)) => {
                let before = self.subscriptions.of(kind);
                self.subscriptions.confirmed(kind, count);
                Some(match self.ring.oldest_note() {
                    Some(Note::Subscription(awaited)) => awaited.is_over(kind, before),
                    _ => false,
                })
            }
            None => is_push.then_some(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confirmed(word: &str, count: u64) -> (Kind, u64) {
        let frame = format!("*3\r\n${}\r\n{word}\r\n$1\r\nc\r\n:{count}\r\n", word.len());
        match told(frame.as_bytes()) {
            Some(Told::Confirmed(kind, count)) => (kind, count),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_told_is_told_apart() {
        assert_eq!(told(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n"), Some(Told::Message));
        assert_eq!(
            told(b">4\r\n$8\r\npmessage\r\n$1\r\np\r\n$1\r\nc\r\n$1\r\nm\r\n"),
            Some(Told::Message)
        );
        let none = b"*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n";
        assert_eq!(told(none), Some(Told::Confirmed(Kind::Channels, 0)));
        for other in [
            &b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"[..],
            b"+PONG\r\n",
            b"*0\r\n",
            b">2\r\n$10\r\ninvalidate\r\n_\r\n",
        ] {
            assert_eq!(told(other), None);
        }
    }

    #[test]
    fn a_subscription_is_over_with_its_last_confirmation() {
        let mut now = Subscriptions::default();
        let mut hear = |awaited: &mut Awaited, word: &str, count: u64| {
            let (kind, count) = confirmed(word, count);
            let before = now.of(kind);
            now.confirmed(kind, count);
            (awaited.is_over(kind, before), now.is_empty())
        };
        let of = |words: &str| {
            Awaited::of(&words.split(' ').map(str::as_bytes).collect::<Vec<_>>()).unwrap()
        };
        let mut two = of("SUBSCRIBE a a");
        assert_eq!(hear(&mut two, "subscribe", 1), (false, false));
        assert_eq!(hear(&mut two, "subscribe", 1), (true, false), "the same channel again");
        assert_eq!(hear(&mut of("subscribe b"), "subscribe", 2), (true, false));
        assert_eq!(hear(&mut of("psubscribe p"), "psubscribe", 3), (true, false));
        let mut all = of("UNSUBSCRIBE");
        assert_eq!(hear(&mut all, "unsubscribe", 2), (false, false));
        assert_eq!(hear(&mut all, "unsubscribe", 1), (true, false), "a pattern is left");
        assert_eq!(hear(&mut of("unsubscribe"), "unsubscribe", 1), (true, false), "there was none");
        assert_eq!(hear(&mut of("punsubscribe p"), "punsubscribe", 0), (true, true));
        assert_eq!(hear(&mut of("ssubscribe s"), "ssubscribe", 1), (true, false));
        assert_eq!(hear(&mut of("sunsubscribe"), "sunsubscribe", 0), (true, true));
        assert_eq!(Awaited::of(&[b"GET", b"k"]), None);
    }
}
