"""A web application that goes on while ClickHouse, Redis or Firestore are down: `uvicorn main:app`.

It has no breaker, no retries and no fallbacks of its own: the clients are connected to fusebox's doors.
"""

import logging
import os
import time
from contextlib import asynccontextmanager

from clickhouse_connect.driver.exceptions import Error as ClickHouseError
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from google.api_core.exceptions import GoogleAPICallError
from pydantic import BaseModel
from redis.exceptions import RedisError

from health import mount
from services import Labels

labels = Labels()


@asynccontextmanager
async def lifespan(app):
    labels.start()
    yield
    labels.stop()


app = FastAPI(lifespan=lifespan)
mount(app, os.environ["FUSEBOX_SOCKET"])


class Label(BaseModel):
    label: str


@app.exception_handler(ClickHouseError)
@app.exception_handler(RedisError)
@app.exception_handler(GoogleAPICallError)
def unavailable(request: Request, error: Exception):
    """No fallback knows an answer either: the caller may try again."""
    logging.getLogger("uvicorn.error").warning("%s: %s", request.url.path, error)
    return JSONResponse({"detail": "unavailable"}, status_code=503, headers={"Retry-After": "5"})


# Plain functions: FastAPI runs them in threads, as these clients block.
@app.get("/labels/{item}")
def get_label(item: str):
    found = labels.of(item)
    if found is None:
        raise HTTPException(404, "no label")
    label, source = found
    return {"item": item, "label": label, "source": source}


@app.put("/labels/{item}")
def put_label(item: str, body: Label):
    labels.put(item, body.label, time.time_ns() // 1_000_000)
    return {"item": item, "label": body.label}


@app.get("/published")
def published():
    return labels.published
