"""The processes of a scene: each is started here, and ended by its id."""

import fcntl
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests/workers"
VENV = ROOT / "target/workers/venv/bin"
TARGET = ROOT / os.environ.get("CARGO_TARGET_DIR", "target")
FUSEBOX = Path(os.environ.get("FUSEBOX", TARGET / "debug/fusebox")).resolve()
# Locked files; the kernel releases them with the process.
LEASES = []


def wait_for(what, seconds, done):
    """Returns what `done` says once that is true; fails after `seconds`."""
    until = time.monotonic() + seconds
    while not (answer := done()):
        if time.monotonic() > until:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.05)
    return answer


def free_port():
    """A port that no other test is given while this process lives: see tests/it/support/port.rs."""
    folder = Path(tempfile.gettempdir(), f"fusebox-ports-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    while True:
        number = random.randrange(20_000, 30_000)
        lock = open(folder / str(number), "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as it:
                it.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                it.bind(("127.0.0.1", number))
        except OSError:
            lock.close()
            continue
        LEASES.append(lock)
        return number


class Program:
    """A program with a log. Its process group is its own, so that a worker's children end with it."""

    def __init__(self, name, command, folder, environment=None):
        self.name, self.command, self.folder = name, [str(it) for it in command], folder
        self.environment, self.process = environment, None

    def start(self):
        with open(self.folder / f"{self.name}.log", "ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def runs(self):
        return self.process is not None and self.process.poll() is None

    def signal(self, which):
        self.process.send_signal(which)

    def kill(self):
        """Ends it as a crash would, and its children."""
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def stop(self):
        """Asks it to end; whoever has not after ten seconds is killed."""
        if self.runs():
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def log(self):
        return (self.folder / f"{self.name}.log").read_text(errors="replace")


class Listening(Program):
    """A program that listens on a port and at a Unix socket of its own."""

    def __init__(self, name, folder):
        self.port, self.socket = free_port(), folder / f"{name}.sock"
        super().__init__(name, self.command_in(folder), folder)

    def start(self):
        super().start()
        wait_for(f"{self.name} listens", 30, self.answers)
        return self

    def answers(self):
        if not self.runs():
            raise AssertionError(f"{self.name} ended at once:\n{self.log()}")
        try:
            with socket.socket(socket.AF_UNIX) as it:
                it.settimeout(5)
                it.connect(str(self.socket))
                it.sendall(b"PING\r\n")
                # A server that loads its data says so.
                return it.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def url(self, unix):
        return f"unix://{self.socket}" if unix else f"redis://127.0.0.1:{self.port}"


class Redis(Listening):
    """A Redis whose data survive `kill -9`."""

    def __init__(self, folder):
        super().__init__("redis", folder)

    def command_in(self, folder):
        return [
            *("redis-server", "--bind", "127.0.0.1", "--port", self.port, "--unixsocket", self.socket),
            *("--dir", folder, "--save", "", "--appendonly", "yes", "--appendfsync", "always"),
        ]


class Daemon(Listening):
    """A daemon with two doors, at a Unix socket and, for anybody, at a port.

    They have default settings; if `broker`, those that docs/redis-door.md gives to job frameworks.
    """

    BROKER = """
            on_unknown = "close"
            effect_reply = "error"
    """

    def __init__(self, folder, redis, broker):
        self.redis = redis
        self.settings = self.BROKER if broker else ""
        super().__init__("door", folder)

    def command_in(self, folder):
        configuration = folder / "fusebox.toml"
        configuration.write_text(f"""
            [backends]
            clickhouse.enabled = false
            firestore.enabled = false
            redis.url = "{self.redis.url(unix=True)}"
            [[doors]]
            backend = "redis"
            listen = "unix:{self.socket}"
            {self.settings}
            [[doors]]
            backend = "redis"
            listen = "127.0.0.1:{self.port}"
            auth = "open"
            {self.settings}
        """)
        state, control = folder / "state", folder / "fusebox.sock"
        return [FUSEBOX, "run", "--config", configuration, "--state-dir", state, "--socket", control]
