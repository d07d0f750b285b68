#!/usr/bin/env python3
"""TLS in front of a server that speaks none, for tests: OpenSSL's, as most servers have it.

usage: tls_front.py PORT SERVER_PORT CERTIFICATE KEY
"""

import asyncio
import ssl
import sys

PORT, SERVER_PORT = int(sys.argv[1]), int(sys.argv[2])
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
CONTEXT.load_cert_chain(sys.argv[3], sys.argv[4])
# gRPC wants the first, everything else the second or none at all.
CONTEXT.set_alpn_protocols(["h2", "http/1.1"])


async def pump(reader, writer):
    try:
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
    except OSError:  # either end has gone
        pass
    finally:
        writer.close()


async def relay(reader, writer):
    try:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", SERVER_PORT)
    except OSError:
        writer.close()
        return
    await asyncio.gather(pump(reader, server_writer), pump(server_reader, writer))


async def main():
    server = await asyncio.start_server(relay, "127.0.0.1", PORT, ssl=CONTEXT)
    await server.serve_forever()


asyncio.run(main())
