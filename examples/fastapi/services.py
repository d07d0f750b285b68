"""The three services, by their stock clients. Each has the address of a door; nothing else is about fusebox."""

import os
import threading

import clickhouse_connect
import redis
from google.cloud import firestore


class Labels:
    """Labels of items: kept in ClickHouse, cached in Redis, published in Firestore."""

    def __init__(self):
        self.redis = redis.Redis(unix_socket_path=os.environ["REDIS_SOCKET"], decode_responses=True)
        # Google's client takes the door's address from FIRESTORE_EMULATOR_HOST.
        self.firestore = firestore.Client(project=os.environ["FIRESTORE_PROJECT"])
        self.lock, self.client = threading.Lock(), None
        self.published, self.watch = {}, None

    def clickhouse(self):
        """The client, made when it is first needed: it asks the server for its version, so an application that made it
        at its start could not start in an outage that is older than the daemon's cache."""
        with self.lock:
            if self.client is None:
                self.client = clickhouse_connect.get_client(
                    host="127.0.0.1",
                    port=int(os.environ["CLICKHOUSE_PORT"]),
                    username=os.environ["CLICKHOUSE_USER"],
                    password=os.environ["CLICKHOUSE_PASSWORD"],
                    database="default",
                    # Threads share the client; a session would have them wait for one another.
                    autogenerate_session_id=False,
                )
            return self.client

    def start(self):
        """Follows what is published. In an outage it waits for the service."""
        self.watch = self.firestore.collection("labels").on_snapshot(self.changed)

    def stop(self):
        self.watch.unsubscribe()
        if self.client is not None:
            self.client.close()
        self.redis.close()

    def changed(self, documents, changes, time):
        self.published = {document.id: document.to_dict() for document in documents}

    def of(self, item):
        """The label of an item, and its source; `None` if it has no label.

        While Redis is down and does not know the key, the door says nil, as for a key that is not there: then the
        label is computed again."""
        cached = self.redis.get(f"label:{item}")
        if cached is not None:
            return cached, "redis"
        asked = self.clickhouse().query(
            "SELECT label FROM labels WHERE item = {item:String} ORDER BY at DESC LIMIT 1", parameters={"item": item}
        )
        if not asked.result_rows:
            return None
        label = asked.result_rows[0][0]
        self.redis.set(f"label:{item}", label, ex=300)
        return label, "clickhouse"

    def put(self, item, label, at):
        """Writes a label. Each of the three is acknowledged by its service, or is on this host's disk and will be
        applied, in its order and once."""
        self.clickhouse().insert(
            "labels",
            [[item, label, at]],
            column_names=["item", "label", "at"],
            # Without the types, the client asks the server for them before each insert.
            column_type_names=["String", "String", "Int64"],
        )
        self.firestore.collection("labels").document(item).set({"label": label, "at": at})
        self.redis.set(f"label:{item}", label, ex=300)
