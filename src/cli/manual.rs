//! Completions and the man page, from the same grammar.

use std::process::ExitCode;

use clap::CommandFactory;

use super::args::Cli;
use crate::terminal::{
    failure::{Done, Failure},
    print::say_bytes,
};

/// `fusebox completions`
pub(crate) fn completions(shell: clap_complete::Shell) -> Done {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "fusebox", &mut out);
    say_bytes(&out)?;
    Ok(ExitCode::SUCCESS)
}

/// `fusebox man`
pub(crate) fn man() -> Done {
    say_bytes(&page().map_err(|error| Failure::failed(error.to_string()))?)?;
    Ok(ExitCode::SUCCESS)
}

/// One page: the whole, then each command's synopsis and options.
fn page() -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut command = Cli::command();
    command.build();
    let man = clap_mangen::Man::new(command.clone());
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    // Not as the generator has it, which names a page for each: there is this one.
    out.extend_from_slice(b".SH COMMANDS\n");
    for sub in commands(&command) {
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        let entry = format!(".TP\n\\fB{}\\fR\n{}\n", sub.get_name(), escaped(&about));
        out.extend_from_slice(entry.as_bytes());
    }
    man.render_extra_section(&mut out)?;
    for sub in commands(&command) {
        section(&mut out, sub, "FUSEBOX")?;
    }
    Ok(out)
}

/// The section of a command, and those of the commands within it.
fn section(out: &mut Vec<u8>, command: &clap::Command, above: &str) -> std::io::Result<()> {
    let title = format!("{above} {}", command.get_name().to_uppercase());
    out.extend_from_slice(format!(".SH \"{title}\"\n").as_bytes());
    let man = clap_mangen::Man::new(command.clone());
    man.render_description_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_options_section(out)?;
    for sub in commands(command) {
        section(out, sub, &title)?;
    }
    Ok(())
}

fn commands(command: &clap::Command) -> impl Iterator<Item = &clap::Command> {
    command.get_subcommands().filter(|sub| sub.get_name() != "help" && !sub.is_hide_set())
}

/// `text` with what roff takes for orders made harmless.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_no_page_that_is_not_there() {
        let page = String::from_utf8(page().unwrap()).unwrap();
        let named = page.lines().find(|line| line.ends_with("(1)"));
        assert_eq!(named, None);
        assert!(page.contains("FUSEBOX QUEUE LS"), "the commands within commands are told as well");
    }

    #[test]
    fn the_page_tells_of_every_command() {
        let page = String::from_utf8(page().unwrap()).unwrap();
        for sub in Cli::command().get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let title = format!("FUSEBOX {}", sub.get_name().to_uppercase());
            assert!(page.contains(&title), "{title}");
        }
    }
}
