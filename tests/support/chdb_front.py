#!/usr/bin/env python3
"""The current ClickHouse engine behind a small HTTP front, for tests.

The engine's own: SQL, error codes and messages, formats, deduplication by token, storage, which survives
kill -9. The front's: everything of HTTP (status, X-ClickHouse-* headers, users), queries one at a time,
and /front/fail, which makes the next queries end with a code that the engine does not give by itself.

usage: chdb_front.py PORT FOLDER [PASSWORD]
"""

import base64
import re
import socket
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from chdb import session

PORT, FOLDER = int(sys.argv[1]), sys.argv[2]
PASSWORD = sys.argv[3] if len(sys.argv) > 3 else ""
ENGINE = session.Session(FOLDER)
LOCK = threading.Lock()
FAILURES = []
# What the real server answers by HTTP; everything else is a 500.
STATUS = {60: 404, 81: 404, 62: 400, 47: 400, 46: 400, 115: 404, 27: 400, 516: 403, 497: 403, 202: 503}
# Parameters of the HTTP interface, which are no settings of the engine.
NOT_SETTINGS = {"query", "database", "default_format", "user", "password", "query_id", "wait_end_of_query", "buffer_size"}


def quoted(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def run(query, data, args, wanted):
    """Runs one query under the settings and parameters of its URL; returns bytes."""
    names = [name for name in args if name not in NOT_SETTINGS]
    with LOCK, tempfile.NamedTemporaryFile() as body:
        try:
            if args.get("database"):
                ENGINE.query("USE `" + args["database"].replace("`", "\\`") + "`")
            for name in names:
                ENGINE.query(f"SET {name} = {quoted(args[name])}")
            if data:
                # The binding takes text; a file takes any bytes.
                body.write(data)
                body.flush()
                insert = re.sub(r"(?is)\s(FORMAT\s+\w+)\s*$", f" FROM INFILE {quoted(body.name)} \\1 ", query)
                if insert == query:
                    return ENGINE.query(query + "\n" + data.decode(), wanted).bytes()
                query = insert
            return ENGINE.query(query, wanted).bytes()
        finally:
            for name in names:
                if not name.startswith("param_"):
                    try:
                        ENGINE.query(f"SET {name} = DEFAULT")
                    except Exception:  # a name that is no setting was never set
                        pass
            if args.get("database"):
                ENGINE.query("USE default")


class Front(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header("X-ClickHouse-" + name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def refuse(self, code, message):
        text = f"Code: {code}. DB::Exception: {message}\n"
        self.answer(STATUS.get(code, 500), text.encode(), Exception_Code=code)

    def body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while length := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def password(self, args):
        basic = self.headers.get("Authorization", "")
        if basic.startswith("Basic "):
            return base64.b64decode(basic[6:]).decode().partition(":")[2]
        return self.headers.get("X-ClickHouse-Key", args.get("password", ""))

    def do_POST(self):
        body, url = self.body(), urlsplit(self.path)
        args = dict(parse_qsl(url.query, keep_blank_values=True))
        if url.path == "/ping":
            return self.answer(200, b"Ok.\n")
        if url.path == "/front/fail":
            FAILURES.extend([int(args["code"])] * int(args.get("count", 1)))
            return self.answer(200, b"Ok.\n")
        if PASSWORD and self.password(args) != PASSWORD:
            return self.refuse(516, "default: Authentication failed (AUTHENTICATION_FAILED)")
        if FAILURES:
            return self.refuse(FAILURES.pop(0), "told to fail by a test (TEST)")
        for name in ("database", "format"):
            value = self.headers.get("X-ClickHouse-" + name.title())
            if value:
                args["default_format" if name == "format" else name] = value
        query, data = (args["query"], body) if "query" in args else (body.decode(), b"")
        wanted = args.get("default_format", "TabSeparated")
        try:
            answer = run(query, data, args, wanted)
        except Exception as error:
            code = re.search(r"Code: (\d+)\. DB::Exception: (.*)", str(error), re.S)
            return self.refuse(int(code[1]), code[2]) if code else self.refuse(1001, str(error))
        said = re.search(r"(?is)\bFORMAT\s+(\w+)\s*;?\s*$", query)
        self.answer(200, answer, Format=said[1] if said else wanted, Server_Display_Name="front")

    do_GET = do_POST


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def process_request(self, request, address):
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().process_request(request, address)


Server(("127.0.0.1", PORT), Front).serve_forever()
