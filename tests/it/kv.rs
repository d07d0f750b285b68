//! Another kind is one folder and one line: a stored patch adds one, and the daemon that is built with it
//! serves it.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    daemon::{Builder, Client},
    relay::Relay,
};

const PATCH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/patches/kv.patch");
/// Who does not have it is not let in.
const TOKEN: &str = "open-sesame";
const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_kind_is_added_by_its_folder_and_one_line_of_the_list() {
    let patch = fs::read_to_string(PATCH).unwrap();
    let files = patch.lines().filter_map(|line| line.strip_prefix("+++ b/"));
    for file in files {
        let is_own = file == "src/kinds/kv.rs" || file.starts_with("src/kinds/kv/");
        assert!(is_own || file == "src/kinds.rs", "a kind is not to touch {file}");
    }
}

#[test]
fn an_added_kind_compiles() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kv");
    let mut check = cargo(&patched(&folder), "check");
    // What the lints have compiled of the libraries is used again.
    succeeds(check.env("CARGO_TARGET_DIR", folder.join("../..")));
}

#[test]
#[ignore = "builds a daemon of its own, which takes minutes: tests/nightly kinds"]
fn an_added_kind_is_served_through_an_outage() {
    let server = Server::start();
    let relay = Relay::start(server.port);
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, TOKEN).unwrap();
    let daemon = Builder::default()
        .program(&built())
        .set("backends.kv.url", format!("http://127.0.0.1:{}", relay.port()))
        .set("backends.kv.prefix", "/shop")
        .set("backends.kv.token_file", token.to_str().unwrap())
        .set("backends.kv.breaker.recovery_timeout", "1s")
        .start();
    put(&daemon, "a", "1").assert_live();
    get(&daemon, "a").assert_live();
    get(&daemon, "a").assert_value("1");
    assert_eq!(server.value("/shop/a").as_deref(), Some("1"));

    relay.refuse();
    relay.drop_connections();
    put(&daemon, "a", "2").assert_queued();
    put(&daemon, "b", "3").assert_queued();
    get(&daemon, "a").assert_value("2");
    assert_eq!(server.value("/shop/a").as_deref(), Some("1"));

    relay.accept_again();
    daemon.wait_until_drained("kv", LONG);
    assert_eq!(server.value("/shop/a").as_deref(), Some("2"));
    assert_eq!(server.value("/shop/b").as_deref(), Some("3"));
    daemon.call("kv", json!({"method": "DELETE", "key": "b"})).assert_live();
    get(&daemon, "b").assert_value(Value::Null);
    assert!(server.numbers_only_grow());
}

fn put(daemon: &Client, key: &str, value: &str) -> crate::support::daemon::Reply {
    daemon.call("kv", json!({"method": "PUT", "key": key, "value": value}))
}

fn get(daemon: &Client, key: &str) -> crate::support::daemon::Reply {
    daemon.call("kv", json!({"method": "GET", "key": key}))
}

/// Builds the daemon with the patch. Returns the binary.
fn built() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/kv");
    let target = folder.join("build");
    succeeds(cargo(&patched(&folder), "build").env("CARGO_TARGET_DIR", &target));
    target.join("debug/fusebox")
}

/// A copy of the tree in `folder`, with the patch.
fn patched(folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    drop(fs::remove_dir_all(&tree));
    copy_tracked(Path::new(env!("CARGO_MANIFEST_DIR")), &tree);
    let mut apply = Command::new("git");
    // The copy is within a repository, which is not the one to be patched.
    apply.args(["apply", PATCH]).current_dir(&tree).env("GIT_CEILING_DIRECTORIES", folder);
    succeeds(&mut apply);
    tree
}

fn cargo(tree: &Path, command: &str) -> Command {
    let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    cargo.args([command, "--locked", "--bin", "fusebox"]).current_dir(tree);
    cargo
}

/// Copies what git tracks, as it is now. What was not changed keeps its time, so that it is not built again.
fn copy_tracked(root: &Path, to: &Path) {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for file in listed.split('\0').filter(|file| !file.is_empty()) {
        let (from, to) = (root.join(file), to.join(file));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let Ok(source) = fs::File::open(&from) else { continue };
        fs::copy(&from, &to).unwrap();
        let modified = source.metadata().unwrap().modified().unwrap();
        fs::File::options().write(true).open(&to).unwrap().set_modified(modified).unwrap();
    }
}

#[track_caller]
fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// A key-value service that takes no number twice.
struct Server {
    port: u16,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    values: BTreeMap<String, (u64, Option<Vec<u8>>)>,
    numbers: Vec<u64>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let kept = Arc::new(Mutex::new(Kept::default()));
        let lent = Arc::clone(&kept);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = Arc::clone(&lent);
                thread::spawn(move || serve(&stream, &kept));
            }
        });
        Self { port, kept }
    }

    fn value(&self, path: &str) -> Option<String> {
        let kept = self.kept.lock().unwrap();
        let value = kept.values.get(path)?.1.clone()?;
        Some(String::from_utf8(value).unwrap())
    }

    fn numbers_only_grow(&self) -> bool {
        self.kept.lock().unwrap().numbers.is_sorted_by(|one, next| one < next)
    }
}

/// Answers requests until the connection ends.
fn serve(stream: &TcpStream, kept: &Mutex<Kept>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_owned());
        }
        let field = |name: &str| {
            let fields = head.iter().filter_map(|line| line.split_once(':'));
            let mut named = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
            named.next().and_then(|(_, value)| value.trim().parse::<u64>().ok())
        };
        let mut value = vec![0; usize::try_from(field("content-length").unwrap_or(0)).ok()?];
        reader.read_exact(&mut value).ok()?;
        let mut words = head.first()?.split(' ');
        let (method, path) = (words.next()?, words.next()?);
        if !head.contains(&format!("authorization: Bearer {TOKEN}")) {
            return None;
        }
        let number = field("x-sequence");
        let (status, body) = answer(&mut kept.lock().unwrap(), method, path, number, value);
        let mut stream = stream;
        write!(stream, "HTTP/1.1 {status} -\r\nContent-Length: {}\r\n\r\n", body.len()).ok()?;
        stream.write_all(&body).ok()?;
    }
}

fn answer(
    kept: &mut Kept,
    method: &str,
    path: &str,
    number: Option<u64>,
    value: Vec<u8>,
) -> (u16, Vec<u8>) {
    if method == "GET" {
        let value = kept.values.get(path).and_then(|(_, value)| value.clone());
        return value.map_or((404, Vec::new()), |value| (200, value));
    }
    let Some(number) = number else { return (400, Vec::new()) };
    if kept.values.get(path).is_some_and(|(last, _)| *last >= number) {
        return (409, Vec::new());
    }
    kept.numbers.push(number);
    kept.values.insert(path.to_owned(), (number, (method == "PUT").then_some(value)));
    (204, Vec::new())
}
