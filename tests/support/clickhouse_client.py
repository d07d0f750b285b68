"""clickhouse-connect as its users use it, through a door: `clickhouse_client.py PORT live|outage|cached|starts|after`.

Whatever it does not find as it should be ends it with an assertion.
"""

import sys
import time

import clickhouse_connect
from clickhouse_connect.driver.exceptions import Error
from clickhouse_connect.driver.external import ExternalData

port, phase = int(sys.argv[1]), sys.argv[2]
LARGE = (250_000, 249_999)
COMPRESSIONS = ("lz4", "zstd", "gzip", False)


def connect(**options):
    return clickhouse_connect.get_client(host="127.0.0.1", port=port, database="default", **options)


def live(rows):
    client = connect()
    client.command("CREATE TABLE IF NOT EXISTS py (n UInt64, s String) ENGINE = MergeTree ORDER BY n")
    before = client.query("SELECT count() FROM py").result_rows[0][0]
    for compress in COMPRESSIONS:
        packed = connect(compress=compress)
        packed.insert("py", [[n, "x" * 100] for n in range(rows)], column_names=["n", "s"])
        read = packed.query("SELECT n, s FROM py ORDER BY n LIMIT 3").result_rows
        assert [row[1] for row in read] == ["x" * 100] * 3, read
    count = client.query("SELECT count() FROM py").result_rows[0][0]
    assert count == before + rows * len(COMPRESSIONS), count
    # A session, parameters, external data, a stream, an error in the statement and one behind rows.
    client.command("CREATE TEMPORARY TABLE mine (n Int8)")
    client.command("INSERT INTO mine VALUES (7)")
    assert client.query("SELECT n FROM mine").result_rows == [(7,)]
    assert client.query("SELECT {a:Int32} + 1", parameters={"a": 1}).result_rows == [(2,)]
    data = ExternalData(data=b"1\n2\n", fmt="TSV", types=["Int32"], file_name="ext")
    assert client.query("SELECT sum(_1) FROM ext", external_data=data).result_rows == [(3,)]
    with client.query_row_block_stream("SELECT number FROM numbers(1000000)") as stream:
        assert sum(len(block) for block in stream) == 1_000_000
    assert "Code: 47" in refused(lambda: client.query("SELECT nosuch"))
    thrown = "SELECT throwIf(number = 300000) FROM numbers(1000000) SETTINGS max_block_size = 1000"
    assert "Code: 395" in refused(lambda: client.query(thrown))
    assert client.ping() is True
    # Without a session what is read is everybody's.
    plain = connect(autogenerate_session_id=False)
    assert plain.query("SELECT min(n) FROM py").result_rows == [(0,)]
    assert large(plain) == LARGE


def large(client):
    """A result of about 10 MB."""
    asked = "SELECT number, hex(sipHash128(number)) AS h FROM numbers(250000)"
    rows = client.query(asked).result_rows
    return len(rows), rows[-1][0]


def cached():
    """A client that starts in an outage, and asks what was asked before."""
    client = connect(autogenerate_session_id=False)
    assert client.query("SELECT min(n) FROM py").result_rows == [(0,)]
    assert large(client) == LARGE


def outage():
    """Each call ends with a clear error, and soon."""
    for call in (
        lambda client: client.query("SELECT 42"),
        lambda client: client.insert("py", [[1, "x"]], column_names=["n", "s"]),
        lambda client: client.command("CREATE TABLE no (n Int8) ENGINE = Memory"),
    ):
        began = time.monotonic()
        told = refused(lambda: call(connect(autogenerate_session_id=False)))
        took = time.monotonic() - began
        assert took < 3, took
        assert "Code: 210" in told and "fusebox: clickhouse: " in told, told
        assert "not executed" in told, told


def refused(call):
    try:
        call()
    except Error as error:
        return str(error)
    raise AssertionError("it was not refused")


def starts():
    """It can start in an outage in which the daemon was killed."""
    for options in ({}, {"autogenerate_session_id": False}):
        client = connect(**options)
        assert client.server_version and client.ping() is True
        assert "Code: 210" in refused(lambda: client.query("SELECT min(n) FROM py"))


phases = {"live": lambda: live(5_000), "outage": outage, "cached": cached, "starts": starts, "after": lambda: live(100)}
phases[phase]()
print("ok")
