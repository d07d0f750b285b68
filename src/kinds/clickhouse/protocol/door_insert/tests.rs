use bytes::Bytes;

use super::{
    super::{
        decoded::{Coding, Packing},
        http_form::Unpacked,
    },
    *,
};

fn request(query: &str, parameters: &[(&str, &str)], body: &'static [u8]) -> HttpRequest {
    let text = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let head = RequestHead {
        method: "POST".into(),
        query: query.into(),
        parameters: parameters.iter().map(text).collect(),
        is_query: true,
        is_plain: true,
        is_whole: true,
        is_clear: true,
        ..RequestHead::default()
    };
    HttpRequest { head, body: Bytes::from_static(body) }
}

fn packed(query: &str, text: &str, body: &'static [u8]) -> HttpRequest {
    let mut request = request(query, &[], body);
    request.head.is_plain = false;
    request.head.packing = Some(Packing { coding: Some(Coding::Zstd), blocks: false });
    request.head.unpacked = Some(Unpacked { text: text.into(), is_known: true });
    request
}

#[track_caller]
fn is_stored(request: &HttpRequest, query: &str, raw: Option<&str>, data: &[u8]) {
    let call = call(request, Some("d")).unwrap();
    assert_eq!(call.header.query, query);
    assert_eq!(call.header.raw.as_ref().map(|raw| raw.query.as_str()), raw);
    assert_eq!(&call.data[..], data);
    assert_eq!(Call::of(&call.to_bytes()), Ok(call));
}

#[test]
fn what_json_callers_could_send_is_stored_as_theirs_and_the_rest_as_it_is() {
    let csv = "INSERT INTO t FORMAT CSV";
    is_stored(&request(csv, &[], b"1\n"), csv, None, b"1\n");
    is_stored(&request(csv, &[], b"\xff"), csv, None, b"\xff");
    let values = "INSERT INTO t VALUES (1)";
    is_stored(&request("", &[], values.as_bytes()), values, None, b"");
    is_stored(
        &request("INSERT INTO t", &[], b"VALUES (1)"),
        "INSERT INTO t\nVALUES (1)",
        None,
        b"",
    );
    let binary = b"INSERT INTO t FORMAT RowBinary\n\xff";
    is_stored(&request("", &[], binary), "INSERT INTO t FORMAT RowBinary", Some(""), binary);
    is_stored(&packed(csv, "", b"zip"), csv, Some(csv), b"zip");
    is_stored(&packed("", csv, b"zip"), csv, Some(""), b"zip");
    let split = packed("INSERT INTO t", "FORMAT CSV", b"zip");
    is_stored(&split, "INSERT INTO t\nFORMAT CSV", Some("INSERT INTO t"), b"zip");
}

