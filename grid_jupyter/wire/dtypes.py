"""Names and sizes of element types, shared by the wire, the blobs and the Workers; knows no torch."""

from __future__ import annotations

ITEM_BYTES: dict[str, int] = {
    "bool": 1, "uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex64": 8, "complex128": 16,
}  # fmt: skip
"""Bytes of one element of each dtype that travels, by torch's name for it."""

SAFETENSORS: dict[str, str] = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
}  # fmt: skip
"""safetensors' name of a dtype → ours. Other names are refused."""
TO_SAFETENSORS: dict[str, str] = {ours: theirs for theirs, ours in SAFETENSORS.items()}


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a contiguous tensor; raises KeyError for an unknown dtype."""
    size = ITEM_BYTES[dtype]
    for length in shape:
        size *= length
    return size
