//! `fusebox check`: validates the configuration and prints the effective one.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::{
    config::{Config, ConfigErrors, Environment, Flags},
    daemon,
    ingress::peer::Policy,
    kinds::port::Identity,
    sources::load_config,
    terminal::{
        failure::Done,
        print::{complain, say, say_json},
    },
};

/// What was found.
#[derive(Debug, Default, PartialEq)]
struct Report {
    problems: Vec<String>,
    warnings: Vec<String>,
    notes: Vec<String>,
    config: Option<(Value, String)>,
}

/// `fusebox check`. Ends with 2 on a problem, with 1 on a warning (not with `--startup`), else with 0.
pub(crate) fn run(flags: &Flags, env: &Environment, startup: bool, as_json: bool) -> Done {
    let report = report(flags, env);
    if as_json {
        say_json(&json!({
            "ok": report.problems.is_empty(),
            "problems": report.problems,
            "warnings": report.warnings,
            "notes": report.notes,
            "config": report.config.as_ref().map(|(json, _)| json),
        }))?;
    } else {
        for (word, lines) in
            [("error", &report.problems), ("warning", &report.warnings), ("note", &report.notes)]
        {
            for line in lines {
                complain(&format!("{word}: {line}"));
            }
        }
        if let (Some((_, toml)), false) = (&report.config, startup) {
            say(toml)?;
        }
    }
    Ok(ExitCode::from(report.exit_code(startup)))
}

impl Report {
    fn exit_code(&self, startup: bool) -> u8 {
        match (self.problems.is_empty(), self.warnings.is_empty()) {
            (false, _) => 2,
            (true, false) if !startup => 1,
            _ => 0,
        }
    }
}

fn report(flags: &Flags, env: &Environment) -> Report {
    let config = match load_config(flags, env) {
        Ok(config) => config,
        Err(ConfigErrors { problems, warnings }) => {
            return Report { problems, warnings, ..Report::default() };
        }
    };
    let mut report = Report {
        problems: Vec::new(),
        warnings: config.warnings.clone(),
        notes: config.notes.clone(),
        config: Some((config.show(), config.show_toml())),
    };
    match &config.file {
        Some(file) => report.notes.insert(0, format!("read {}", file.display())),
        None => report.notes.insert(0, "no configuration file: defaults are in effect".into()),
    }
    report.warnings.extend(Policy::resolve(&config.client_group, &config.admin_group).1);
    report.warnings.extend(stray_stores(&config));
    let nobody = Identity { instance: "check".into(), run: "check".into(), ..Identity::default() };
    report.problems.extend(daemon::specs(&config.backends, &nobody).err());
    report
}

/// Stores whose backend is no longer configured: what waits in them is not replayed.
fn stray_stores(config: &Config) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(config.state_dir.join("backends")) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !config.backends.iter().any(|backend| backend.settings.name == *name))
        .map(|name| {
            format!("there is a store of {name:?}, but no such backend: its calls keep waiting")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_stop_and_warnings_only_do_without_startup() {
        let problem = Report { problems: vec!["p".into()], ..Report::default() };
        let warning = Report { warnings: vec!["w".into()], ..Report::default() };
        assert_eq!((problem.exit_code(false), problem.exit_code(true)), (2, 2));
        assert_eq!((warning.exit_code(false), warning.exit_code(true)), (1, 0));
        assert_eq!(Report::default().exit_code(false), 0);
    }

    #[test]
    fn unknown_groups_and_stray_stores_are_warned_of() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("backends/gone")).unwrap();
        std::fs::create_dir_all(dir.path().join("backends/redis")).unwrap();
        let env = Environment::of(&[
            ("FUSEBOX_STATE_DIR", dir.path().to_str().unwrap()),
            ("FUSEBOX_CONFIG", "/dev/null"),
            ("FUSEBOX_CLIENT_GROUP", "no such group"),
        ]);
        let report = report(&Flags::default(), &env);
        assert_eq!(report.problems, Vec::<String>::new());
        assert_eq!(report.warnings.len(), 2, "{:?}", report.warnings);
        assert!(report.warnings[0].starts_with("client_group names \"no such group\""));
        assert!(report.warnings[1].starts_with("there is a store of \"gone\""));
    }
}
