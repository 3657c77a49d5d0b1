"""The end of a session's connection, where it is a write of the Node that sees it."""

from __future__ import annotations

import asyncio
import socket
import struct

from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application
from tornado.websocket import WebSocketHandler, WebSocketProtocol, WebSocketProtocol13

from grid_jupyter.server.session_frames import SessionFrames

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def test_a_connection_that_a_write_finds_broken_is_told_to_be_closed() -> None:
    async def run() -> None:
        opened: asyncio.Future[WebSocketHandler] = asyncio.get_running_loop().create_future()
        closed = asyncio.Event()

        class Door(WebSocketHandler):
            def get_websocket_protocol(self) -> WebSocketProtocol | None:
                made = super().get_websocket_protocol()
                return SessionFrames(self, False, made.params) if isinstance(made, WebSocketProtocol13) else made

            def open(self, *_args: str, **_kwargs: str) -> None:
                opened.set_result(self)

            def on_close(self) -> None:
                closed.set()

        server = HTTPServer(Application([("/", Door)]))
        sock, port = bind_unused_port()
        server.add_socket(sock)
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(HANDSHAKE)
        door = await asyncio.wait_for(opened, 5)
        connection = door.ws_connection
        assert isinstance(connection, SessionFrames)
        for _ in range(500):  # until it waits for frames
            if connection._woken is not None:
                break
            await asyncio.sleep(0.01)
        assert connection._woken is not None
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()  # as of a process that was killed: the other side is told by a reset
        connection.stream.write(b"an answer")  # before the loop looks at the socket again
        assert connection.stream.closed()
        await asyncio.wait_for(closed.wait(), 5)
        server.stop()

    asyncio.run(run())
