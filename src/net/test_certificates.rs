//! Certificates of a test's own.

use std::{path::Path, process::Command};

/// An authority (`ca.crt`, `ca.key`) and a certificate of its for 127.0.0.1 (`server.crt`, `server.key`), in `folder`.
pub(crate) fn certificates(folder: &Path) {
    let script = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority \
         -keyout ca.key -out ca.crt \
         && openssl req -newkey rsa:2048 -nodes -subj /CN=server -keyout server.key -out server.csr \
         && printf 'subjectAltName=IP:127.0.0.1\\nbasicConstraints=CA:FALSE\\n' > ext \
         && openssl x509 -req -days 2 -in server.csr -CA ca.crt -CAkey ca.key -set_serial 1 \
         -extfile ext -out server.crt";
    let output = Command::new("sh").args(["-c", script]).current_dir(folder).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "apt-get install -y openssl: {words}");
}
