//! What is packaged beside the binary: manifests, configurations, the list of the package's files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::{
    house::pages::{beside, links},
    support::{daemon::FUSEBOX, proc::venv_python},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What the validator says of these manifests, strictly, as this version of Kubernetes has its resources.
fn validate(version: &str, manifests: &[PathBuf]) -> Output {
    let mut command = Command::new(venv_python());
    command.args(["-m", "kubernetes_validate", "--strict", "-k", version]).args(manifests);
    command.output().expect("the validator runs")
}

fn text(output: &Output) -> String {
    let bytes = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8(bytes).expect("text")
}

fn manifests() -> Vec<PathBuf> {
    let files = fs::read_dir(root().join("packaging/kubernetes")).unwrap();
    let files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    assert!(files.len() > 1, "{files:?}");
    files
}

#[test]
fn kubernetes_takes_the_manifests() {
    // The first version with sidecars, and the newest that the validator knows.
    for version in ["1.29", "1.37"] {
        let validated = validate(version, &manifests());
        assert!(validated.status.success(), "{version}: {}", text(&validated));
    }
}

#[test]
fn a_misspelt_key_of_a_manifest_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("statefulset.yaml");
    let good = fs::read_to_string(root().join("packaging/kubernetes/statefulset.yaml")).unwrap();
    fs::write(&manifest, good.replace("failureThreshold: 300", "failureTreshold: 300")).unwrap();
    let validated = validate("1.37", &[manifest]);
    assert!(!validated.status.success(), "{}", text(&validated));
    assert!(text(&validated).contains("failureTreshold"), "{}", text(&validated));
}

/// The configuration in a manifest: all that is indented below `key`.
fn within(file: &str, key: &str) -> String {
    let text = fs::read_to_string(root().join(file)).unwrap();
    let mut lines = text.lines().skip_while(|line| line.trim() != key);
    let indent = |line: &str| line.len() - line.trim_start().len();
    let outer = indent(lines.next().expect("the key is there"));
    let inner = lines.take_while(|line| line.is_empty() || indent(line) > outer);
    inner.map(str::trim_start).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_configurations_that_are_packaged_are_valid() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(&secret, "secret\n").unwrap();
    let deb = fs::read_to_string(root().join("packaging/deb/fusebox.toml")).unwrap();
    let kubernetes = within("packaging/kubernetes/statefulset.yaml", "fusebox.toml: |");
    let kubernetes =
        kubernetes.replace("/etc/fusebox/secrets/redis", secret.path().to_str().unwrap());
    let compose = within("packaging/container/compose.yaml", "content: |");
    for (name, configuration) in [("deb", deb), ("kubernetes", kubernetes), ("compose", compose)] {
        assert!(configuration.contains("[backends.redis]"), "{name}: {configuration}");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("fusebox.toml");
        fs::write(&file, configuration).unwrap();
        let mut check = Command::new(FUSEBOX);
        check.args(["check", "--config"]).arg(file).arg("--state-dir").arg(folder.path());
        // A number, as in the image: this host may not have the group.
        check.env("FUSEBOX_CLIENT_GROUP", "65532").env("FUSEBOX_ADMIN_GROUP", "0");
        let checked = check.output().unwrap();
        let problems: Vec<String> = text(&checked)
            .lines()
            .filter(|line| line.starts_with("error") || line.starts_with("warning"))
            .map(str::to_owned)
            .collect();
        assert!(checked.status.code().is_some_and(|code| code < 2), "{name}: {problems:?}");
        // That others may read the traffic is asked for.
        let unasked = problems.iter().filter(|line| !line.contains("plaintext"));
        assert_eq!(unasked.count(), 0, "{name}: {problems:?}");
    }
}

fn manifest() -> toml::Table {
    fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap()
}

/// A file of the repository, and its place on a host.
type Packaged = (String, String);

