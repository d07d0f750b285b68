//! What is written about the settings, made of their declarations: the JSON schema, docs/configuration.md, and
//! systemd/fusebox.toml.

mod file;
mod page;
mod schema;
#[cfg(test)]
mod tests;

pub(crate) use file::file;
pub(crate) use page::page;
pub(crate) use schema::schema;

use toml::Value;

use super::{
    declared::Declared,
    judge::{self, Secrets},
    setting::Setting,
};

/// The settings of a section, without those of the sections within it.
fn leaves<'a>(declared: &'a Declared, section: &'a str) -> impl Iterator<Item = &'a Setting> {
    declared.settings.iter().filter(move |setting| {
        let (above, _) = setting.path.rsplit_once('.').unwrap_or(("", &setting.path));
        above == section
    })
}

/// The last part of a setting's path.
fn name(setting: &Setting) -> &str {
    setting.path.rsplit('.').next().unwrap_or_default()
}

/// A value as TOML writes it, in its usual form.
fn written(setting: &Setting, value: &Value) -> String {
    judge::shown(setting, value, Secrets::Masked).to_string()
}
