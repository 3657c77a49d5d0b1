"""Pointers to published data: tensors, tables and collections of arrays, opened at first use."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from grid_jupyter.client.mock import mock_rows, mock_tensors
from grid_jupyter.client.statistics import Statistics, chosen
from grid_jupyter.errors import ObjectNotFoundError
from grid_jupyter.ops.raw import DTYPES
from grid_jupyter.ops.shapes import layout
from grid_jupyter.tensors.private import PrivateTensor
from grid_jupyter.tensors.remote import RemoteTensor, point
from grid_jupyter.tensors.session import Session
from grid_jupyter.tensors.text import plain, pointer_text
from grid_jupyter.wire.messages import DatasetInfo, TensorInfo


class Holder(Protocol):
    """A Node's client, as pointers need it."""

    id: str

    @property
    def session(self) -> Session:
        """The session of the moment."""

    def value_of(self, dataset: DatasetInfo, tensor: str, user: str | None = None) -> int:
        """The session's id for a tensor of a data set, which is opened if need be, as `user` if named."""


class DatasetRef:
    """Names one tensor of a data set. The session's own id for it is asked for when it is first needed,
    and again after the session was lost: published data outlives sessions."""

    __slots__ = ("dataset", "place", "tensor")

    def __init__(self, place: Holder, dataset: DatasetInfo, tensor: str) -> None:
        self.place = place
        self.dataset = dataset
        self.tensor = tensor

    @property
    def id(self) -> int:
        """The session's id for the tensor. Raises what opening it raises."""
        return self.place.value_of(self.dataset, self.tensor)

    @property
    def session(self) -> Session:
        """The session of the moment."""
        return self.place.session

    @property
    def label(self) -> int:
        """The data set's number, which is the same for everybody."""
        return self.dataset.id

    def mock(self, user: str | None) -> torch.Tensor:
        """The mock rows of this tensor. Raises ObjectNotFoundError where there are none."""
        return mock_tensors(self.place, self.dataset, user)[self.tensor]


def pointer(place: Holder, dataset: DatasetInfo) -> Any:
    """The pointer that fits a data set: RemoteTensor, RemoteTable or RemoteArrays."""
    if dataset.kind == "tensor":
        return _tensor(place, dataset, dataset.tensors[0], named=True)
    return (RemoteTable if dataset.kind == "table" else RemoteArrays)(place, dataset)


def _tensor(place: Holder, dataset: DatasetInfo, tensor: TensorInfo, *, named: bool = False) -> RemoteTensor:
    stride: list[int] = []
    step = 1
    for length in reversed(tensor.shape):
        stride.insert(0, step)
        step *= max(length, 1)
    of = layout(torch.Size(tensor.shape), tuple(stride), DTYPES[tensor.dtype])
    made = point(of, DatasetRef(place, dataset, tensor.name))
    if named:
        made.tags, made.description = dataset.tags, dataset.description
    return made


class RemoteArrays:
    """A data set of several named tensors: `arrays["X"]` is a pointer to one of them."""

    def __init__(self, place: Holder, dataset: DatasetInfo) -> None:
        self.location = place
        self.dataset = dataset

    @property
    def id_at_location(self) -> int:
        """The data set's number."""
        return self.dataset.id

    @property
    def tags(self) -> tuple[str, ...]:
        """The owner's tags."""
        return self.dataset.tags

    @property
    def description(self) -> str:
        """The owner's description."""
        return self.dataset.description

    def keys(self) -> list[str]:
        """Names of the tensors."""
        return [tensor.name for tensor in self.dataset.tensors]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __getitem__(self, name: str) -> RemoteTensor:
        return self._pointer(name)

    def get(self, user: str | None = None) -> dict[str, Any]:
        """All tensors, for one who may read them; the data stays published. Raises GetNotPermittedError."""
        return {name: self[name].get(user=user) for name in self.keys()}

    def mock(self, user: str | None = None) -> Any:
        """The mock rows that the owner gave: a DataFrame of the same columns and dtypes, or a dict of tensors. `user`
        presents the stored credential of that user. Raises ObjectNotFoundError where there are none."""
        return mock_rows(self.location, self.dataset, user)

    def _pointer(self, name: str) -> RemoteTensor:
        for tensor in self.dataset.tensors:
            if tensor.name == name:
                return _tensor(self.location, self.dataset, tensor)
        raise ObjectNotFoundError(f"data set {self.dataset.id} has no tensor {plain(name)!r}; see .keys()")

    def __repr__(self) -> str:
        return pointer_text(0, self.location.id, self.dataset.id, (), "", ()).replace(
            "PointerTensor | me:0", type(self).__name__
        ) + self._about(self.keys())

    def _about(self, names: list[str]) -> str:
        shown = ", ".join(plain(name, 40) for name in names[:8]) + (", …" if len(names) > 8 else "")
        text = f"\n\tTags: {' '.join(plain(tag) for tag in self.tags)} " if self.tags else ""
        text += f"\n\tContents: {shown}"
        text += "\n\tMock rows: .mock()" if self.dataset.mock else ""
        if self.description:
            text += f"\n\tDescription: {plain(self.description.split(chr(10))[0])}..."
        return text

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