#[test]
fn settings_parameters_and_database_are_the_calls_own() {
    let more = [
        ("session_id", "s"),
        ("query_id", "q"),
        ("param_a", "1"),
        ("max_threads", "2"),
        ("readonly", "0"),
        ("wait_end_of_query", "1"),
    ];
    let of =
        |more: &[(&str, &str)]| call(&request("INSERT INTO t VALUES", more, b"(1)"), Some("d"));
    let header = of(&more).unwrap().header;
    assert_eq!(header.params, [("a".to_owned(), "1".to_owned())].into());
    let settings = [("max_threads", "2"), ("readonly", "0")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(header.settings, settings.into());
    assert_eq!(header.database.as_deref(), Some("d"));
    assert_eq!(of(&[("database", "e")]).unwrap().header.database.as_deref(), Some("e"));
    assert_eq!(of(&[("database", "")]).unwrap().header.database.as_deref(), Some("d"));
    let mut named = request("INSERT INTO t VALUES", &[], b"(1)");
    assert!(call(&named, None).is_err());
    named.head.headers.push(("x-clickhouse-database".into(), "f".into()));
    assert_eq!(call(&named, None).unwrap().header.database.as_deref(), Some("f"));
    let qualified = request("INSERT INTO g.t VALUES", &[], b"(1)");
    assert_eq!(call(&qualified, None).unwrap().header.database.as_deref(), Some("g"));
    for refused in [
        &[("role", "r")][..],
        &[("quota_key", "k")],
        &[("readonly", "2")],
        &[("a", "1"), ("a", "2")],
    ] {
        assert!(of(refused).is_err(), "{refused:?}");
    }
}

#[test]
fn a_statement_is_what_its_body_says() {
    let binary = b"INSERT INTO t FORMAT RowBinary\n\xff";
    let sound = call(&request("", &[], binary), Some("d")).unwrap();
    assert!(stated::is_sound(&sound));
    let mut other = sound.clone();
    other.header.query = "INSERT INTO u FORMAT RowBinary".into();
    assert!(!stated::is_sound(&other));
    other = sound;
    other.data = Bytes::from_static(b"SYSTEM SHUTDOWN");
    assert!(!stated::is_sound(&other));
    // Another statement is in the place of rows.
    for (query, data) in [
        (
            "INSERT INTO t FORMAT RowBinary",
            &b"INSERT INTO t FORMAT RowBinary PARALLEL WITH DROP TABLE v"[..],
        ),
        ("INSERT INTO t FORMAT RowBinary", b"INSERT INTO t FORMAT RowBinary /* /* \xff */"),
    ] {
        let raw = Some(Raw { query: String::new(), packing: Packing::default() });
        let header = Header { query: query.into(), raw, ..Header::default() };
        assert!(!stated::is_sound(&Call { header, data: Bytes::copy_from_slice(data) }));
    }
    assert!(!stated::is_sound(
        &call(&packed("", "INSERT INTO t VALUES", b"zip"), Some("d")).unwrap()
    ));
}

#[test]
fn what_a_repetition_would_not_be_recognised_by_is_never_queued() {
    let settings = crate::kinds::clickhouse::settings::ClickHouseSettings::new(
        "http://h/d".parse().unwrap(),
        "i",
        "r",
    );
    let outage = |query: &str, parameters: &[(&str, &str)]| {
        let request = request(query, parameters, b"1\n");
        let Verb::Insert(insert) = sql::read(query).verb else { panic!("{query}") };
        let (_, _, access) = plan(&request, (&insert, query), false, Some("d"), &settings);
        let Access::Write(write) = access else { panic!("{query}") };
        write.outage
    };
    let csv = "INSERT INTO t FORMAT CSV";
    assert!(!matches!(outage(csv, &[]), Outage::Never(_)));
    let writable = outage("INSERT INTO t SETTINGS readonly=0 FORMAT CSV", &[]);
    assert!(!matches!(writable, Outage::Never(_)));
    for (query, parameters) in [
        (
            "INSERT INTO t SETTINGS optimize_on_insert,deduplicate_insert='disable' FORMAT CSV",
            &[][..],
        ),
        ("INSERT INTO t SETTINGS f={'x':'1','y':'2'},deduplicate_insert='disable' FORMAT CSV", &[]),
        ("INSERT INTO t SETTINGS a b = 2 FORMAT CSV", &[]),
        ("INSERT INTO t SETTINGS profile='x' FORMAT CSV", &[]),
        ("INSERT INTO t SETTINGS readonly=2 FORMAT CSV", &[]),
        (csv, &[("profile", "x")]),
        (csv, &[("allow_settings_after_format_in_insert", "1")]),
        ("INSERT INTO t ((SELECT now())) FORMAT CSV", &[]),
    ] {
        assert!(matches!(outage(query, parameters), Outage::Never(_)), "{query} {parameters:?}");
    }
}

#[test]
fn the_database_of_the_header_stands_above_the_parameter() {
    let mut request = request("INSERT INTO t FORMAT CSV", &[("database", "a")], b"1\n");
    assert_eq!(call(&request, None).unwrap().header.database.as_deref(), Some("a"));
    request.head.headers = vec![("x-clickhouse-database".into(), "b".into())];
    assert_eq!(call(&request, None).unwrap().header.database.as_deref(), Some("b"));
}

#[test]
fn in_an_ordered_backend_an_insert_whose_table_is_uncertain_takes_all_lanes() {
    let url = "http://h/d".parse().unwrap();
    let plain = crate::kinds::clickhouse::settings::ClickHouseSettings::new(url, "i", "r");
    let lanes = |query: &str, (is_dirty, usual): (bool, Option<&str>), ordered: bool| {
        let Verb::Insert(insert) = sql::read(query).verb else { panic!("{query}") };
        let settings =
            crate::kinds::clickhouse::settings::ClickHouseSettings { ordered, ..plain.clone() };
        plan(&request(query, &[], b"1\n"), (&insert, query), is_dirty, usual, &settings).1
    };
    let csv = "INSERT INTO t FORMAT CSV";
    for (query, known, is_uncertain) in [
        (csv, (false, Some("d")), false),
        (csv, (false, None), true),
        (csv, (false, Some("")), true),
        // What it uses may be another database.
        (csv, (true, Some("d")), true),
        ("INSERT INTO d.t FORMAT CSV", (true, None), false),
        ("INSERT INTO d.t FORMAT CSV", (false, None), false),
        ("INSERT INTO FUNCTION null('n Int8') FORMAT CSV", (false, Some("d")), true),
        ("INSERT INTO {t:Identifier} FORMAT CSV", (false, Some("d")), true),
        ("INSERT INTO t SELECT 1", (false, Some("d")), false),
        ("INSERT INTO t SELECT 1", (false, None), true),
        ("INSERT INTO t SELECT 1", (true, Some("d")), true),
    ] {
        let ordered = lanes(query, known, true);
        assert_eq!(ordered.is_all(), is_uncertain, "{query} {known:?}");
        assert!(is_uncertain || matches!(ordered, Lanes::One(_)), "{query} {known:?}");
        assert_eq!(lanes(query, known, false), Lanes::new([]), "{query}: they commute");
    }
    let certain = lanes("INSERT INTO d.t FORMAT CSV", (true, None), true);
    assert_eq!(certain, lanes(csv, (false, Some("d")), true), "it is the same lane");
    let selected = lanes("INSERT INTO d.t SELECT 1", (false, None), true);
    assert_eq!(certain, selected, "it waits for the inserts that are queued");
}
