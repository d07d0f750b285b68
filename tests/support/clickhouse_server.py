#!/usr/bin/env python3
"""A real, current ClickHouse server for tests, out of the npm package @chdb/lib-linux-x64-gnu.

The library's `chdb_query_cmdline` is the main function of clickhouse-local, which can open the server's own
HTTP and native ports. With a configuration file it also takes the server's users, profiles, quotas, grants and
query_log. Its default database is a thing of clickhouse-local's own, called `local` here; `default` is an
Atomic database as on any server.

usage: clickhouse_server.py CONFIG.xml
"""

import ctypes
import pathlib
import sys

LIBRARY = pathlib.Path(__file__).parents[2] / "node_modules/@chdb/lib-linux-x64-gnu/libchdb.so"
if not LIBRARY.exists():
    sys.exit(f"{LIBRARY} is missing: tests/setup")
STATEMENTS = [
    "CREATE DATABASE IF NOT EXISTS default ENGINE = Atomic",
    "SYSTEM START LISTEN HTTP",
    # The server runs as long as this query does.
    "SELECT sleepEachRow(1) FROM numbers(1000000) SETTINGS max_block_size = 1, "
    "function_sleep_max_microseconds_per_block = 0, max_execution_time = 0 FORMAT Null",
]
ARGUMENTS = ["clickhouse", f"--config-file={sys.argv[1]}", "--query=" + "; ".join(STATEMENTS)]

main = ctypes.CDLL(str(LIBRARY)).chdb_query_cmdline
main.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]
main(len(ARGUMENTS), (ctypes.c_char_p * len(ARGUMENTS))(*(text.encode() for text in ARGUMENTS)))
