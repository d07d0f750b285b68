"""Listens by Google's Firestore client, and tells each view as a line of JSON.

usage: firestore_listener.py PROJECT            listens until its input ends
       firestore_listener.py PROJECT WRITES     writes {"id": n or null} and ends
"""
import json
import sys
import threading

from google.cloud import firestore

client = firestore.Client(project=sys.argv[1])
rooms = client.collection("rooms")

if len(sys.argv) > 2:
    for name, n in json.loads(sys.argv[2]).items():
        if n is None:
            rooms.document(name).delete()
        else:
            rooms.document(name).set({"n": n})
    sys.exit()

lock = threading.Lock()


def tell(**said):
    with lock:
        print(json.dumps(said), flush=True)


def listen(who, to):
    def hear(documents, _changes, _time):
        tell(who=who, view={one.id: one.get("n") for one in documents if one.exists})

    return to.on_snapshot(hear)


watches = [listen("query", rooms), listen("document", rooms.document("a"))]
sys.stdin.read()
for watch in watches:
    if not watch.is_active:
        tell(error="a listener has ended")
    watch.unsubscribe()
tell(who="end", view={})
