//! Completions and the man page, from the same grammar.

use std::process::ExitCode;

use clap::CommandFactory;

use super::{Done, args::Cli};
use crate::terminal::{failure::Failure, print::say_bytes};

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
    clap_mangen::Man::new(command.clone()).render(&mut out)?;
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let title = format!(".SH \"FUSEBOX {}\"\n", sub.get_name().to_uppercase());
        out.extend_from_slice(title.as_bytes());
        let man = clap_mangen::Man::new(sub.clone());
        man.render_description_section(&mut out)?;
        man.render_synopsis_section(&mut out)?;
        man.render_options_section(&mut out)?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_tells_of_every_command() {
        let page = String::from_utf8(page().unwrap()).unwrap();
        for sub in Cli::command().get_subcommands() {
            let title = format!("FUSEBOX {}", sub.get_name().to_uppercase());
            assert!(page.contains(&title), "{title}");
        }
    }
}
