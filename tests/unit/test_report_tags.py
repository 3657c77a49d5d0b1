"""Large reports are told apart by a tag: GMAC, under a secret of their training."""

from __future__ import annotations

import hashlib
import os

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from grid_jupyter.cycles.tags import Tag


def tag(data: bytes, pieces: int = 1, training: str = "s") -> str:
    made, step = Tag(training), max(1, len(data) // pieces)
    for start in range(0, len(data), step):
        made.update(memoryview(data)[start : start + step])
    return made.hexdigest()


def test_a_tag_is_that_of_aes_gcm_over_data_that_is_not_encrypted():
    data = os.urandom(100_001)
    key = hashlib.sha256(b"reports s").digest()
    assert tag(data) == AESGCM(key).encrypt(bytes(12), b"", data).hex()


def test_the_same_bytes_have_the_same_tag_however_they_come_and_others_another_one():
    data = os.urandom(1 << 20)
    changed = bytearray(data)
    changed[777_777] ^= 1
    assert tag(data, 1) == tag(data, 7) == tag(data, 1000)
    others = [bytes(changed), data[:-1], data + b"\0", b""]
    assert len({tag(data), tag(data, training="t"), *(tag(other) for other in others)}) == 6
