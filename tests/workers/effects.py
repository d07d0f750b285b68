"""What jobs leave behind: a line for each in the file `done` of the worker's folder."""

import os
import time


def note(number):
    with open("done", "ab", buffering=0) as done:
        done.write(b"%d\n" % number)
    time.sleep(0.05)
    return number


ADDRESS = os.environ["ADDRESS"]
