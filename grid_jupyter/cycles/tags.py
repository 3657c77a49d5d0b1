"""What tells one large report from another: a keyed hash of its bytes, which takes a fraction of SHA-256's time.

A device that sends a report again is told that it counts, and one that sends another report in its place is refused.
Nobody but the Node makes these hashes, or sees them.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import AEADEncryptionContext

_NONCE = bytes(12)  # always the same: a tag that nobody sees tells nothing of the key


class Tag:
    """GMAC (NIST SP 800-38D) under a secret of the training: without it no two reports are found that have the same
    tag, but by chance (one in 2^128, times the report's blocks of 16 bytes)."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._mac: AEADEncryptionContext | None = None

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Append bytes."""
        self._mac = self._mac or self._begun()
        self._mac.authenticate_additional_data(data)

    def hexdigest(self) -> str:
        """Of all of them; to be asked for once."""
        mac = self._mac or self._begun()
        mac.finalize()
        return mac.tag.hex()

    def _begun(self) -> AEADEncryptionContext:
        # by whoever writes the first bytes, off the event loop: to load this takes 50 ms
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.algorithms import AES
        from cryptography.hazmat.primitives.ciphers.modes import GCM

        key = hashlib.sha256(f"reports {self._secret}".encode()).digest()
        return Cipher(AES(key), GCM(_NONCE)).encryptor()
