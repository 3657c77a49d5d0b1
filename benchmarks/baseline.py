"""The server that every transport is compared with: bytes in and out by HTTP and TCP, and nothing else.

Run as `python -m benchmarks.baseline`: it says its ports in one line of JSON and ends when its input does.

    PUT  /bytes          takes a body of any length and drops it
    GET  /bytes?count=N  answers N bytes
    TCP                  direction ("U" or "D") and length (8 bytes, big-endian); up: that many bytes are
                         taken and one comes back; down: that many bytes come
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
import threading

from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler, stream_request_body

HOST = "127.0.0.1"
CHUNK = 1 << 20
TCP_REQUEST = struct.Struct(">cQ")


@stream_request_body
class Bytes(RequestHandler):
    """PUT and GET."""

    def prepare(self) -> None:
        self.request.connection.set_max_body_size(1 << 40)  # type: ignore[union-attr]

    def data_received(self, chunk: bytes) -> None:
        """Nothing is kept."""

    def put(self) -> None:
        self.finish(b"{}")

    async def get(self) -> None:
        left = int(self.get_query_argument("count"))
        self.set_header("Content-Length", str(left))
        chunk = bytes(CHUNK)
        while left:
            self.write(chunk[:left])
            left -= min(left, CHUNK)
            try:
                await self.flush()
            except StreamClosedError:
                return


def main() -> None:
    """Serve until standard input ends."""
    asyncio.run(_serve())


async def _serve() -> None:
    end = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait_for_end() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(end.set)

    threading.Thread(target=wait_for_end, daemon=True).start()
    plain = socket.create_server((HOST, 0))
    threading.Thread(target=_accept, args=(plain,), daemon=True).start()
    http = bind_sockets(0, HOST)
    HTTPServer(Application([("/bytes", Bytes)])).add_sockets(http)
    port, tcp = http[0].getsockname()[1], plain.getsockname()[1]
    print(json.dumps({"address": f"http://{HOST}:{port}", "tcp": tcp}), flush=True)
    await end.wait()


def _accept(listening: socket.socket) -> None:
    while True:
        connection, _ = listening.accept()
        with connection:
            direction, length = TCP_REQUEST.unpack(connection.recv(TCP_REQUEST.size, socket.MSG_WAITALL))
            buffer = memoryview(bytearray(CHUNK))
            while length:
                if direction == b"U":
                    moved = connection.recv_into(buffer[:length])
                    if not moved:
                        break
                else:
                    moved = connection.send(buffer[:length])
                length -= moved
            if direction == b"U":
                connection.sendall(b".")


if __name__ == "__main__":
    main()
