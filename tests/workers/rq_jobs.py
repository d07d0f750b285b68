"""RQ's jobs."""

import effects
from redis import Redis
from rq import Queue
from rq.job import Job

connection = Redis.from_url(effects.ADDRESS)
queue = Queue(connection=connection)


def enqueue(number):
    return queue.enqueue(effects.note, number, result_ttl=3600).id


def result_of(identity):
    return Job.fetch(identity, connection=connection).return_value()
