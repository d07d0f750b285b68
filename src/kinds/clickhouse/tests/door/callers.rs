//! Who may call.

use super::*;
use crate::{
    config::DoorAddress,
    ingress::callers::{Callers, Known, Right, SecretDigest},
    net::percent,
};

fn with_callers() -> DoorSettings {
    let mut door = door();
    door.auth = Auth::Token;
    let known = |name: &str, secret: &str, right| Known {
        name: name.to_owned(),
        right,
        secret: SecretDigest::of(secret.as_bytes()).unwrap(),
    };
    door.callers = Arc::new(Callers::new(vec![
        known("web", "s3cret", Right::Client),
        known("reports", "0ther", Right::Read),
        known("ops", "th1rd", Right::Admin),
    ]));
    door
}

#[tokio::test]
async fn credentials_end_at_the_door_and_the_server_sees_the_backends() {
    let world = World::with(Duration::from_secs(5), 64, with_callers()).await;
    let mut client = world.client_of(None);
    let ping = client.ask("GET /ping", "", "").await;
    assert_eq!(ping.status, 200, "it needs no credentials");
    let who = "SELECT currentUser()";
    for headers in [
        "X-ClickHouse-User: web\r\nX-ClickHouse-Key: s3cret\r\n",
        "Authorization: Basic d2ViOnMzY3JldA==\r\n",
        "X-ClickHouse-User: ada\r\nX-ClickHouse-Key: hush\r\n",
    ] {
        assert_eq!(client.ask("POST /", headers, who).await.text(), "ada\n", "{headers}");
    }
    let by_parameters = client.ask("POST /?user=web&password=s3cret", "", who).await;
    assert_eq!(by_parameters.text(), "ada\n");
    let absent = client.ask("POST /", "", who).await;
    assert_eq!((absent.status, absent.header("x-clickhouse-exception-code")), (401, Some("516")));
    assert!(absent.header("www-authenticate").is_some());
    let began = std::time::Instant::now();
    let wrong = client.ask("POST /?user=ada&password=wrong", "", who).await;
    assert!(began.elapsed() >= Duration::from_secs(1), "it waits");
    assert_eq!((wrong.status, wrong.header("x-clickhouse-exception-code")), (403, Some("516")));
    assert!(wrong.text().contains("ada: Authentication failed"), "{}", wrong.text());
    assert!(!wrong.text().contains("wrong"), "{}", wrong.text());
    assert_eq!(world.door.view().auth_failures, 2);
}

#[tokio::test]
async fn who_may_only_read_is_kept_from_writing() {
    let world = World::with(Duration::from_secs(5), 64, with_callers()).await;
    let mut client = world.client_of(None);
    let reports = "X-ClickHouse-User: reports\r\nX-ClickHouse-Key: 0ther\r\n";
    assert_eq!(client.ask("POST /", reports, "SELECT 1").await.text(), "1\n");
    for line in [
        "POST /",
        "POST /?readonly=0",
        "POST /?database=default",
        "POST /query?",
        "POST /query?readonly=0",
    ] {
        let made =
            client.ask(line, reports, "CREATE TABLE default.no (n Int8) ENGINE = Null").await;
        assert_eq!(made.header("x-clickhouse-exception-code"), Some("497"), "{line}");
    }
    // The server lets it write into these all the same, by GET as well.
    world.server.ask("CREATE TABLE default.t (n Int8) ENGINE = Memory").await;
    let address = format!(
        "http://127.0.0.1:{}/?query=INSERT%20INTO%20default.t%20FORMAT%20CSV",
        world.server.port
    );
    let (into, mut line) =
        (format!("INSERT INTO FUNCTION url('{address}', CSV, 'n Int8')"), String::new());
    percent::encode(&format!("{into} SELECT 2"), &mut line);
    for (line, headers, body) in [
        ("POST /", "", format!("{into} VALUES (1)").into_bytes()),
        ("POST /", GZIP, gzip(format!("{into} VALUES (1)"))),
        ("POST /?a=%FF", "", format!("{into} VALUES (1)").into()),
        (
            "POST /?query=INSERT%20INTO%20FUNCTION%20file('x.csv',CSV,'n%20Int8')",
            "",
            b"VALUES (1)".into(),
        ),
        (&format!("GET /?query={line}"), "", Vec::new()),
        (&format!("GET /query?a=%FF&query={line}"), "", Vec::new()),
        ("POST /", "", b"SET max_threads = 1".into()),
        ("POST /", "Content-Type: multipart/form-data; boundary=B\r\n", b"--B--\r\n".into()),
    ] {
        let refused = world.client_of(None).ask(line, &format!("{reports}{headers}"), &body).await;
        let code = refused.header("x-clickhouse-exception-code");
        assert_eq!((refused.status, code), (403, Some("497")), "{line} {headers}");
    }
    assert_eq!(world.server.ask("SELECT count() FROM default.t").await, "0");
    for line in [
        "GET /?query=SELECT%201",
        "GET /query?query=SHOW%20TABLES%20FROM%20default",
        "GET /?query=",
        "GET /",
        "HEAD /",
    ] {
        assert_ne!(client.ask(line, reports, "").await.status, 403, "{line}");
    }
    let admin = client.ask("POST /", reports, "SYSTEM FLUSH LOGS").await;
    assert_eq!((admin.status, admin.header("x-clickhouse-exception-code")), (403, Some("497")));
    // What a server's own configuration makes of other paths is not known.
    for line in ["POST /custom", "PUT /custom?a=b", "HEAD /custom?query=SELECT%201"] {
        let refused = client.ask(line, reports, "SELECT 1").await;
        assert_eq!(refused.header("x-clickhouse-exception-code"), Some("497"), "{line}");
        client = world.client_of(None);
    }
    for line in ["GET /custom", "HEAD /custom"] {
        assert_eq!(client.ask(line, reports, "").await.status, 404, "{line}");
    }
    let ops = "X-ClickHouse-User: ops\r\nX-ClickHouse-Key: th1rd\r\n";
    assert_eq!(client.ask("POST /", ops, "SYSTEM DROP MARK CACHE").await.status, 200);
}

