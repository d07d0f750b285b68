//! The journal's own protocol: an event's fields become the journal's, so that `journalctl
//! FUSEBOX_BACKEND=redis` finds what is about one backend.
//!
//! One event is one datagram (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>). `MESSAGE` is the event for
//! people, its fields included; each field is beside it as `FUSEBOX_` and its name.

use std::{io::Write, os::unix::net::UnixDatagram, path::Path};

use serde_json::{Map, Value};

use super::clean::{TEXT_MAX, clean};

/// The journal's socket.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";
/// Fields of an event that are passed on at most.
const FIELDS_MAX: usize = 64;
/// The longest name of a field.
const NAME_MAX: usize = 64;
/// What says when and how bad it was, which the journal knows by itself.
const KNOWN: [&str; 3] = ["timestamp", "level", "message"];

/// A way to the journal.
#[derive(Debug)]
pub(super) struct Journal(UnixDatagram);

impl Journal {
    /// The journal that listens at `socket`; `None` if none does.
    pub(super) fn at(socket: &Path) -> Option<Self> {
        let datagrams = UnixDatagram::unbound().ok()?;
        datagrams.connect(socket).ok()?;
        // A journal that does not keep up is not waited for: the line then goes to standard error.
        datagrams.set_nonblocking(true).ok()?;
        Some(Self(datagrams))
    }

    /// Hands on an event, an object in JSON. Says whether the journal took it.
    pub(super) fn take(&self, priority: u8, event: &[u8]) -> bool {
        let Ok(Value::Object(fields)) = serde_json::from_slice(event) else { return false };
        self.0.send(&datagram(priority, &fields)).is_ok()
    }
}

fn datagram(priority: u8, fields: &Map<String, Value>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    put(&mut bytes, "PRIORITY", &priority.to_string());
    put(&mut bytes, "SYSLOG_IDENTIFIER", "fusebox");
    put(&mut bytes, "MESSAGE", clean(message(fields).as_bytes()).trim_end_matches('\n'));
    let own = fields.iter().filter(|(name, _)| !KNOWN.contains(&name.as_str()));
    for (name, value) in own.take(FIELDS_MAX) {
        let letter = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '_' };
        let name: String = name.chars().take(NAME_MAX).map(letter).collect();
        put(&mut bytes, &format!("FUSEBOX_{}", name.to_ascii_uppercase()), &text(value));
    }
    bytes
}

/// The event as in the plain log.
fn message(fields: &Map<String, Value>) -> String {
    let mut message = fields.get("message").map(text).unwrap_or_default();
    let shown = |name: &str| !KNOWN.contains(&name) && !matches!(name, "target" | "span" | "spans");
    for (name, value) in fields.iter().filter(|(name, _)| shown(name)) {
        let value = if value.is_string() { format!("{:?}", text(value)) } else { text(value) };
        message.extend([" ", name, "=", &value]);
    }
    message
}

fn text(value: &Value) -> String {
    let told = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match told.char_indices().nth(TEXT_MAX) {
        Some((at, _)) => format!("{}… (cut)", told.get(..at).unwrap_or_default()),
        None => told,
    }
}

/// A field: on a line, or with its length if it holds a newline.
fn put(bytes: &mut Vec<u8>, name: &str, value: &str) {
    // Writing to memory does not fail.
    let written = if value.contains('\n') {
        let length = (value.len() as u64).to_le_bytes();
        bytes.write_all(name.as_bytes()).and_then(|()| bytes.write_all(b"\n")).and_then(|()| {
            bytes.write_all(&length)?;
            writeln!(bytes, "{value}")
        })
    } else {
        writeln!(bytes, "{name}={value}")
    };
    debug_assert!(written.is_ok(), "memory takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(event: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let journal = UnixDatagram::bind(&socket).unwrap();
        assert!(Journal::at(&socket).unwrap().take(4, event.as_bytes()));
        let mut bytes = vec![0; 1 << 17];
        let read = journal.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }

    #[test]
    fn an_events_fields_are_the_journals() {
        let told = sent(
            r#"{"timestamp":"t","level":"WARN","message":"it fails","target":"fusebox",
                "backend":"redis","failures":5,"span.id":true}"#,
        );
        let shape = "PRIORITY=4\nSYSLOG_IDENTIFIER=fusebox\n\
                     MESSAGE=it fails backend=\"redis\" failures=5 span.id=true\n\
                     FUSEBOX_BACKEND=redis\nFUSEBOX_FAILURES=5\nFUSEBOX_SPAN_ID=true\nFUSEBOX_TARGET=fusebox\n";
        assert_eq!(told, shape);
    }

    #[test]
    fn a_value_makes_no_field_of_its_own_and_no_endless_one() {
        let told = sent(r#"{"message":"x\nPRIORITY=0","key":"a\nMESSAGE=forged"}"#);
        assert!(told.contains("MESSAGE=x\\nPRIORITY=0 key=\"a\\nMESSAGE=forged\"\n"), "{told}");
        assert!(told.contains("FUSEBOX_KEY\n\u{10}\0\0\0\0\0\0\0a\nMESSAGE=forged\n"), "{told:?}");
        let long = sent(&format!(r#"{{"message":"m","key":"{}"}}"#, "k".repeat(1 << 20)));
        assert!(long.len() < 16 << 10, "{}", long.len());
    }

    #[test]
    fn where_nobody_listens_there_is_no_journal() {
        assert!(Journal::at(Path::new("/nowhere/socket")).is_none());
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let listening = UnixDatagram::bind(&socket).unwrap();
        let journal = Journal::at(&socket).unwrap();
        drop(listening);
        assert!(!journal.take(6, br#"{"message":"m"}"#));
        assert!(!journal.take(6, b"no object"));
    }
}
