"""Google's two endpoints on this machine: access tokens for a signed assertion, and messages to devices."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
AUDIENCE = "https://oauth2.googleapis.com/token"
"""Whom google-auth signs for, wherever it asks."""
EMAIL = "push@project-7.iam.gserviceaccount.com"


class FcmServer:
    """What came, and what is answered. `answers` has, by device token, a list of (status, headers, body)."""

    def __init__(self) -> None:
        self.private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.messages: list[dict[str, Any]] = []
        self.asked = 0  # for an access token
        self.claims: dict[str, Any] = {}
        self.wrong: list[str] = []
        self.answers: dict[str, list[tuple[int, dict[str, str], bytes]]] = {}
        self.token_answers: list[tuple[int, bytes]] = []
        self.slow = threading.Event()  # set: nothing is answered until it is cleared
        self.url = ""

    def key(self, path: Path, **changes: Any) -> Path:
        """The JSON file that Firebase's console would give for this account."""
        pem = self.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        key = {
            "type": "service_account", "project_id": "project-7", "private_key_id": "k1", "private_key": pem.decode(),
            "client_email": EMAIL, "token_uri": f"{self.url}/token", **changes,
        }  # fmt: skip
        path.touch(0o600)
        path.write_text(json.dumps({name: value for name, value in key.items() if value is not None}))
        return path

    def token(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """An access token for whoever holds the private key."""
        self.asked += 1
        if self.token_answers:
            status, answer = self.token_answers.pop(0)
            return status, {}, answer
        form = parse_qs(body.decode())
        try:
            assertion = form["assertion"][0]
            assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
            head = jwt.get_unverified_header(assertion)
            assert (head["alg"], head["kid"]) == ("RS256", "k1")
            public = self.private.public_key()
            self.claims = jwt.decode(assertion, public, algorithms=["RS256"], audience=AUDIENCE)
            assert (self.claims["iss"], self.claims["scope"]) == (EMAIL, SCOPE)
            assert 0 < self.claims["exp"] - self.claims["iat"] <= 3600
        except (AssertionError, KeyError, jwt.PyJWTError) as error:
            self.wrong.append(repr(error))
            return 400, {}, b'{"error": "invalid_grant"}'
        told = {"access_token": f"access-{self.asked}", "expires_in": 3600, "token_type": "Bearer"}
        return 200, {}, json.dumps(told).encode()

    def send(self, path: str, credential: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """A message, from whoever has the newest access token."""
        if path != "/v1/projects/project-7/messages:send":
            return 404, {}, b"<html>nothing here</html>"
        if credential != f"Bearer access-{self.asked}":
            return 401, {}, said(401, "UNAUTHENTICATED")
        message = json.loads(body)["message"]
        left = self.answers.get(message["token"])
        if left:
            return left.pop(0)
        self.messages.append(message)
        return 200, {}, b'{"name": "projects/project-7/messages/1"}'


def said(status: int, code: str, fcm: str = "") -> bytes:
    """An error as Google tells it."""
    details = [{"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": fcm}] if fcm else []
    told = {"code": status, "message": "a token may be named here", "status": code, "details": details}
    return json.dumps({"error": told}).encode()


@contextmanager
def fcm_server() -> Iterator[FcmServer]:
    """The server, as long as the context lasts."""
    made = FcmServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            while made.slow.is_set():
                made.slow.wait(0.01)
                threading.Event().wait(0.01)
            if self.path == "/token":
                status, headers, answer = made.token(body)
            else:
                status, headers, answer = made.send(self.path, self.headers.get("Authorization", ""), body)
            try:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
            except OSError:
                pass  # who asked has left

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        made.slow.clear()
        server.shutdown()
        thread.join()
        server.server_close()
