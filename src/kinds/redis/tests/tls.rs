//! TLS against a server that speaks it.

use super::*;
use crate::{
    kinds::redis::settings::TlsSettings,
    net::{test_certificates::certificates, test_port::Port},
};

#[tokio::test]
async fn a_certificate_is_checked_against_the_authorities() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let lease = Port::lease();
    let tls_port = lease.number();
    let (cert, key, ca) = (file("server.crt"), file("server.key"), file("ca.crt"));
    let port = tls_port.to_string();
    let _server = Server::start_with(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "no",
    ])
    .await;
    let url = format!("rediss://127.0.0.1:{tls_port}");
    let mut settings =
        crate::kinds::redis::settings::RedisSettings::new(url.parse().unwrap(), "i", "r");
    let untrusted = RedisConnector::new(settings.clone());
    let (refused, verdict) = error(call(&untrusted, "SET k v").await);
    assert_eq!(
        (refused.class, verdict),
        (ErrorClass::BlockedServer, Verdict::Failure),
        "{refused}"
    );
    assert_eq!(refused.code.as_str(), "tls");
    settings.tls = Some(TlsSettings { ca_file: Some(ca.into()) });
    let redis = RedisConnector::new(settings);
    let value = "x".repeat(500_000);
    let set = resp::command(&["SET", "k", &value]);
    assert_eq!(reply(call_with(&redis, set, With::default()).await), "+OK\r\n");
    let got = reply(call(&redis, "GET k").await);
    assert_eq!(resp::Reply::of(&got).unwrap().text(), Some(value.as_bytes()));
}
