"""Google's own Firestore client at the Firestore door, which is all that it knows of fusebox.

usage: firestore_door.py PROJECT live|outage|still|after sync|async
"""
import asyncio
import sys
import threading
import time

from google.api_core import exceptions
from google.cloud import firestore
from google.cloud.firestore_v1.base_query import FieldFilter

PROJECT, PHASE, WHICH = sys.argv[1:4]
# An outage is told at once, and not after the client has tried for minutes.
AT_ONCE = 3.0
PATIENCE = 30.0


def refused(what, call):
    """Ends soon, with an error that says what it is."""
    began = time.monotonic()
    try:
        call()
    except exceptions.GoogleAPICallError as error:
        took = time.monotonic() - began
        assert took < AT_ONCE, f"{what} took {took:.1f} s: {error!r}"
        assert "fusebox: firestore" in str(error), f"{what}: {error!r}"
        return
    except ValueError as error:
        # A transaction that could not begin is rolled back by its client, which fails and hides the first error.
        took = time.monotonic() - began
        assert took < AT_ONCE, f"{what} took {took:.1f} s: {error!r}"
        assert "fusebox: firestore" in str(error.__context__), f"{what}: {error!r}"
        return
    raise AssertionError(f"{what} was answered")


def increment(client, reference):
    @firestore.transactional
    def step(transaction):
        count = reference.get(transaction=transaction).to_dict()["n"]
        transaction.update(reference, {"n": count + 1})
        return count + 1

    return step(client.transaction())


def live(client):
    people = client.collection("people")
    ada = people.document("ada")
    ada.set({"name": "Ada", "n": 0, "bytes": b"\x00\xff"})
    ada.update({"born": 1815})
    assert ada.get().to_dict() == {"name": "Ada", "n": 0, "bytes": b"\x00\xff", "born": 1815}
    batch = client.batch()
    for n in range(50):
        batch.set(people.document(f"p{n:02}"), {"n": n, "even": n % 2 == 0})
    batch.delete(people.document("none"))
    batch.commit()
    found = people.where(filter=FieldFilter("even", "==", True)).stream()
    assert sorted(one.get("n") for one in found) == list(range(0, 50, 2))
    assert [one.exists for one in client.get_all([ada, people.document("none")])].count(True) == 1
    assert increment(client, ada) == 1
    ((count,),) = people.where(filter=FieldFilter("even", "==", True)).count().get()
    assert count.value == 25
    large = client.collection("large")
    for n in range(4):
        large.document(str(n)).set({"text": "x" * 900_000})
    assert sum(len(one.get("text")) for one in large.stream()) == 3_600_000
    watched(ada, lambda: ada.update({"n": 7}), 7)
    try:
        ada.create({})
    except exceptions.Conflict:
        pass
    else:
        raise AssertionError("it is there already")
    known(client)


def watched(reference, change, expected):
    """A listener hears of what is there, and of a change."""
    seen, heard = [], threading.Condition()

    def tell(snapshots, _changes, _time):
        with heard:
            seen.extend(one.to_dict() for one in snapshots)
            heard.notify_all()

    watch = reference.on_snapshot(tell)
    try:
        with heard:
            assert heard.wait_for(lambda: seen, PATIENCE), "nothing is heard"
        change()
        with heard:
            told = heard.wait_for(lambda: any(one["n"] == expected for one in seen), PATIENCE)
            assert told, f"the change is not heard: {seen}"
    finally:
        watch.unsubscribe()


def known(client):
    """Leaves behind what an outage begins with, and looks at it."""
    people = client.collection("people")
    ada = people.document("ada")
    batch = client.batch()
    for n in range(5):
        batch.set(people.document(f"k{n}"), {"kept": True})
    batch.commit()
    assert ada.get().exists
    assert len(kept(people)) == 5
    assert count(people) == 5


def kept(people):
    return list(people.where(filter=FieldFilter("kept", "==", True)).stream())


def count(people):
    ((result,),) = people.where(filter=FieldFilter("kept", "==", True)).count().get()
    return result.value


def within(what, call):
    """Ends soon, with an answer."""
    began = time.monotonic()
    answer = call()
    took = time.monotonic() - began
    assert took < AT_ONCE, f"{what} took {took:.1f} s"
    return answer


def outage(client):
    people = client.collection("people")
    ada, gone, new = people.document("ada"), people.document("k0"), people.document("new")
    seen = within("get", ada.get)
    assert seen.get("n") in (7, 9) and seen.update_time and seen.read_time, seen.to_dict()
    told = within("set", lambda: ada.set({"n": 100}))
    assert told.update_time > seen.update_time
    assert within("get", ada.get).to_dict() == {"n": 100}
    within("update", lambda: ada.update({"n": 101, "b.c": [1, b"\xff", None]}))
    within("increment", lambda: ada.update({"n": firestore.Increment(1)}))
    batch = client.batch()
    batch.set(new, {"at": firestore.SERVER_TIMESTAMP, "where": firestore.GeoPoint(1, 2)})
    batch.delete(gone)
    assert len(within("batch", batch.commit)) == 2
    still(client)
    assert within("query", lambda: len(kept(people))) == 5, "as it was last answered"
    assert within("count", lambda: count(people)) == 5
    refused("get of what was never seen", lambda: people.document("never").get())
    refused("query that was never asked", lambda: list(people.limit(3).stream()))
    refused("create", lambda: people.document("made").create({}))
    refused("transaction", lambda: increment(client, ada))


