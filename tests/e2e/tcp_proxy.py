# SPDX-License-Identifier: Apache-2.0
"""A network between a client and a server that a test can cut (kill it) or silence (stop it).

usage: tcp_proxy.py LISTEN_HOST LISTEN_PORT TARGET_HOST TARGET_PORT
Prints "listening on HOST:PORT", then a line per connection.
"""
import asyncio
import sys


async def pump(reader, writer):
    try:
        while data := await reader.read(1 << 20):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.transport.abort()


async def main(listen_host, listen_port, target_host, target_port):
    async def serve(reader, writer):
        try:
            far_reader, far_writer = await asyncio.open_connection(target_host, int(target_port))
        except OSError as error:
            print(f"target: {error}", flush=True)
            writer.transport.abort()
            return
        print("connection", flush=True)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(serve, listen_host, int(listen_port))
    host, port = server.sockets[0].getsockname()[:2]
    print(f"listening on {host}:{port}", flush=True)
    await server.serve_forever()


asyncio.run(main(*sys.argv[1:5]))
