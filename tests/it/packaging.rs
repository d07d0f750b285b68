//! What is packaged beside the binary: manifests, configurations, the list of the package's files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::support::{daemon::FUSEBOX, proc::venv_python};

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

#[test]
fn the_debian_package_has_every_unit_and_every_page() {
    let manifest = manifest();
    let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array().unwrap();
    let sources: Vec<&str> = assets.iter().map(|asset| asset[0].as_str().unwrap()).collect();
    let folder = |source: &str| source.rsplit_once('/').unwrap_or_default().0.to_owned();
    for source in &sources {
        let is_made = source.starts_with("target/");
        let is_there =
            if source.contains('*') { root().join(folder(source)) } else { root().join(source) };
        assert!(is_made || is_there.try_exists().unwrap(), "{source} is not there");
    }
    let mut folders = vec![root().join("docs"), root().join("systemd")];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
            let has = |source: &&str| {
                let all = source.ends_with("/*.md") && path.extension() == Some("md".as_ref());
                **source == *name
                    || (all || source.ends_with("/*")) && folder(source) == folder(name)
            };
            assert!(sources.iter().any(&has), "{name} is not packaged");
        }
    }
}

#[test]
fn the_image_is_built_with_the_rust_that_the_crates_ask_for() {
    let wanted = manifest()["workspace"]["package"]["rust-version"].as_str().unwrap().to_owned();
    let dockerfile = fs::read_to_string(root().join("packaging/container/Dockerfile")).unwrap();
    assert!(dockerfile.contains(&format!("\nFROM rust:{wanted}-")), "rust-version is {wanted}");
}
