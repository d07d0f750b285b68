"""clickhouse-connect's inserts through a door that queues: `clickhouse_inserts.py PORT live|outage|restarted|one`.

Each phase inserts rows that no other one does, as the name of the phase says. Whatever it does not find as it should be
ends it with an assertion.
"""

import sys

import clickhouse_connect

port, phase = int(sys.argv[1]), sys.argv[2]
COMPRESSIONS = ("lz4", "zstd", "gzip", False)
PHASES = ("live", "outage", "restarted", "one")


def connect(**options):
    return clickhouse_connect.get_client(host="127.0.0.1", port=port, **options)


def insert(client, begin, count, written, **types):
    rows = [[n, f"{n} " + "x" * 100] for n in range(begin, begin + count)]
    summary = client.insert("py", rows, column_names=["n", "s"], **types)
    assert summary.written_rows == written, summary.summary
    assert summary.query_id(), summary.summary


first = PHASES.index(phase) * 1_000_000
if phase == "one":
    insert(connect(autogenerate_session_id=False), first, 100, 0)
else:
    for number, compress in enumerate(COMPRESSIONS):
        # One without a session takes the database that the server gives it, which is another one, and asks for the
        # types of its columns. What is asked for in a session that may have begun before fusebox is not everybody's.
        whose, types = {"autogenerate_session_id": False}, {}
        if compress != "zstd":
            whose, types = {"database": "default"}, {"column_type_names": ["UInt32", "String"]}
        client = connect(compress=compress, **whose)
        for part in range(3):
            count = 500 if part < 2 else 5_000
            begin = first + number * 100_000 + part * 10_000
            insert(client, begin, count, count if phase == "live" else 0, **types)
print("ok")
