"""The daemon's own health pages as pages of the application: `mount(app, socket)`."""

import httpx
from fastapi import FastAPI, Request, Response

PATHS = ["/health", "/health/live", "/health/ready", "/health/resilience"]


def mount(app: FastAPI, socket: str):
    """Has `app` answer `PATHS` with what the daemon says at its command socket.

    Whoever asks the application then sees them: what a server said is not in them if the application's user is no
    admin of the daemon."""
    client = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=socket), base_url="http://localhost", timeout=5)

    async def page(request: Request):
        try:
            got = await client.get(request.url.path)
        except httpx.HTTPError:
            unknown = b'{"state":"UNKNOWN","reasons":["the daemon does not answer"]}'
            return Response(unknown, 503, media_type="application/json")
        return Response(got.content, got.status_code, media_type="application/json")

    for path in PATHS:
        app.add_api_route(path, page, methods=["GET"])
