"""examples/fastapi, as it is in its folder, with a real Redis, ClickHouse and Firestore emulator behind the daemon.

Each step prints a line, `ok` or `FAILED`. What the emulator holds is gone with its process, so what was published before
an outage is published again by nobody: only what is written in the outage is looked for there.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/workers"))

from processes import FUSEBOX, Listening, Program, Redis, free_port, wait_for  # noqa: E402

EXAMPLE = ROOT / "examples/fastapi"
VENV = ROOT / "target/examples/venv/bin"
LONG = 90


def ask(url, body=None, method=None, timeout=30):
    """Returns the status and the JSON of the answer; (0, why) if there is none."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
    except OSError as error:
        return 0, str(error)


class ClickHouse(Program):
    """The current server, with a user of the application's name."""

    def __init__(self, folder):
        self.port, home = free_port(), folder / "clickhouse"
        for name in ("data", "tmp"):
            (home / name).mkdir(parents=True)
        user = "<password></password><networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota>"
        (home / "users.xml").write_text(
            "<yandex><profiles><default/></profiles><quotas><default/></quotas>"
            f"<users><default>{user}</default></users></yandex>"
        )
        (home / "config.xml").write_text(
            f"<yandex><logger><level>warning</level><log>{home}/server.log</log></logger><http_port>{self.port}</http_port>"
            f"<listen_host>127.0.0.1</listen_host><path>{home}/data/</path><tmp_path>{home}/tmp/</tmp_path>"
            f"<users_config>{home}/users.xml</users_config><mark_cache_size>67108864</mark_cache_size>"
            "<default_profile>default</default_profile><default_database>local</default_database></yandex>"
        )
        command = ["python3", ROOT / "tests/support/clickhouse_server.py", home / "config.xml"]
        super().__init__("clickhouse", command, folder)

    def start(self):
        super().start()
        wait_for("ClickHouse answers", LONG, lambda: self.query("SELECT 1") == "1")
        return self

    def query(self, text):
        try:
            url = f"http://127.0.0.1:{self.port}/?database=default"
            with urllib.request.urlopen(url, text.encode(), timeout=30) as answer:
                return answer.read().decode().strip()
        except OSError as error:
            return f"no answer: {error}"


class Firestore(Program):
    def __init__(self, folder):
        self.port = free_port()
        command = ["node", ROOT / "tests/support/firestore_emulator.mjs", self.port]
        super().__init__("firestore", command, folder)

    def start(self):
        super().start()
        wait_for("Firestore listens", LONG, self.listens)
        return self

    def listens(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), 5).close()
            return True
        except OSError:
            return False


class Daemon(Listening):
    """The daemon with the example's own file, in which only addresses are others."""

    def __init__(self, folder, redis, clickhouse, firestore):
        self.behind = (redis, clickhouse, firestore)
        self.clickhouse_port, self.firestore_port = free_port(), free_port()
        self.control = folder / "fusebox.sock"
        super().__init__("door", folder)

    def command_in(self, folder):
        redis, clickhouse, firestore = self.behind
        callers = folder / "callers.toml"
        callers.write_text('[[callers]]\nname = "labels"\npassword_file = "labels.password"\n')
        (folder / "labels.password").write_text("a secret that nobody guesses")
        for path in (callers, folder / "labels.password"):
            path.chmod(0o600)
        text = (EXAMPLE / "fusebox.toml").read_text()
        for old, new in [
            ("redis://10.0.0.5:6379", redis.url(unix=False)),
            ("http://10.0.0.6:8123", f"http://127.0.0.1:{clickhouse.port}"),
            ("http://10.0.0.7:8080", f"http://127.0.0.1:{firestore.port}"),
            ("/run/fusebox/redis.sock", str(self.socket)),
            ("127.0.0.1:8124", f"127.0.0.1:{self.clickhouse_port}"),
            ("127.0.0.1:8085", f"127.0.0.1:{self.firestore_port}"),
            ("/etc/fusebox/callers.toml", str(callers)),
        ]:
            assert text.count(old) == 1, f"{old} is not in the example's fusebox.toml once"
            text = text.replace(old, new)
        (folder / "fusebox.toml").write_text(text)
        configuration, state = folder / "fusebox.toml", folder / "state"
        return [FUSEBOX, "run", "--config", configuration, "--state-dir", state, "--socket", self.control]


