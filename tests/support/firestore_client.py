#!/usr/bin/env python3
"""Google's own client of Firestore, for tests: what it reads of what others wrote, and what it writes.

The emulator is the one that FIRESTORE_EMULATOR_HOST names. Values are given with their types, so that an
integer and a double, or a text and bytes, are never the same:

    null · true · {"int":"7"} · {"double":"1.5"} · {"text":"a"} · {"bytes":"00ff"} · {"time":"…Z"}
    {"place":["51.5","-0.12"]} · {"reference":"users/ada"} · {"array":[…]} · {"map":{…}}

usage: firestore_client.py PROJECT read PATH...          documents by their names, and by queries
       firestore_client.py PROJECT find COLLECTION       those that have the values on the standard input
       firestore_client.py PROJECT write                 the documents on the standard input
"""

import json
import sys

from google.cloud import firestore
from google.cloud.firestore_v1.base_query import FieldFilter
from google.api_core.datetime_helpers import DatetimeWithNanoseconds

CLIENT = firestore.Client(project=sys.argv[1])


def told(value):
    """A value of the client's as it is printed."""
    # bool first: to Python it is a kind of int. So is text to nothing else.
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return {"int": str(value)}
    if isinstance(value, float):
        return {"double": repr(value)}
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, DatetimeWithNanoseconds):
        return {"time": value.rfc3339().replace(".000000Z", "Z")}
    if isinstance(value, firestore.GeoPoint):
        return {"place": [repr(value.latitude), repr(value.longitude)]}
    if isinstance(value, firestore.DocumentReference):
        return {"reference": value.path}
    if isinstance(value, list):
        return {"array": [told(item) for item in value]}
    if isinstance(value, dict):
        return {"map": {name: told(item) for name, item in value.items()}}
    raise TypeError(f"{value!r} is of no type that Firestore has")


def meant(value):
    """The value of the client's for what was printed."""
    if value is None or isinstance(value, bool):
        return value
    ((kind, inner),) = value.items()
    return {
        "int": int,
        "double": float,
        "text": str,
        "bytes": bytes.fromhex,
        "time": DatetimeWithNanoseconds.from_rfc3339,
        "place": lambda at: firestore.GeoPoint(float(at[0]), float(at[1])),
        "reference": CLIENT.document,
        "array": lambda items: [meant(item) for item in items],
        "map": lambda fields: {name: meant(item) for name, item in fields.items()},
    }[kind](inner)


def fields(snapshot):
    return told(snapshot.to_dict())["map"] if snapshot.exists else None


def read(paths):
    """The documents as BatchGetDocuments has them; if RunQuery has them otherwise, that is an error."""
    found = {path: fields(CLIENT.document(path).get()) for path in paths}
    for collection in {path.rpartition("/")[0] for path in paths}:
        queried = {document.reference.path: fields(document) for document in CLIENT.collection(collection).stream()}
        for path in paths:
            if path.rpartition("/")[0] == collection and queried.get(path) != found[path]:
                raise ValueError(f"{path}: got {found[path]}, queried {queried.get(path)}")
    return found


def find(collection, wanted):
    """For each field, the documents in which it equals its value."""
    query = CLIENT.collection(collection)
    return {
        name: [found.id for found in query.where(filter=FieldFilter(name, "==", meant(value))).stream()]
        for name, value in wanted.items()
    }


def write(documents):
    for path, data in documents.items():
        CLIENT.document(path).set({name: meant(value) for name, value in data.items()})
    return {}


COMMAND, REST = sys.argv[2], sys.argv[3:]
if COMMAND == "read":
    answer = read(REST)
elif COMMAND == "find":
    answer = find(REST[0], json.load(sys.stdin))
else:
    answer = write(json.load(sys.stdin))
print(json.dumps(answer))
