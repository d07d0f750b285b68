#!/usr/bin/env python3
"""Clients of an installed fusebox, for tests/deb.

    load door NAME      stock Redis clients at the door's socket, until /tmp/stop is there
    load api NAME       clients of the HTTP API, with a connection for each call, until /tmp/stop is there
    load queue COUNT    so many writes, by stock clients
    load verify         waits until the server has every acknowledged write

Every write has a key of its own. What was acknowledged is noted in /tmp/acknowledged-….
"""
import os
import socket
import sys
import threading
import time

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

DOOR, API = "/run/fusebox/redis.sock", "/run/fusebox/fusebox.sock"
lock = threading.Lock()
calls = failed = 0
acknowledged = []


def client():
    # A connection that the server closes is no failure of a call: the client connects again.
    retry = Retry(ExponentialBackoff(cap=1, base=0.01), 3)
    return redis.Redis(unix_socket_path=DOOR, retry=retry, retry_on_error=[redis.ConnectionError], socket_timeout=60)


def by_door():
    door = client()
    return lambda key: door.set(key, key) is True


def by_api():
    def write(key):
        body = b'{"command":["SET","%s","%s"]}' % (key.encode(), key.encode())
        head = "POST /v1/backends/redis/call HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" \
               f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(60)
            stream.connect(API)
            stream.sendall(head.encode() + body)
            answer = b""
            while piece := stream.recv(65536):
                answer += piece
        if answer.split(b" ", 2)[1] not in (b"200", b"202"):
            raise RuntimeError(answer[:300])
        return True
    return write


def run(way, kind, name, thread, goes_on):
    global calls, failed
    write, n = way(), 0
    while goes_on(n):
        key, n = f"{kind}:{name}:{thread}:{n}", n + 1
        # Paced, so that an outage does not fill the queue.
        time.sleep(0 if kind == "queue" else 0.01)
        try:
            good, why = write(key), "no OK"
        except Exception as error:
            good, why = False, repr(error)
        with lock:
            calls += 1
            if good:
                acknowledged.append(key)
            else:
                failed += 1
                print(f"{key}: {why}", flush=True)
            if calls % 20 == 0:
                with open(f"/tmp/calls-{kind}.next", "w") as out:
                    out.write(str(calls))
                os.replace(f"/tmp/calls-{kind}.next", f"/tmp/calls-{kind}")


def load(way, kind, name, threads, goes_on):
    # What an earlier run counted is over.
    with open(f"/tmp/calls-{kind}", "w") as out:
        out.write("0")
    workers = [threading.Thread(target=run, args=(way, kind, name, at, goes_on)) for at in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    with open(f"/tmp/acknowledged-{kind}-{name}", "w") as out:
        out.write("\n".join(acknowledged))
    print(f"{kind}: {calls} calls, {failed} failed", flush=True)
    return failed


def verify():
    keys = []
    for name in sorted(os.listdir("/tmp")):
        if name.startswith("acknowledged-"):
            with open(f"/tmp/{name}") as file:
                keys += file.read().split()
    server, end = redis.Redis("127.0.0.1", 6390), time.monotonic() + 180
    missing = keys
    while missing and time.monotonic() < end:
        found = server.mget(missing[:1000]) if missing else []
        lost = [key for key, value in zip(missing[:1000], found) if value != key.encode()]
        if lost:
            time.sleep(0.1)
        missing = lost + missing[1000:]
    print(f"{len(keys)} acknowledged writes, {len(missing)} lost")
    return len(missing)


def main(what, name=""):
    end = time.monotonic() + 240
    if what == "verify":
        return verify()
    if what == "queue":
        share = int(name) // 20
        return load(by_door, what, name, 20, lambda n: n < share)
    way = {"door": by_door, "api": by_api}[what]
    return load(way, what, name, 4, lambda _: not os.path.exists("/tmp/stop") and time.monotonic() < end)


sys.exit(1 if main(*sys.argv[1:]) else 0)
