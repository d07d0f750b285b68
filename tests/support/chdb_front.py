"""A small HTTP front around the current ClickHouse engine (chdb), for tests.

The engine's own: SQL, types, formats, error codes and texts, settings, deduplication, storage; what it has
acknowledged survives a kill -9. The front's, and so proof of nothing: the HTTP layer (statuses, headers,
authentication, /ping), the query ids (the engine gives its own), and that queries run one after another: a
KILL QUERY is answered once whatever ran before it has ended. A data folder belongs to one process.
"""
import argparse, base64, json, re, tempfile, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from chdb import session

OURS = {"query", "query_id", "database", "default_format", "user", "password", "wait_end_of_query", "buffer_size"}
STATUS = {516: 403, 497: 403, 60: 404, 81: 404, 202: 503, 252: 500, 159: 408, 241: 500}
FORMAT = re.compile(r"\bFORMAT\s+(\w+)\s*(SETTINGS\s[^;]*)?;?\s*$", re.I)
INSERT = re.compile(rb"\s*(INSERT\s.*?)\bFORMAT\s+(\w+)[ \t]*\n(.*)", re.I | re.S)


class Front(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self):
        self.answer(b"")

    def do_POST(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        self.answer(body)

    def answer(self, body):
        url = urlsplit(self.path)
        if url.path == "/ping":
            return self.reply(200, b"Ok.\n", {})
        args = dict(parse_qsl(url.query, keep_blank_values=True))
        if not self.may_enter(args):
            return self.fail("Code: 516. DB::Exception: Authentication failed. (AUTHENTICATION_FAILED)")
        query = args.get("query", "").encode() + (b"\n" if args.get("query") and body else b"") + body
        params = {name[6:]: value for name, value in args.items() if name.startswith("param_")}
        settings = {n: v for n, v in args.items() if n not in OURS and not n.startswith("param_")}
        found = FORMAT.search(query.decode("utf-8", "replace"))
        form = found.group(1) if found else args.get("default_format", "TabSeparated")
        with LOCK:
            try:
                run("USE `%s`" % args.get("database", "default"))
                for name, value in settings.items():
                    run("SET %s = '%s'" % (name, value.replace("\\", "\\\\").replace("'", "\\'")))
                result = execute(query, args.get("default_format", "TabSeparated"), params)
                rows, read, written = result.bytes(), result.rows_read(), result.rows_written()
            except Exception as error:  # the engine's own words
                return self.fail(str(error))
            finally:
                for name in settings:
                    try:
                        run("SET %s = DEFAULT" % name)
                    except Exception:
                        pass  # it is no setting; the call was told so
        summary = json.dumps({"read_rows": str(read), "written_rows": str(written)})
        self.reply(200, rows, {"X-ClickHouse-Format": form, "X-ClickHouse-Summary": summary})

    def may_enter(self, args):
        user, key = self.headers.get("X-ClickHouse-User", args.get("user")), self.headers.get("X-ClickHouse-Key")
        if (header := self.headers.get("Authorization", "")).startswith("Basic "):
            user, _, key = base64.b64decode(header[6:]).decode().partition(":")
        return OPTIONS.user is None or (user, key or args.get("password")) == (OPTIONS.user, OPTIONS.password)

    def fail(self, text):
        number = re.match(r"Code: (\d+)", text)
        code = int(number.group(1)) if number else 1002
        self.reply(STATUS.get(code, 400 if code < 160 else 500), text.encode() + b"\n", {"X-ClickHouse-Exception-Code": str(code)})

    def reply(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_):
        pass


def run(sql, form="TabSeparated", params=None):
    return SESSION.query(sql, form, params=params or {})


def execute(query, form, params):
    try:
        return run(query.decode(), form, params)
    except UnicodeDecodeError:  # `query` takes text: binary rows go through a file
        head, name, rows = INSERT.match(query).groups()
        with tempfile.NamedTemporaryFile() as file:
            file.write(rows)
            file.flush()
            return run("%s FROM INFILE '%s' FORMAT %s" % (head.decode(), file.name, name.decode()), form, params)


options = argparse.ArgumentParser()
for option in ("--port", "--path", "--user", "--password"):
    options.add_argument(option)
OPTIONS, LOCK = options.parse_args(), threading.Lock()
SESSION = session.Session(OPTIONS.path)
ThreadingHTTPServer.request_queue_size = 128
ThreadingHTTPServer.daemon_threads = True
ThreadingHTTPServer(("127.0.0.1", int(OPTIONS.port)), Front).serve_forever()