#[tokio::test]
async fn a_door_at_every_address_answers_pings_and_asks_for_credentials() {
    let mut door = with_callers();
    door.listen = DoorAddress::Tcp("0.0.0.0:8123".parse().unwrap());
    let world = World::with(Duration::from_secs(5), 64, door).await;
    let mut client = world.client_over_tcp(None).await;
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: 10.0.0.7:8123\r\n\r\n");
    client.send(get("/ping")).await;
    assert_eq!(client.answer("GET").await.text(), "Ok.\n");
    client.send(get("/?query=SELECT%201")).await;
    let absent = client.answer("GET").await;
    assert_eq!((absent.status, absent.header("x-clickhouse-exception-code")), (401, Some("516")));
    client.send(get("/?query=SELECT%201&user=web&password=s3cret")).await;
    assert_eq!(client.answer("GET").await.text(), "1\n");
}

#[tokio::test]
async fn a_page_that_names_no_origin_writes_nothing() {
    let world = World::open().await;
    world.server.ask("CREATE TABLE default.t (n Int8) ENGINE = Memory").await;
    let address = format!(
        "http://127.0.0.1:{}/?query=INSERT%20INTO%20default.t%20FORMAT%20CSV",
        world.server.port
    );
    let mut insert = "GET /?query=".to_owned();
    let into = format!("INSERT INTO FUNCTION url('{address}', CSV, 'n Int8') SELECT 2");
    percent::encode(&into, &mut insert);
    let cross = "Sec-Fetch-Site: cross-site\r\n";
    for headers in [cross, "Sec-Fetch-Site: same-site\r\n", "Accept-Language: en\r\n"] {
        let local = world.client().ask(&insert, headers, "").await;
        let refused = world.client_over_tcp(Some(CLIENT)).await.ask(&insert, headers, "").await;
        for answer in [local, refused] {
            let code = answer.header("x-clickhouse-exception-code");
            assert_eq!((answer.status, code), (403, Some("497")), "{headers}");
        }
    }
    assert_eq!(world.server.ask("SELECT count() FROM default.t").await, "0");
    let mut client = world.client_over_tcp(Some(CLIENT)).await;
    let read = "GET /?query=SELECT%201";
    assert_eq!(client.ask(read, cross, "").await.status, 403);
    assert_eq!(client.ask(read, "Accept-Language: en\r\n", "").await.text(), "1\n");
    assert_ne!(client.ask(&insert, "", "").await.status, 403, "a program sends it");
}

#[tokio::test]
async fn a_page_of_another_origin_is_refused_unless_it_has_credentials() {
    let world = World::open().await;
    let mut client = world.client();
    let foreign = "Origin: http://evil.example\r\n";
    let refused = client.ask("POST /", foreign, "SELECT 1").await;
    assert_eq!((refused.status, refused.header("x-clickhouse-exception-code")), (403, Some("497")));
    let own = "Origin: http://localhost\r\n";
    assert_eq!(client.ask("POST /", own, "SELECT 1").await.text(), "1\n");
    let shown = format!("{foreign}X-ClickHouse-User: ada\r\nX-ClickHouse-Key: hush\r\n");
    assert_eq!(client.ask("POST /", &shown, "SELECT 1").await.text(), "1\n");
}
