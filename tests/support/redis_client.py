"""redis-py as its users use it, through a door: `redis_client.py SOCKET live|outage|after|lives WHICH`.

WHICH is the protocol, 2 or 3, followed by `-python` for a redis-py without hiredis. Whatever it does not find as it
should be ends it with an assertion.
"""

import sys
import threading
import time

socket, phase, which = sys.argv[1:]
protocol = int(which[0])
if which.endswith("-python"):
    # It cannot be imported then, and redis-py takes its own parser.
    sys.modules["hiredis"] = None

import redis

assert redis.utils.HIREDIS_AVAILABLE is not which.endswith("-python")


def connected(**more):
    return redis.Redis(unix_socket_path=socket, protocol=protocol, **more)


client = connected(decode_responses=True, client_name="orders")
plain = connected()
key = f"py{which}:"
# Every byte there is, also in the name of a key; and five mebibytes of them.
every = bytes(range(256))
name = key.encode() + every
large = every * 20_480


def live():
    assert client.ping() is True
    assert client.set(key + "name", "ada") is True
    assert client.get(key + "name") == "ada"
    assert client.get(key + "none") is None
    assert client.incr(key + "count") == 1
    assert client.hset(key + "hash", mapping={"a": 1, "b": 2}) == 2
    assert client.hgetall(key + "hash") == {"a": "1", "b": "2"}
    assert client.sadd(key + "set", "x", "y") == 2
    assert client.smembers(key + "set") == {"x", "y"}
    assert client.zadd(key + "zset", {"x": 1.5, "y": 2}) == 2
    # One shape in RESP2 and another in RESP3: what matters is that it is the server's.
    assert [list(pair) for pair in client.zrange(key + "zset", 0, -1, withscores=True)] == [
        ["x", 1.5],
        ["y", 2.0],
    ]
    assert client.expire(key + "name", 100) is True
    assert 0 < client.ttl(key + "name") <= 100
    assert set(client.scan_iter(match=key + "*", count=1000)) >= {key + "name", key + "hash"}

    pipe = client.pipeline(transaction=False)
    for number in range(300):
        pipe.set(key + f"many:{number}", number)
        pipe.get(key + f"many:{number}")
    told = pipe.execute()
    assert told == [it for number in range(300) for it in (True, str(number))], told[:6]

    pipe = client.pipeline()
    pipe.incr(key + "count").incr(key + "count").get(key + "count")
    assert pipe.execute() == [2, 3, "3"]

    def twice(pipe):
        value = int(pipe.get(key + "count"))
        pipe.multi()
        pipe.set(key + "count", value * 2)

    client.transaction(twice, key + "count")
    assert client.get(key + "count") == "6"
    client.set(key + "raced", 1)
    rounds = []

    def raced(pipe):
        rounds.append(pipe.get(key + "raced"))
        if len(rounds) == 1:
            client.set(key + "raced", 20)
        pipe.multi()
        pipe.incr(key + "raced")

    assert client.transaction(raced, key + "raced") == [21]
    assert rounds == ["1", "20"]

    script = client.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    assert script(keys=[key + "count"], args=[4]) == 10
    with client.lock(key + "lock", timeout=5):
        assert client.exists(key + "lock") == 1
        assert client.lock(key + "lock", timeout=5).acquire(blocking=False) is False
    assert client.exists(key + "lock") == 0

    threading.Timer(0.2, lambda: client.rpush(key + "jobs", "job")).start()
    assert list(client.blpop([key + "jobs"], timeout=5)) == [key + "jobs", "job"]
    assert client.blpop([key + "jobs"], timeout=0.1) is None

    heard = client.pubsub()
    heard.subscribe(key + "news")
    assert heard.get_message(timeout=5)["type"] == "subscribe"
    assert client.publish(key + "news", "hi") == 1
    assert heard.get_message(timeout=5)["data"] == "hi"
    heard.close()

    entry = client.xadd(key + "stream", {"f": "v"})
    read = client.xread({key + "stream": "0"})
    if isinstance(read, dict):
        read = list(read.items())
    entries = read[0][1]
    while len(entries) == 1 and isinstance(entries[0], list):
        entries = entries[0]
    assert tuple(entries[0]) == (entry, {"f": "v"}), read

    try:
        client.lpush(key + "name", "x")
        raise AssertionError("it is no list")
    except redis.ResponseError as error:
        assert str(error).startswith("WRONGTYPE"), error
    assert client.client_getname() == "orders"
    other = connected(db=3, decode_responses=True)
    assert other.set(key + "name", "three") is True
    assert other.get(key + "name") == "three"
    assert client.get(key + "name") == "ada"
    live_bytes()


