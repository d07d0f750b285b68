"""django-redis as its users use it, at ADDRESS; the same cache is also looked at directly, at SERVER.

    django_cache.py loop                 sets and gets until it is ended, and ends by itself if it reads what it did not
                                         write last. Its lines are `acked N -` and `refused N ERROR`
    django_cache.py live                 what is to be had while Redis is up; the cache is emptied
    django_cache.py before|outage|after  what is kept through an outage, and what is to be had in it
    django_cache.py release              instead of the last, if nobody looked at the outage
"""

import itertools
import os
import sys
import time

import django
from django.conf import settings

location = lambda address: {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": f"{address}/0"}
settings.configure(
    CACHES={"default": location(os.environ["ADDRESS"]), "server": location(os.environ["SERVER"])}
)
django.setup()
from django.core.cache import caches
from redis.exceptions import RedisError

cache, server = caches["default"], caches["server"]


def loop():
    # What a key may hold: the last value that was acknowledged, or one since of which nothing certain was said. A key
    # with such a one may also be missing.
    may_hold = {}
    for number in itertools.count(1):
        key = f"loop:{number % 10}"
        try:
            cache.set(key, number)
            may_hold[key] = {number}
            told = f"acked {number} -"
        except RedisError as error:
            may_hold.setdefault(key, set()).update({number, None})
            told = f"refused {number} {type(error).__name__}: {error}"
        try:
            read = cache.get(key)
        except RedisError as error:
            told = f"refused {number} {type(error).__name__}: {error}"
        else:
            if read is not None or is_there():
                assert read in may_hold[key], f"{key} is {read}, not one of {may_hold[key]} ({told})"
        print(told, flush=True)
        time.sleep(0.1)


def is_there():
    """Whether Redis can be asked: if it is gone, what was never read is missing, though it was set a moment ago."""
    try:
        server.get("none")
    except RedisError:
        return False
    return True


def live():
    cache.set("cached", {"is": "cached"})
    assert cache.get("cached") == {"is": "cached"}
    assert cache.get("none") is None
    cache.set_many({"a": 1, "b": "two"})
    assert cache.get_many(["a", "b", "none"]) == {"a": 1, "b": "two"}
    assert cache.add("once", 1) and not cache.add("once", 2)
    assert cache.incr("once", 5) == 6
    assert cache.touch("once", 100) and 90 < cache.ttl("once") <= 100
    assert cache.delete("once") and not cache.delete("once")
    assert sorted(cache.keys("?")) == ["a", "b"]
    assert cache.delete_pattern("?") == 2
    with cache.lock("lock", timeout=30):
        assert not cache.lock("lock", timeout=30).acquire(blocking=False)
    cache.clear()
    assert cache.get("cached") is None


def held():
    """A lock that is taken before an outage and released after it."""
    lock = cache.lock("held", timeout=600)
    lock.local.token = b"token of the test"
    return lock


def before():
    assert held().acquire(blocking=False, token="token of the test")
    cache.set("cached", {"is": "cached"})
    assert cache.get("cached") == {"is": "cached"}
    cache.delete("kept")


def outage():
    assert cache.get("cached") == {"is": "cached"}
    assert cache.get("none") is None
    assert cache.set("kept", "in the outage")
    assert cache.get("kept") == "in the outage"
    for name, refused in {
        "add": lambda: cache.add("once", 1),
        "incr": lambda: cache.incr("count"),
        "lock": lambda: cache.lock("lock", timeout=30).acquire(blocking=False),
        "clear": lambda: cache.clear(),
    }.items():
        try:
            raise AssertionError(f"{name}: nobody knows the answer, and it is {refused()}")
        except RedisError as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    assert cache.get("kept") == "in the outage", "what was refused was not executed"


def after():
    until = time.monotonic() + 60
    while server.get("kept") != "in the outage":
        assert time.monotonic() < until, "what was acknowledged in the outage is not in Redis"
        time.sleep(0.1)
    assert cache.get("kept") == "in the outage"
    assert cache.get("cached") == {"is": "cached"}
    release()


def release():
    held().release()


phases = (loop, live, before, outage, after, release)
{it.__name__: it for it in phases}[sys.argv[1]]()
