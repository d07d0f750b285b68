"""Enqueues a job every tenth of a second until it is ended: `enqueuer.py MODULE`.

The module, celery_jobs or rq_jobs, says what that means. Each line of its output is `acked N ID` or
`refused N ERROR`: what is refused is given up.

    enqueuer.py MODULE results    reads `N ID` lines and prints each N whose job has no result N
"""

import importlib
import itertools
import sys
import time

jobs = importlib.import_module(sys.argv[1])


def enqueue():
    for number in itertools.count(1):
        try:
            told = f"acked {number} {jobs.enqueue(number)}"
        except Exception as error:
            told = f"refused {number} {type(error).__name__}: {error}".replace("\n", " ")
        print(told, flush=True)
        time.sleep(0.1)


def results():
    for line in sys.stdin:
        number, identity = line.split()
        if jobs.result_of(identity) != int(number):
            print(number)


results() if sys.argv[2:] == ["results"] else enqueue()
