//! `fusebox config schema`: all settings that there are.

use super::args::SchemaFormat;
use crate::{
    config::{Environment, Flags, reference},
    kinds,
    sources::load_config,
    terminal::{
        failure::Done,
        print::{say, say_json},
    },
};

/// Prints them.
pub(super) fn print(format: SchemaFormat) -> Done {
    let sections = kinds::sections();
    match format {
        SchemaFormat::Json => say_json(&reference::schema(&sections))?,
        SchemaFormat::Markdown => say(&reference::page(&sections))?,
        SchemaFormat::Toml => {
            // What follows from other settings is shown as it is without any.
            let env = Environment::of(&[("FUSEBOX_CONFIG", "/dev/null"), ("HOME", "/")]);
            let usual = load_config(&Flags::default(), &env)?;
            say(&reference::file(&sections, &usual.effective))?;
        }
    }
    Ok(std::process::ExitCode::SUCCESS)
}
