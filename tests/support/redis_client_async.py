"""redis-py's asyncio client, through a door: `redis_client_async.py SOCKET live|outage|after|lives PROTOCOL`.

Whatever it does not find as it should be ends it with an assertion.
"""

import asyncio
import sys
import time

import redis.asyncio as redis
from redis.exceptions import BusyLoadingError

socket, phase, protocol = sys.argv[1], sys.argv[2], int(sys.argv[3])


def connected(**more):
    return redis.Redis(unix_socket_path=socket, protocol=protocol, **more)


key = f"async{protocol}:"
# Every byte there is, also in the name of a key; and five mebibytes of them.
every = bytes(range(256))
name = key.encode() + every
large = every * 20_480


async def live(client, plain):
    assert await client.ping() is True
    assert await client.set(key + "name", "ada") is True
    assert await client.get(key + "name") == "ada"
    assert await client.get(key + "none") is None
    assert await client.hset(key + "hash", mapping={"a": 1, "b": 2}) == 2
    assert await client.hgetall(key + "hash") == {"a": "1", "b": "2"}
    # Many at once: each on a connection of its own.
    counts = await asyncio.gather(*(client.incr(key + "count") for _ in range(50)))
    assert sorted(counts) == list(range(1, 51))

    pipe = client.pipeline(transaction=False)
    for number in range(300):
        pipe.set(key + f"many:{number}", number)
        pipe.get(key + f"many:{number}")
    replies = await pipe.execute()
    assert replies == [it for number in range(300) for it in (True, str(number))], replies[:6]
    pipe = client.pipeline()
    pipe.incr(key + "count").get(key + "count")
    assert await pipe.execute() == [51, "51"]
    rounds = []

    async def raced(pipe):
        rounds.append(await pipe.get(key + "count"))
        if len(rounds) == 1:
            await client.set(key + "count", 60)
        pipe.multi()
        pipe.incr(key + "count")

    assert await client.transaction(raced, key + "count") == [61]
    assert rounds == ["51", "60"]

    script = client.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    assert await script(keys=[key + "count"], args=[4]) == 65
    async with client.lock(key + "lock", timeout=5):
        assert await client.exists(key + "lock") == 1
        assert await client.lock(key + "lock", timeout=5).acquire(blocking=False) is False
    assert await client.exists(key + "lock") == 0

    popped = asyncio.create_task(client.blpop([key + "jobs"], timeout=5))
    while (await client.info("clients"))["blocked_clients"] == 0:
        assert not popped.done(), popped
    assert await client.rpush(key + "jobs", "job") == 1
    assert list(await popped) == [key + "jobs", "job"]
    assert await client.blpop([key + "jobs"], timeout=0.1) is None

    heard = client.pubsub()
    await heard.subscribe(key + "news")
    assert (await heard.get_message(timeout=5))["type"] == "subscribe"
    assert await client.publish(key + "news", "hi") == 1
    assert (await heard.get_message(timeout=5))["data"] == "hi"
    await heard.aclose()

    assert await plain.set(name, every) is True
    assert await plain.get(name) == every
    assert await plain.set(key + "large", large) is True
    assert await plain.get(key + "large") == large
    pipe = plain.pipeline(transaction=False)
    pipe.set(key + "large", large[::-1]).get(key + "large").get(name)
    assert await pipe.execute() == [True, large[::-1], every]
    # What is read last is cached when the outage begins.
    assert await client.get(key + "name") == "ada"


async def outage(client, plain):
    once = connected(decode_responses=True, retry=None)
    assert await once.get(key + "name") == "ada"
    assert await once.set(key + "name", "grace") is True
    assert await once.get(key + "name") == "grace"
    assert await plain.get(name) == every
    assert await plain.set(name, every[::-1]) is True
    assert await plain.get(name) == every[::-1]
    pipe = once.pipeline()
    pipe.set(key + "both", 1, ex=900).hset(key + "both:hash", "f", "v")
    assert await pipe.execute() == [True, 1]
    assert await once.get(key + "both") == "1"
    try:
        await once.incr(key + "count")
        raise AssertionError("nobody knows the count")
    except BusyLoadingError as error:
        assert "not executed" in str(error), error
    await once.aclose()


async def after(client, plain):
    assert await client.get(key + "name") == "grace"
    assert await client.get(key + "both") == "1"
    assert await client.hgetall(key + "both:hash") == {"f": "v"}
    assert await client.get(key + "count") == "65"
    assert await plain.get(name) == every[::-1]
    assert await plain.get(key + "large") == large[::-1]


async def lives(client, plain):
    """Sets what each line of the input says, through whatever happens meanwhile, and prints its key."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        number, until = line.strip(), time.monotonic() + 15
        while True:
            try:
                assert await client.set(key + number, number) is True
                assert await client.get(key + number) == number
                break
            except (redis.ConnectionError, redis.TimeoutError):
                if time.monotonic() > until:
                    raise
        print(key + number, flush=True)


async def main():
    client = connected(decode_responses=True)
    plain = connected()
    await {"live": live, "outage": outage, "after": after, "lives": lives}[phase](client, plain)
    await client.aclose()
    await plain.aclose()


asyncio.run(main())
print("ok")
