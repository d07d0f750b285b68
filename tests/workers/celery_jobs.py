"""Celery's jobs: the broker is database 0, as results have database 1."""

import effects
from celery import Celery

app = Celery("celery_jobs", broker=f"{effects.ADDRESS}/0", backend=f"{effects.ADDRESS}/1")


@app.task
def job(number):
    return effects.note(number)


def enqueue(number):
    return job.delay(number).id


def result_of(identity):
    return app.AsyncResult(identity).result
