"""clickhouse-connect's DataFrames and raw inserts through a door that queues: `clickhouse_frames.py PORT live|outage|after`.

`live` and `outage` insert the same number of rows, and `after` finds all of them once. Whatever is not as it should be
ends it with an assertion.
"""

import gzip
import io
import sys
from datetime import datetime, timezone

import clickhouse_connect
import lz4.frame
import pandas
from backports import zstd
from clickhouse_connect.driver.exceptions import Error

port, phase = int(sys.argv[1]), sys.argv[2]
COMPRESSIONS = ("lz4", "zstd", "gzip", False)
PACKERS = {"gzip": gzip.compress, "zstd": zstd.compress, "lz4": lz4.frame.compress, None: bytes}
ASKED = "SELECT n, s, at, x FROM frames WHERE n < 3 ORDER BY n"
FRAME_ROWS, RAW_ROWS = 400, 300
EACH = len(COMPRESSIONS) * FRAME_ROWS + len(PACKERS) * 3 * RAW_ROWS


def connect(**options):
    options = {"database": "default", "autogenerate_session_id": False, **options}
    return clickhouse_connect.get_client(host="127.0.0.1", port=port, **options)


def frame(begin, count):
    numbers = list(range(begin, begin + count))
    values = [None if n % 3 == 0 else n / 2 for n in numbers]
    at = pandas.Timestamp(datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc))
    return pandas.DataFrame({"n": numbers, "s": [f"größe {n}" for n in numbers], "at": [at] * count, "x": values})


def check(found):
    """The first three rows, as a DataFrame."""
    assert list(found.columns) == ["n", "s", "at", "x"], found.columns
    assert list(found["n"]) == [0, 1, 2] and list(found["s"]) == [f"größe {n}" for n in range(3)], found
    assert found["x"].isna().tolist() == [True, False, False] and found["x"][2] == 1.0, found
    assert str(found["at"][0]).startswith("2026-01-02 03:04:05"), found


def insert(begin, is_written):
    """All the ways in which a client inserts, with numbers from `begin` on."""
    at = begin
    for compress in COMPRESSIONS:
        summary = connect(compress=compress).insert_df("frames", frame(at, FRAME_ROWS))
        assert summary.written_rows == (FRAME_ROWS if is_written else 0), summary.summary
        at += FRAME_ROWS
    client = connect()
    for compression, pack in PACKERS.items():
        # At once, in pieces as they are made, and out of a file.
        ways = (bytes, lambda packed: (packed[at : at + 100] for at in range(0, len(packed), 100)), io.BytesIO)
        for way in ways:
            lines = "".join(f"{n},größe {n},2026-01-02 03:04:05,\\N\n" for n in range(at, at + RAW_ROWS))
            block = way(pack(lines.encode()))
            summary = client.raw_insert("frames", insert_block=block, fmt="CSV", compression=compression)
            assert summary.written_rows == (RAW_ROWS if is_written else 0), (compression, summary.summary)
            at += RAW_ROWS
    assert at - begin == EACH


if phase == "live":
    client = connect()
    client.command(
        "CREATE TABLE frames (n UInt32, s String, at DateTime('UTC'), x Nullable(Float64)) ENGINE = MergeTree ORDER BY n "
        "SETTINGS non_replicated_deduplication_window = 1000"
    )
    insert(0, True)
    check(client.query_df(ASKED))
    with client.query_df_stream("SELECT number FROM numbers(300000)") as stream:
        assert sum(len(piece) for piece in stream) == 300_000
elif phase == "outage":
    client = connect()
    check(client.query_df(ASKED))
    try:
        client.query_df("SELECT max(n) FROM frames")
        raise AssertionError("it was not asked before")
    except Error as error:
        assert "Code: 210" in str(error) and "not executed" in str(error), error
    insert(EACH, False)
else:
    found = connect().query_df("SELECT n, s FROM frames ORDER BY n")
    assert list(found["n"]) == list(range(2 * EACH)), len(found)
    assert list(found["s"]) == [f"größe {n}" for n in range(2 * EACH)]
print("ok")