class RemoteTable(Statistics, RemoteArrays):
    """A published table: `table["weight"]` is a pointer to one column's numbers, `table[["age", "weight"]]` some
    columns, `table[table["age"] > 60]` some rows; `mean()`, `describe()` and others are computed where it lies.

    Whole numbers and booleans with missing entries come as float64 with NaN there, times as seconds since
    1970 (UTC) in float64, texts and categories as codes with -1 for missing.
    """

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return [column.name for column in self.dataset.columns]

    @property
    def dtypes(self) -> dict[str, str]:
        """pandas' name of each column's dtype."""
        return {column.name: column.dtype for column in self.dataset.columns}

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        lengths = [tensor.shape[0] for tensor in self.dataset.tensors if tensor.name == "col/0"]
        return (lengths[0] if lengths else 0, len(self.dataset.columns))

    def keys(self) -> list[str]:
        """Names of the columns."""
        return self.columns

    def __getitem__(self, key: Any) -> Any:
        return self.column(key) if isinstance(key, str) else chosen(self, self.columns, key)

    def column(self, name: str) -> RemoteTensor:
        """A pointer to one column's numbers. Raises ObjectNotFoundError."""
        if name not in self.columns:
            raise ObjectNotFoundError(f"the table has no column {plain(name)!r}; see .columns")
        from grid_jupyter.client.columns import column_values  # pandas, which tensors alone do not need

        index = self.columns.index(name)
        # strangers are not told of vocabularies, and need none to compute on codes
        names = [*(tensor.name for tensor in self.dataset.tensors), f"vocab/{index}"]
        plan = column_values(self.dataset.columns, index, names)
        values: Any = self._pointer(plan.values)
        if not plan.as_float:
            return values  # type: ignore[no-any-return]
        values = values.double()
        if plan.scale is not None:
            values = values / plan.scale
        if plan.mask is not None:
            values = values.masked_fill(self._pointer(plan.mask), float("nan"))
        return values  # type: ignore[no-any-return]

    def categories(self, name: str, user: str | None = None) -> list[Any]:
        """The words behind a column's codes, for one who may read them. Raises GetNotPermittedError."""
        from grid_jupyter.client.series import categories

        if name not in self.columns:
            raise ObjectNotFoundError(f"the table has no column {plain(name)!r}; see .columns")
        index = self.columns.index(name)
        return categories(self.dataset.columns[index], self._numpy(f"vocab/{index}", user))

    def get(self, user: str | None = None) -> Any:
        """The DataFrame that was published, for one who may read it. Raises GetNotPermittedError."""
        from grid_jupyter.client.tables import read_frame

        return read_frame(self.dataset.columns, lambda name: self._numpy(name, user))

    def _numpy(self, name: str, user: str | None) -> Any:
        of = TensorInfo(name=name, dtype="uint8", shape=())
        for tensor in self.dataset.tensors:
            of = tensor if tensor.name == name else of
        self.location.value_of(self.dataset, name, user)
        found = _tensor(self.location, self.dataset, of).get(user=user)
        return (found.unwrap() if isinstance(found, PrivateTensor) else found).numpy()
