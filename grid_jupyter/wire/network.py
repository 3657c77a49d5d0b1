"""What a Node and its Network say to each other on the link between them: JSON, one message a text frame.

    Node                                        Network
      GET /link, its credential in a header  →
                                             ←  Welcome
      Heartbeat, every `heartbeat_s`         →
                                             ←  Seen
                                             ←  FindDatasets | ListTags | ListModels, each with an id
      Datasets | Tags | Models | Unanswered  →  with the same id
      FindNode, with an id                   →
                                             ←  FoundNode, with the same id

Either side takes a link that was silent for three heartbeats for dead.
"""

from __future__ import annotations

from typing import Annotated, TypeVar, Union

import msgspec

from grid_jupyter.errors import InvalidMessageError, LimitExceededError
from grid_jupyter.wire.limits import MAX_NAME_CHARS, MAX_TAG_CHARS, MAX_TAGS
from grid_jupyter.wire.messages import Message

MAX_LINK_BYTES = 1 << 20
"""Length of one message on the link, in bytes."""
MAX_ADDRESS_CHARS = 512
"""Characters of a Node's address."""

Text = Annotated[str, msgspec.Meta(max_length=MAX_NAME_CHARS)]
Address = Annotated[str, msgspec.Meta(max_length=MAX_ADDRESS_CHARS)]
Tag = Annotated[str, msgspec.Meta(max_length=MAX_TAG_CHARS)]
Count = Annotated[int, msgspec.Meta(ge=0)]

# ------------------------------------------------------------------ Network → Node


class Welcome(Message, frozen=True, tag="welcome"):
    """First message on a link: the Network lists the Node, and expects its heartbeat at least this often."""

    network: str
    heartbeat_s: float


class Seen(Message, frozen=True, tag="seen"):
    """The heartbeat arrived."""


class FindDatasets(Message, frozen=True, tag="find-datasets"):
    """Which data sets carry all of these tags (none: which are there). Reply: Datasets.

    `public`: the question comes from somebody without a credential, so only what the owner made
    public counts.
    """

    id: int
    query: Annotated[tuple[Tag, ...], msgspec.Meta(max_length=MAX_TAGS)] = ()
    public: bool = True


class ListTags(Message, frozen=True, tag="list-tags"):
    """All tags in use; `public` as above. Reply: Tags."""

    id: int
    public: bool = True


class ListModels(Message, frozen=True, tag="list-models"):
    """The models that the Node hosts. Reply: Models."""

    id: int


class FoundNode(Message, frozen=True, tag="found-node"):
    """Answer to FindNode; no address where no Node of that name lives."""

    id: int
    address: Address | None = None


# ------------------------------------------------------------------ Node → Network


class Heartbeat(Message, frozen=True, tag="heartbeat"):
    """The Node lives, at this address; how much it holds and how busy its machine is."""

    address: Address
    tags: Count
    datasets: Count
    models: Count
    cpu: float  # percent of all cores
    memory: float  # percent of the machine's memory


class FindNode(Message, frozen=True, tag="find-node"):
    """Where is the Node of this name. Reply: FoundNode."""

    id: int
    name: Text


class DatasetTags(Message, frozen=True):
    """One data set in an answer."""

    id: int
    tags: tuple[Tag, ...]  # in the owner's order


class HostedModel(Message, frozen=True):
    """One hosted model in an answer. Of a shared (mpc) one: who holds the shares, as (name, address)."""

    id: Text
    mpc: bool = False
    workers: tuple[tuple[Text, Address], ...] = ()
    crypto_provider: tuple[Text, Address] | None = None


class Datasets(Message, frozen=True, tag="datasets"):
    """Answer to FindDatasets."""

    id: int
    datasets: tuple[DatasetTags, ...]


class Tags(Message, frozen=True, tag="tags"):
    """Answer to ListTags."""

    id: int
    tags: tuple[Tag, ...]


class Models(Message, frozen=True, tag="models"):
    """Answer to ListModels."""

    id: int
    models: tuple[HostedModel, ...]


class Unanswered(Message, frozen=True, tag="unanswered"):
    """The Node cannot answer this question now. Codes: errors.py."""

    id: int
    code: str
    error: str


Question = Union[FindDatasets, ListTags, ListModels]
Answer = Union[Datasets, Tags, Models, Unanswered]
FromNetwork = Union[Welcome, Seen, FindDatasets, ListTags, ListModels, FoundNode]
FromNode = Union[Heartbeat, Datasets, Tags, Models, Unanswered, FindNode]

from_network_decoder: msgspec.json.Decoder[FromNetwork] = msgspec.json.Decoder(FromNetwork)
from_node_decoder: msgspec.json.Decoder[FromNode] = msgspec.json.Decoder(FromNode)

T = TypeVar("T")


def encode(message: FromNetwork | FromNode) -> str:
    """A message as the text of one frame. Raises LimitExceededError if it is too long."""
    data = msgspec.json.encode(message)
    if len(data) > MAX_LINK_BYTES:
        raise LimitExceededError(f"a message of {len(data)} bytes is over the link's limit of {MAX_LINK_BYTES}")
    return data.decode()


def decode(text: str | bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """The message in a frame. Raises InvalidMessageError, which names the place and no value."""
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        raise InvalidMessageError(f"the message does not fit the protocol: {error}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise InvalidMessageError("the message is not well-formed JSON, or nests too deeply") from None
