"""Each framework through five scenes, at the door; and through those without a daemon directly, to compare.

    works            twenty jobs
    redis killed     `kill -9` under load, back after eight seconds with its data
    redis frozen     SIGSTOP for eight seconds under load
    daemon killed    `kill -9` under load, and started again after two seconds
    both killed      Redis as above; after eight seconds the daemon too, and both come back

A worker and an enqueuer run through all of them. A scene passes if

- neither has ended,
- what is enqueued is acknowledged again, and done, within 90 seconds,
- every job that was acknowledged is done, and its result is there. A job that a worker was about to be handed at a kill
  is lost directly too: as many are pardoned as there are pops on the wire, which is one. A freeze loses none.

A line tells how many jobs were acknowledged in the scene, refused, lost, done twice, how many results are missing, and
after how many seconds the next twenty jobs were acknowledged and done.

django-redis has no jobs. A program sets and gets values all the time, and must never read what it did not write last;
others look what else is to be had in the outage, and whether what it wrote is in Redis at last: django_cache.py.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from processes import HERE, ROOT, VENV, Daemon, Program, Redis, wait_for

PYTHON = VENV / "python"
AWAY = 8
BACK = 90


class Framework:
    """How a framework's worker and enqueuer are started, and the address of their Redis.

    `idle`: its worker ends if it loses Redis while it carries a job out, directly too (at the door also if Redis is
    frozen for longer than the backend's `timeout`). So it waits for one when an outage begins, and the jobs come in it.
    """

    def __init__(self, worker, enqueuer, unix=False, idle=False):
        self.worker, self.enqueuer, self.unix, self.idle = worker, enqueuer, unix, idle


NODE = ["node", HERE / "bullmq_jobs.mjs"]
DJANGO = [PYTHON, "-B", HERE / "django_cache.py"]
ENQUEUER = [PYTHON, "-B", HERE / "enqueuer.py"]
FRAMEWORKS = {
    "celery": Framework(
        [VENV / "celery", "-A", "celery_jobs", "worker", "--concurrency", "1", "--loglevel", "INFO"],
        [*ENQUEUER, "celery_jobs"],
        # kombu 5.7 raises an AttributeError of its own while it gives back what it had taken.
        idle=True,
    ),
    "rq": Framework([VENV / "rq", "worker", "--url", "{address}"], [*ENQUEUER, "rq_jobs"], unix=True, idle=True),
    "bullmq": Framework([*NODE, "worker"], NODE),
    "django": Framework([], [*DJANGO, "loop"]),
}


def patient(seconds, missing):
    """Returns what is still missing, if not before, after so long."""
    until = time.monotonic() + seconds
    while (it := missing()) and time.monotonic() < until:
        time.sleep(0.5)
    return it


class Jobs:
    """A worker and an enqueuer at one address, and what they have noted."""

    def __init__(self, name, address, folder):
        self.framework, self.folder, self.row, self.lost = FRAMEWORKS[name], folder, "", set()
        self.environment = os.environ | {
            "ADDRESS": address,
            "MODULES": str(ROOT / "target/workers"),
            "PYTHONPATH": str(HERE),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        worker = [str(it).format(address=address) for it in self.framework.worker]
        self.worker = Program("worker", worker, folder, self.environment)
        self.enqueuer = Program("enqueuer", self.framework.enqueuer, folder, self.environment)
        self.programs = [self.worker, self.enqueuer]

    def start(self):
        for program in self.programs:
            program.start()

    def noted(self, word):
        """What the enqueuer noted with this word: the rest of each line by the job's number."""
        lines = (line.split(" ", 2) for line in self.enqueuer.log().splitlines())
        return {int(line[1]): line[2] for line in lines if line[0] == word and len(line) == 3}

    def done(self):
        """How often each job was done."""
        try:
            return Counter(int(line) for line in (self.folder / "done").read_text().split())
        except FileNotFoundError:
            return Counter()

    def alive(self):
        for program in self.programs:
            if not program.runs():
                end = "\n".join(program.log().splitlines()[-2:])
                raise AssertionError(f"the {program.name} ended:\n{end}")

    def without_result(self, acked):
        asked = "".join(f"{number} {identity}\n" for number, identity in acked.items())
        command = [str(it) for it in [*self.framework.enqueuer, "results"]]
        told = subprocess.run(
            command, input=asked, text=True, capture_output=True, env=self.environment, timeout=60, cwd=self.folder
        )
        if told.returncode != 0:
            raise AssertionError(f"no results: {told.stderr[-1000:]}")
        return told.stdout.split()

    def scene(self, outage, pardoned):
        """Carries the outage out, and leaves what there is to tell in `row`; fails if the scene did not pass."""
        before = set(self.noted("acked")) | set(self.noted("refused"))
        if self.framework.idle:
            self.enqueuer.signal(signal.SIGSTOP)
            wait_for("its worker waits", BACK, lambda: self.alive() or set(self.noted("acked")) <= self.known_done())
            time.sleep(1)
            threading.Timer(0.5, self.enqueuer.signal, [signal.SIGCONT]).start()
        outage(lambda: None)
        began, known = time.monotonic(), set(self.noted("acked"))

        def back():
            self.alive()
            return len((set(self.noted("acked")) - known) & set(self.done())) >= 20

        wait_for("jobs are enqueued and done again", BACK, back)
        after = time.monotonic() - began
        acked = {number: it for number, it in self.noted("acked").items() if number not in before}
        # BullMQ does a job again whose end it could not tell, but only after one and a half minutes.
        lost = patient(120, lambda: set(acked) - set(self.done()))
        missing = patient(120, lambda: self.without_result({number: acked[number] for number in set(acked) - lost}))
        refused = set(self.noted("refused")) - before
        twice = [number for number, times in self.done().items() if times > 1 and number not in before]
        self.lost |= lost
        self.row = (
            f"acked {len(acked)}, refused {len(refused)}, lost {len(lost)}, twice {len(twice)}, "
            f"without result {len(missing)}, back after {after:.0f} s"
        )
        self.alive()
        assert len(lost) <= pardoned, f"lost: {sorted(lost)}"
        assert not missing, f"without result: {missing}"

    def known_done(self):
        """What was done, or is known to be lost."""
        return set(self.done()) | self.lost

    def stop(self):
        for program in reversed(self.programs):
            program.stop()


class Cache(Jobs):
    """django-redis: a program that goes on setting and getting, and others that look at the cache."""

    def __init__(self, address, folder, server):
        super().__init__("django", address, folder)
        self.environment["SERVER"], self.direct = server, address == server
        self.programs = [self.enqueuer]

    def start(self):
        self.look("live")
        super().start()

    def look(self, when):
        command = [str(it) for it in [*DJANGO, when]]
        told = subprocess.run(command, text=True, capture_output=True, env=self.environment, cwd=self.folder, timeout=90)
        with open(self.folder / "looks.log", "a") as log:
            log.write(f"{when}:\n{told.stdout}{told.stderr}")
        assert told.returncode == 0, f"{when}: {told.stderr.splitlines()[-1]}"

    def scene(self, outage, _):
        before = set(self.noted("acked")) | set(self.noted("refused"))
        looked = []
        self.look("before")
        outage(lambda: self.direct or looked.append(self.look("outage")))
        began, known = time.monotonic(), set(self.noted("acked"))

        def back():
            self.alive()
            return len(set(self.noted("acked")) - known) >= 20

        wait_for("values are set and got again", BACK, back)
        refused = set(self.noted("refused")) - before
        acked = set(self.noted("acked")) - before
        self.row = f"acked {len(acked)}, refused {len(refused)}, back after {time.monotonic() - began:.0f} s"
        self.look("after" if looked else "release")

class World:
    """A Redis, a daemon before it, and their outages."""

    def __init__(self, folder, direct, broker):
        self.redis = Redis(folder)
        self.daemon = None if direct else Daemon(folder, self.redis, broker)
        self.started = [it for it in (self.redis, self.daemon) if it]

    def start(self):
        for it in self.started:
            it.start()

    def address(self, unix):
        return self.started[-1].url(unix)

    # `meanwhile` is what there is to be done in an outage of Redis, when the breaker is open.
    def works(self, meanwhile):
        pass

    def redis_killed(self, meanwhile):
        self.redis.kill()
        time.sleep(AWAY)
        meanwhile()
        self.redis.start()

    def redis_frozen(self, meanwhile):
        self.redis.signal(signal.SIGSTOP)
        time.sleep(AWAY)
        meanwhile()
        self.redis.signal(signal.SIGCONT)

    def daemon_killed(self, meanwhile):
        self.daemon.kill()
        time.sleep(2)
        self.daemon.start()

    def both_killed(self, meanwhile):
        self.redis.kill()
        time.sleep(AWAY)
        meanwhile()
        self.daemon_killed(meanwhile)
        self.redis.start()

    def outages(self):
        """Each outage, and how many jobs a worker may be about to be handed in it."""
        yield self.works, 0
        yield self.redis_killed, 1
        yield self.redis_frozen, 0
        if self.daemon:
            yield self.daemon_killed, 1
            yield self.both_killed, 1

    def stop(self):
        for it in reversed(self.started):
            it.kill()


def run(name, direct):
    """Runs a framework's scenes, prints a line for each, and returns whether each has passed."""
    folder = Path(tempfile.mkdtemp(prefix="workers-"))
    way = "direct" if direct else "door"
    world = World(folder, direct, broker=name != "django")
    passed, jobs = [], None
    try:
        world.start()
        address = world.address(FRAMEWORKS[name].unix)
        jobs = Cache(address, folder, world.redis.url(False)) if name == "django" else Jobs(name, address, folder)
        jobs.start()
        for outage, pardoned in world.outages():
            scene, word, jobs.row = outage.__name__.replace("_", " "), "ok", ""
            try:
                jobs.scene(outage, pardoned)
            except AssertionError as failure:
                word, jobs.row = "FAILED", f"{jobs.row}: {failure}"
            passed.append(word == "ok")
            print(f"{name:10} {way:6} {scene:14} {word:6} {jobs.row}", flush=True)
    finally:
        if jobs:
            jobs.stop()
        world.stop()
        if not all(passed):
            kept = ROOT / "target/workers/failed" / f"{name}-{way}"
            shutil.rmtree(kept, ignore_errors=True)
            ignored = shutil.ignore_patterns("*.sock", "state", "appendonlydir")
            shutil.copytree(folder, kept, ignore=ignored)
        shutil.rmtree(folder)
    return passed


def main(names):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    unknown = set(names) - set(FRAMEWORKS)
    if unknown:
        sys.exit(f"no such framework: {', '.join(sorted(unknown))}; there are {', '.join(FRAMEWORKS)}")
    passed = []
    for name in names or FRAMEWORKS:
        run(name, direct=True)
        passed += run(name, direct=False)
    print(f"{len(passed)} scenes: passed {sum(passed)}, failed {len(passed) - sum(passed)}")
    return 0 if passed and all(passed) else 1


sys.exit(main(sys.argv[1:]))