class App(Program):
    """The application."""

    def __init__(self, folder, daemon):
        self.port = free_port()
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {
            "REDIS_SOCKET": str(daemon.socket),
            "CLICKHOUSE_PORT": str(daemon.clickhouse_port),
            "CLICKHOUSE_USER": "labels",
            "CLICKHOUSE_PASSWORD": (folder / "labels.password").read_text(),
            "FIRESTORE_EMULATOR_HOST": f"127.0.0.1:{daemon.firestore_port}",
            "FIRESTORE_PROJECT": "labels",
            "FUSEBOX_SOCKET": str(daemon.control),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        app = [VENV / "uvicorn", "--app-dir", EXAMPLE, "--host", "127.0.0.1", "--port", self.port, "main:app"]
        super().__init__("app", app, folder, environment)

    def start(self):
        super().start()
        wait_for("the application answers", LONG, lambda: self.get("/health/live")[0] == 200)
        return self

    def get(self, path):
        return ask(f"http://127.0.0.1:{self.port}{path}")

    def put(self, item, label):
        return ask(f"http://127.0.0.1:{self.port}/labels/{item}", {"label": label}, "PUT")


def equal(found, wanted):
    assert found == wanted, f"{found}, and not {wanted}"


class World:
    def __init__(self, folder):
        self.redis, self.clickhouse, self.firestore = Redis(folder), ClickHouse(folder), Firestore(folder)
        self.services = [self.redis, self.clickhouse, self.firestore]
        self.daemon = Daemon(folder, *self.services)
        self.app = App(folder, self.daemon)

    def labels_in_clickhouse(self):
        return self.clickhouse.query("SELECT item, label FROM labels ORDER BY item, at FORMAT TSV").replace("\t", " ")

    def state(self):
        return self.app.get("/health")[1].get("state")

    def waiting(self):
        backends = self.app.get("/health/resilience")[1]["backends"].values()
        return sum(it["queue"]["calls"] for it in backends), sum(it["queue"]["dead_letters"] for it in backends)

    # The steps, in their order.
    def everything_is_up(self):
        for service in self.services:
            service.start()
        made = self.clickhouse.query(
            "CREATE TABLE labels (item String, label String, at Int64) ENGINE = MergeTree ORDER BY (item, at) "
            "SETTINGS non_replicated_deduplication_window = 1000"
        )
        equal(made, "")
        self.daemon.start()
        self.app.start()
        wait_for("all is well", LONG, lambda: self.state() == "HEALTHY")
        equal(self.app.put("apple", "fruit")[0], 200)
        equal(self.app.put("carrot", "root")[0], 200)
        equal(self.app.get("/labels/apple"), (200, {"item": "apple", "label": "fruit", "source": "redis"}))
        # What Redis does not have is computed.
        self.redis_forgets("carrot")
        equal(self.app.get("/labels/carrot")[1]["source"], "clickhouse")
        equal(self.app.get("/labels/none")[0], 404)
        wait_for("what was published is heard", LONG, lambda: set(self.app.get("/published")[1]) == {"apple", "carrot"})

    def redis_forgets(self, item):
        import redis

        redis.Redis(port=self.redis.port).delete(f"label:{item}")

    def all_three_are_killed(self):
        for service in self.services:
            service.kill()
        equal(self.app.get("/labels/apple")[0], 200)
        for item in ("apple", "carrot"):
            status, said = self.app.put(item, "food")
            equal((item, status), (item, 200))
            equal(self.app.get(f"/labels/{item}")[1], {"item": item, "label": "food", "source": "redis"})
        wait_for("the system is in an emergency", LONG, lambda: self.state() in ("CRITICAL", "EMERGENCY"))
        equal(self.app.get("/health")[0], 503)
        equal(self.app.get("/health/ready")[0], 200)
        equal(self.app.put("pear", "fruit")[0], 200)
        equal(self.app.get("/labels/pear")[1]["label"], "fruit")
        # What nobody has asked before is not known.
        equal(self.app.get("/labels/plum")[0], 503)
        waiting, dead = self.waiting()
        assert waiting >= 9 and dead == 0, f"{waiting} calls wait, {dead} are dead"

    def the_daemon_is_killed_meanwhile(self):
        self.daemon.kill()
        equal(self.app.get("/health")[0], 503)
        self.daemon.start()
        wait_for("the application answers again", LONG, lambda: self.app.get("/labels/pear")[0] == 200)
        equal(self.app.get("/labels/pear")[1]["label"], "fruit")
        equal(self.app.put("pear", "tree")[0], 200)

    def all_three_are_back(self):
        for service in self.services:
            service.start()
        # By itself, the daemon would try ClickHouse again two minutes after it went.
        told = subprocess.run(
            [FUSEBOX, "recover"], env=os.environ | {"FUSEBOX_SOCKET": str(self.daemon.control)}, capture_output=True
        )
        equal((told.returncode, told.stderr), (0, b""))
        wait_for("all is applied", LONG, lambda: self.waiting()[0] == 0)
        wait_for("all is well", LONG, lambda: self.state() == "HEALTHY")
        equal(self.waiting(), (0, 0))
        rows = "apple fruit\napple food\ncarrot root\ncarrot food\npear fruit\npear tree"
        equal(self.labels_in_clickhouse(), rows)
        for item, label in (("apple", "food"), ("carrot", "food"), ("pear", "tree")):
            equal(self.app.get(f"/labels/{item}")[1]["label"], label)
        there = lambda: {item: it["label"] for item, it in self.app.get("/published")[1].items()}  # noqa: E731
        wanted = {"apple": "food", "carrot": "food", "pear": "tree"}
        wait_for("what was published is heard", LONG, lambda: there() == wanted)
        assert self.app.runs(), "the application has ended"

    def stop(self):
        for program in (self.app, self.daemon, *self.services):
            program.kill()


def main():
    folder = Path(tempfile.mkdtemp(prefix="examples-"))
    world, passed = World(folder), []
    steps = [
        world.everything_is_up,
        world.all_three_are_killed,
        world.the_daemon_is_killed_meanwhile,
        world.all_three_are_back,
    ]
    try:
        for step in steps:
            began, word, why = time.monotonic(), "ok", ""
            try:
                step()
            except (AssertionError, KeyError, AttributeError) as failure:
                word, why = "FAILED", f": {failure!r}"
            passed.append(word == "ok")
            name = step.__name__.replace("_", " ")
            print(f"{name:32} {word:6} {time.monotonic() - began:.0f} s{why}", flush=True)
            if word != "ok":
                break
    finally:
        world.stop()
        if not all(passed) or len(passed) != len(steps):
            kept = ROOT / "target/examples/failed"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("*.sock", "state", "data", "appendonlydir"))
        shutil.rmtree(folder, ignore_errors=True)
    failed = len(steps) - sum(passed)
    print(f"{len(steps)} steps: passed {sum(passed)}, failed {failed}")
    return 1 if failed else 0


sys.exit(main())
