//! How far long work is: a bar on standard error, if people look on.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of bytes read. `name` is before it.
pub(crate) fn bytes(name: &str) -> ProgressBar {
    bar(name, "{msg}  {wide_bar}  {bytes}/{total_bytes}  {eta}")
}

/// A bar of calls that are done. `name` is before it.
pub(crate) fn calls(name: &str) -> ProgressBar {
    bar(name, "{msg}  {wide_bar}  {human_pos}/{human_len} calls  {eta}")
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
    fn both_templates_are_valid() {
        for template in [
            "{msg}  {wide_bar}  {bytes}/{total_bytes}  {eta}",
            "{msg}  {wide_bar}  {human_pos}/{human_len} calls  {eta}",
        ] {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
