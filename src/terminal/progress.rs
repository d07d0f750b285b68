//! How far long work is: a bar on standard error, if people look on.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

const BYTES: &str = "{msg}  {wide_bar}  {bytes}/{total_bytes}  {eta}";
const CALLS: &str = "{msg}  {wide_bar}  {human_pos}/{human_len} calls  {eta}";

/// A bar of bytes read. `name` is before it.
pub(crate) fn bytes(name: &str) -> ProgressBar {
    bar(name, BYTES)
}

/// A bar of calls that wait, which goes away with it.
pub(crate) struct Waiting {
    bar: ProgressBar,
    /// How many there were at most.
    most: u64,
}

impl Waiting {
    /// `name` is before the bar.
    pub(crate) fn of(name: &str) -> Self {
        Self { bar: bar(name, CALLS), most: 0 }
    }

    /// So many are left.
    pub(crate) fn left(&mut self, left: u64) {
        self.most = self.most.max(left);
        self.bar.set_length(self.most);
        self.bar.set_position(self.most - left);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Whether a bar is seen.
pub(crate) fn is_seen() -> bool {
    std::io::stderr().is_terminal()
}

fn bar(name: &str, template: &str) -> ProgressBar {
    if !is_seen() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0).with_message(name.to_owned());
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Whoever reads a log says how much of how much it has read.
pub(crate) fn follow(bar: &ProgressBar) -> impl FnMut(u64, u64) {
    let bar = bar.clone();
    move |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_goes_as_far_as_it_is_said() {
        let bar = ProgressBar::hidden();
        follow(&bar)(3, 7);
        assert_eq!((bar.position(), bar.length()), (3, Some(7)));
    }

    #[test]
    fn what_waits_is_counted_from_the_most_that_there_was() {
        let mut waiting = Waiting::of("replay");
        for (left, done) in [(5, 0), (2, 3), (8, 0), (7, 1)] {
            waiting.left(left);
            assert_eq!(waiting.bar.position(), done);
        }
    }

    #[test]
    fn both_templates_are_valid() {
        for template in [BYTES, CALLS] {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