def still(client):
    """What was acknowledged in an outage is what is read."""
    people = client.collection("people")
    ada, gone, new = people.document("ada"), people.document("k0"), people.document("new")
    assert within("get", ada.get).to_dict() == {"n": 102, "b": {"c": [1, b"\xff", None]}}
    found = {one.id: one for one in within("get_all", lambda: list(client.get_all([gone, new])))}
    assert not found["k0"].exists
    assert found["new"].get("where") == firestore.GeoPoint(1, 2) and found["new"].get("at")


def after(client):
    still(client)
    ada = client.document("people/ada")
    ada.set({"n": 1})
    assert increment(client, ada) == 2
    watched(ada, lambda: ada.update({"n": 9}), 9)
    known(client)


async def refused_async(what, call):
    began = time.monotonic()
    try:
        await call
    except exceptions.GoogleAPICallError as error:
        said = error
    except ValueError as error:
        # As above.
        said = error.__context__
    else:
        raise AssertionError(f"{what} was answered")
    took = time.monotonic() - began
    assert took < AT_ONCE, f"{what} took {took:.1f} s: {said!r}"
    assert "fusebox: firestore" in str(said), f"{what}: {said!r}"


async def within_async(what, call):
    began = time.monotonic()
    answer = await call
    took = time.monotonic() - began
    assert took < AT_ONCE, f"{what} took {took:.1f} s"
    return answer


async def increment_async(client, reference):
    @firestore.async_transactional
    async def step(transaction):
        count = (await reference.get(transaction=transaction)).get("n")
        transaction.update(reference, {"n": count + 1})
        return count + 1

    return await step(client.transaction())


async def count_async(people):
    ((result,),) = await people.where(filter=FieldFilter("kept", "==", True)).count().get()
    return result.value


async def still_async(client, people):
    """What was acknowledged in an outage is what is read."""
    grace = await within_async("get", people.document("grace").get())
    assert grace.to_dict() == {"n": 11, "b": {"c": [1, b"\xff"]}}, grace.to_dict()
    batched, gone = people.document("batched"), people.document("k0")
    found = {one.id: one async for one in client.get_all([batched, gone])}
    assert found["batched"].get("at") and not found["k0"].exists


async def with_async(client):
    people = client.collection("async")
    ada, grace = people.document(PHASE), people.document("grace")
    if PHASE == "still":
        await still_async(client, people)
        return
    if PHASE == "outage":
        await asyncio.gather(*(people.document(str(n)).set({"n": -n}) for n in range(100)))
        found = [one async for one in client.get_all([people.document(str(n)) for n in range(100)])]
        assert sorted(one.get("n") for one in found) == list(range(-99, 1))
        await within_async("set", grace.set({"n": 10}))
        await within_async("update", grace.update({"b.c": [1, b"\xff"]}))
        await within_async("increment", grace.update({"n": firestore.Increment(1)}))
        batch = client.batch()
        batch.set(people.document("batched"), {"at": firestore.SERVER_TIMESTAMP})
        batch.delete(people.document("k0"))
        assert len(await within_async("batch", batch.commit())) == 2
        await still_async(client, people)
        assert await within_async("count", count_async(people)) == 5, "as it was last answered"
        await refused_async("get", people.document("never").get())
        await refused_async("query", people.limit(1).get())
        await refused_async("transaction", increment_async(client, grace))
        return
    if PHASE == "after":
        found = [one async for one in people.where(filter=FieldFilter("n", "<", 0)).stream()]
        assert sorted(one.get("n") for one in found) == list(range(-99, 0))
        await still_async(client, people)
    await asyncio.gather(*(people.document(str(n)).set({"n": n}) for n in range(100)))
    found = [one async for one in people.where(filter=FieldFilter("n", ">=", 90)).stream()]
    assert sorted(one.get("n") for one in found) == list(range(90, 100))
    await ada.set({"n": 0})
    await ada.update({"n": firestore.Increment(2)})
    assert (await ada.get()).get("n") == 2
    batch = client.batch()
    batch.set(grace, {"n": 1})
    for n in range(5):
        batch.set(people.document(f"k{n}"), {"kept": True})
    await batch.commit()
    assert await increment_async(client, grace) == 2
    assert (await grace.get()).get("n") == 2
    assert await count_async(people) == 5


if WHICH == "async":
    asyncio.run(with_async(firestore.AsyncClient(project=PROJECT)))
else:
    {"live": live, "outage": outage, "still": still, "after": after}[PHASE](firestore.Client(project=PROJECT))
print("ok")
