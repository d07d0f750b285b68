"""A worker that takes jobs from a list in Redis, through the door: `worker.py /run/fusebox/redis.sock`.

A job is `ID TEXT`; its result is the text in capitals, at `result:ID`. While Redis is down the worker waits. What it was
doing is not lost, as the job is in a second list until its result is acknowledged; it may be done twice, which leaves
the same result.
"""

import sys

import redis

# The door says that Redis is down with LOADING, which redis-py takes for a lost connection.
AWAY = (redis.ConnectionError, redis.TimeoutError)


def patiently(command):
    """Repeats the command until a server answers, and returns the answer. The command must be safe to repeat. If a
    command may have been applied, the door answers with an error that no client repeats by itself."""
    while True:
        try:
            return command()
        except AWAY as error:
            # redis-py has waited between its attempts.
            print(f"waiting: {error}", file=sys.stderr, flush=True)
        except redis.ResponseError as error:
            if not str(error).startswith("FUSEBOX UNKNOWN"):
                raise
            print(f"again: {error}", file=sys.stderr, flush=True)


def next_job(client):
    """Takes the next job. What was taken and not ended comes first: by a run before this one, or by a command whose
    answer was lost."""
    # The list is this worker's own: another one needs another.
    left = client.lrange("doing", -1, -1)
    return left[0] if left else client.blmove("jobs", "doing", 5, "RIGHT", "LEFT")


def main(socket):
    client = redis.Redis(unix_socket_path=socket, decode_responses=True)
    print("ready", flush=True)
    while True:
        job = patiently(lambda: next_job(client))
        if job is None:
            continue
        identity, text = job.split(" ", 1)
        # In an outage this is acknowledged too: it is on the host's disk.
        patiently(lambda: client.set(f"result:{identity}", text.upper()))
        patiently(lambda: client.lrem("doing", 1, job))


main(sys.argv[1])
