"""Data as it is uploaded to a Node: the bytes of one safetensors file, and what it holds. Knows no torch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grid_jupyter.errors import InvalidDataError
from grid_jupyter.link.bulk import Pieces, of_file
from grid_jupyter.wire.messages import ColumnInfo
from grid_jupyter.wire.mock import Form


@dataclass(frozen=True)
class Prepared:
    """What is about to be uploaded."""

    kind: str
    columns: tuple[ColumnInfo, ...]
    tensors: tuple[Form, ...]
    pieces: Pieces
    length: int


@contextmanager
def prepared(data: Any) -> Iterator[Prepared]:
    """A DataFrame, or the path of a CSV, Parquet, NPZ or safetensors file, as a file that is gone afterwards.

    Raises InvalidDataError for anything else, and as `client.tables` does.
    """
    import pandas

    from grid_jupyter.client.tables import TableSpec, write_file, write_frame

    with tempfile.TemporaryDirectory(prefix="grid-publish-") as folder:
        path = Path(folder) / "data.safetensors"
        if isinstance(data, pandas.DataFrame):
            spec: Any = write_frame(data, path)
        elif isinstance(data, (str, Path)):
            spec = write_file(Path(data), path)
        else:
            raise InvalidDataError(
                f"a {type(data).__name__} cannot be published: give a tensor, a pandas DataFrame, or the path of "
                f"a CSV, Parquet, NPZ or safetensors file"
            )
        kind, columns = ("table", spec.columns) if isinstance(spec, TableSpec) else ("arrays", ())
        with path.open("rb") as file:
            yield Prepared(kind, columns, spec.tensors, of_file(file), path.stat().st_size)