def live_bytes():
    assert plain.set(name, every) is True
    assert plain.get(name) == every
    assert plain.hset(name + b"hash", every, every) == 1
    assert plain.hgetall(name + b"hash") == {every: every}
    assert plain.set(key + "large", large) is True
    assert plain.get(key + "large") == large
    pipe = plain.pipeline(transaction=False)
    pipe.set(key + "large", large[::-1]).get(key + "large").get(name)
    assert pipe.execute() == [True, large[::-1], every]
    pipe = plain.pipeline()
    pipe.set(name + b"too", every).get(name + b"too").get(key + "large")
    assert pipe.execute() == [True, every, large[::-1]]


def outage():
    once = connected(decode_responses=True, retry=None)
    assert once.get(key + "name") == "ada"
    assert once.get(key + "none") is None
    assert once.mget(key + "name", key + "none") == ["ada", None]
    assert once.set(key + "name", "grace") is True
    assert once.get(key + "name") == "grace"
    assert plain.get(name) == every
    assert plain.set(name, every[::-1]) is True
    assert plain.get(name) == every[::-1]
    pipe = once.pipeline(transaction=False)
    for number in range(200):
        pipe.set(key + "last", number)
    assert pipe.execute() == [True] * 200
    # A pipeline is a transaction unless it is told otherwise.
    pipe = once.pipeline()
    pipe.set(key + "both", 1, ex=900).hset(key + "both:hash", "f", "v").expire(key + "both:hash", 900)
    assert pipe.execute() == [True, 1, True]
    assert once.get(key + "both") == "1"
    pipe = once.pipeline()
    pipe.set(key + "both", 2).incr(key + "count")
    try:
        pipe.execute()
        raise AssertionError("nobody knows the count")
    except redis.exceptions.BusyLoadingError as error:
        assert "not executed" in str(error), error
    for refused in (lambda: once.incr(key + "count"), lambda: once.hgetall(key + "other")):
        try:
            refused()
            raise AssertionError("nobody knows the answer")
        except redis.exceptions.BusyLoadingError as error:
            assert isinstance(error, redis.ConnectionError)
            assert "not executed" in str(error), error


def after():
    assert client.get(key + "name") == "grace"
    assert client.get(key + "last") == "199"
    assert client.get(key + "both") == "1"
    assert client.hgetall(key + "both:hash") == {"f": "v"}
    assert 0 < client.ttl(key + "both") <= 900 and 0 < client.ttl(key + "both:hash") <= 900
    assert client.get(key + "count") == "10"
    assert plain.get(name) == every[::-1]
    assert plain.get(key + "large") == large[::-1]


def lives():
    """Sets what each line of the input says, through whatever happens meanwhile, and prints its key."""
    for line in sys.stdin:
        number, until = line.strip(), time.monotonic() + 15
        while True:
            try:
                assert client.set(key + number, number) is True
                assert client.get(key + number) == number
                break
            except (redis.ConnectionError, redis.TimeoutError):
                if time.monotonic() > until:
                    raise
        print(key + number, flush=True)


{"live": live, "outage": outage, "after": after, "lives": lives}[phase]()
print("ok")