/// The files of the Debian package.
fn packaged() -> Vec<Packaged> {
    let manifest = manifest();
    let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array().unwrap();
    let mut packaged = Vec::new();
    for asset in assets {
        let target = asset[1].as_str().unwrap();
        for source in matching(asset[0].as_str().unwrap()) {
            let name = source.rsplit('/').next().unwrap_or(&source);
            let place =
                if target.ends_with('/') { target.to_owned() + name } else { target.into() };
            packaged.push((source, place));
        }
    }
    packaged
}

/// The file that an asset names, or the files that its pattern matches.
fn matching(source: &str) -> Vec<String> {
    let (folder, name) = source.rsplit_once('/').unwrap_or(("", source));
    let Some(ending) = name.strip_prefix('*') else { return vec![source.to_owned()] };
    let files = fs::read_dir(root().join(folder)).unwrap().map(|file| file.unwrap().path());
    let files = files.filter(|path| path.is_file());
    let names = files.map(|path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
    names.filter(|name| name.ends_with(ending)).collect()
}

/// The relative links of the packaged pages that lead to nothing in the package.
fn dead_links(packaged: &[Packaged]) -> Vec<String> {
    let mut dead = Vec::new();
    for (source, place) in packaged {
        if Path::new(place).extension() != Some("md".as_ref()) {
            continue;
        }
        let page = fs::read_to_string(root().join(source)).unwrap();
        for (line, target) in links(&page) {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") || file.starts_with("mailto:") {
                continue;
            }
            let wanted = beside(place, file);
            let folder = format!("{wanted}/");
            if !packaged.iter().any(|(_, place)| *place == wanted || place.starts_with(&folder)) {
                dead.push(format!("{source}:{line}: the package has no {wanted}"));
            }
        }
    }
    dead
}

#[test]
fn the_debian_package_has_every_unit_and_every_page() {
    let packaged = packaged();
    for (source, _) in &packaged {
        let is_made = source.starts_with("target/");
        assert!(is_made || root().join(source).try_exists().unwrap(), "{source} is not there");
    }
    let mut folders = ["docs", "systemd", "examples"].map(|folder| root().join(folder)).to_vec();
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // Python leaves its own files in a folder of this name.
                if !path.ends_with("__pycache__") {
                    folders.push(path);
                }
                continue;
            }
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
            assert!(packaged.iter().any(|(source, _)| source == name), "{name} is not packaged");
        }
    }
    let dead = dead_links(&packaged);
    assert!(dead.is_empty(), "{}", dead.join("\n"));
}

#[test]
fn a_packaged_page_with_a_dead_link_is_found() {
    let mut packaged = packaged();
    packaged.retain(|(source, _)| source != "SECURITY.md");
    let dead = dead_links(&packaged);
    assert!(dead.iter().any(|link| link.starts_with("README.md:")), "{dead:?}");
    assert!(dead.iter().all(|link| link.ends_with("doc/fusebox/SECURITY.md")), "{dead:?}");
}

#[test]
fn the_image_has_the_licences() {
    let container = root().join("packaging/container");
    let dockerfile = fs::read_to_string(container.join("Dockerfile")).unwrap();
    let sent = fs::read_to_string(container.join("Dockerfile.dockerignore")).unwrap();
    let copied = dockerfile.lines().find(|line| line.contains("/image/usr/share/doc/fusebox/"));
    let copied = copied.expect("the files are copied");
    for file in ["NOTICE", "LICENSE-APACHE", "LICENSE-MIT"] {
        assert!(copied.contains(file), "{file} is not in the image: {copied}");
        assert!(sent.lines().any(|line| line == format!("!{file}")), "{file} is not sent");
    }
}

#[test]
fn the_image_is_built_with_the_rust_that_the_crates_ask_for() {
    let wanted = manifest()["workspace"]["package"]["rust-version"].as_str().unwrap().to_owned();
    let dockerfile = fs::read_to_string(root().join("packaging/container/Dockerfile")).unwrap();
    assert!(dockerfile.contains(&format!("\nFROM rust:{wanted}-")), "rust-version is {wanted}");
}
