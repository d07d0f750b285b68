//! Printing: output that ends early is not an error.

use std::io::{IsTerminal, Write};

use super::failure::Failure;

/// Whether people read what is printed.
pub(crate) fn on_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Prints on standard output. A reader that has gone, as of `| head`, is not an error.
pub(crate) fn say(text: &str) -> Result<(), Failure> {
    say_bytes(text.as_bytes())
}

pub(crate) fn say_bytes(bytes: &[u8]) -> Result<(), Failure> {
    print(bytes).map(drop)
}

/// Prints on standard output; returns whether somebody still reads.
pub(crate) fn say_while_read(text: &str) -> Result<bool, Failure> {
    print(text.as_bytes())
}

fn print(bytes: &[u8]) -> Result<bool, Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::failed(format!("cannot print: {error}"))),
    }
}

/// Prints a JSON value for programs, on one line for each.
pub(crate) fn say_json(value: &serde_json::Value) -> Result<(), Failure> {
    say(&format!("{value}\n"))
}

/// Prints a line on standard error.
pub(crate) fn complain(text: &str) {
    // There is nobody left to tell.
    drop(writeln!(std::io::stderr(), "{text}"));
}
