"""The tables of a Node's or Network's database. Times are UTC seconds; sizes are bytes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    """Base of all records. Constraints have names, so that a migration can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {float: Float(53)}  # noqa: RUF012 - SQLAlchemy reads it from the class


class Setting(Base):
    """One thing that the Node remembers about itself."""

    __tablename__ = "setting"

    key: Mapped[str] = mapped_column(String(128), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


# ------------------------------------------------------------------ accounts

FLAG_COLUMNS = (
    "can_triage_requests",
    "can_edit_settings",
    "can_create_users",
    "can_create_groups",
    "can_edit_roles",
    "can_manage_infrastructure",
    "can_upload_data",
)
"""The columns of a role that are rights."""


class Role(Base):
    """A named set of rights."""

    __tablename__ = "role"
    __table_args__ = ({"sqlite_autoincrement": True},)  # the id of a deleted role is never given again

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(128), unique=True)
    can_triage_requests: Mapped[bool] = mapped_column(default=False)
    can_edit_settings: Mapped[bool] = mapped_column(default=False)
    can_create_users: Mapped[bool] = mapped_column(default=False)
    can_create_groups: Mapped[bool] = mapped_column(default=False)
    can_edit_roles: Mapped[bool] = mapped_column(default=False)
    can_manage_infrastructure: Mapped[bool] = mapped_column(default=False)
    can_upload_data: Mapped[bool] = mapped_column(default=False)


membership = Table(
    "membership",
    Base.metadata,
    Column("account_id", ForeignKey("account.id", ondelete="CASCADE"), primary_key=True),
    Column("group_id", ForeignKey("group.id", ondelete="CASCADE"), primary_key=True),
)
"""Which accounts are in which groups."""


class Group(Base):
    """A named set of accounts."""

    __tablename__ = "group"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(128), unique=True)


class Account(Base):
    """A person, device or Node known here. A deleted one stays, disabled: nobody may inherit its name."""

    __tablename__ = "account"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    username: Mapped[str] = mapped_column(String(128), unique=True)
    password_hash: Mapped[str | None] = mapped_column(String(256))
    role_id: Mapped[int] = mapped_column(ForeignKey("role.id"), index=True)
    created: Mapped[float]
    disabled: Mapped[bool] = mapped_column(default=False)

    role: Mapped[Role] = relationship(lazy="joined", innerjoin=True)
    groups: Mapped[list[Group]] = relationship(secondary=membership, lazy="selectin", order_by=Group.id)


class Token(Base):
    """A credential that was handed out; only its digest is kept."""

    __tablename__ = "token"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("account.id", ondelete="CASCADE"), index=True)
    label: Mapped[str] = mapped_column(String(128), default="")
    created: Mapped[float]
    expires: Mapped[float | None]
    revoked: Mapped[float | None]

    account: Mapped[Account] = relationship(lazy="joined", innerjoin=True)


class Invite(Base):
    """A code that makes one account, once; only its digest is kept."""

    __tablename__ = "invite"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(128))
    username: Mapped[str | None] = mapped_column(String(128))  # the only name it is good for; None: any free one
    created: Mapped[float]
    expires: Mapped[float]
    used_by: Mapped[int | None] = mapped_column(ForeignKey("account.id"))
    used_at: Mapped[float | None]


# ------------------------------------------------------------------ data sets and models


class Dataset(Base):
    """What stays the same over the versions of a data set. The id is random, chosen by the Node."""

    __tablename__ = "dataset"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(128))
    owner: Mapped[str] = mapped_column(String(128))
    kind: Mapped[str] = mapped_column(String(16))
    created: Mapped[float]
    public_tags: Mapped[bool] = mapped_column(default=False)
    # None: everybody whom the Node lets compute. none_as_null, so that None is NULL and not the JSON word.
    compute_users: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    current_version: Mapped[int]
    # what the owner says about jobs and single values, as wire's JobPolicy; None: the default
    jobs: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class DatasetVersion(Base):
    """One publication of a data set. `id` counts publications, so that the newest is known without a clock."""

    __tablename__ = "dataset_version"
    __table_args__ = (UniqueConstraint("dataset_id", "version"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    dataset_id: Mapped[int] = mapped_column(ForeignKey("dataset.id", ondelete="CASCADE"))
    version: Mapped[int]
    blob: Mapped[str] = mapped_column(String(64), unique=True)
    nbytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    tags: Mapped[list[str]] = mapped_column(JSON)
    description: Mapped[str] = mapped_column(Text)
    allowed_users: Mapped[list[str]] = mapped_column(JSON)
    tensors: Mapped[list[dict[str, Any]]] = mapped_column(JSON)  # {name, dtype, shape, begin, end}
    columns: Mapped[list[dict[str, Any]]] = mapped_column(JSON)  # {name, dtype}
    created: Mapped[float]
    upload_id: Mapped[str] = mapped_column(String(128), unique=True)
    mock: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # {blob, nbytes, sha256}

    dataset: Mapped[Dataset] = relationship(lazy="joined", innerjoin=True)


class HostedModel(Base):
    """A model that the Node serves."""

    __tablename__ = "hosted_model"

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    blob: Mapped[str] = mapped_column(String(64), unique=True)
    nbytes: Mapped[int] = mapped_column(BigInteger)
    allow_download: Mapped[bool]
    allow_remote_inference: Mapped[bool]
    mpc: Mapped[bool]
    owner: Mapped[str] = mapped_column(String(128))
    created: Mapped[float]


# ------------------------------------------------------------------ sign-off


class ReleaseRequest(Base):
    """Somebody asks for a value, or for a job. It is never deleted: what was decided stays known."""

    __tablename__ = "release_request"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    key: Mapped[str] = mapped_column(String(128), index=True)  # what it is asked for: a job, a held value
    kind: Mapped[str] = mapped_column(String(16))
    asker: Mapped[str] = mapped_column(String(128), index=True)
    reason: Mapped[str] = mapped_column(Text)
    binding: Mapped[str] = mapped_column(String(64))  # SHA-256 of all that a decision is about
    datasets: Mapped[list[dict[str, Any]]] = mapped_column(JSON)  # {dataset, version, owner}
    shown: Mapped[dict[str, Any]] = mapped_column(JSON)  # what the owners are shown
    state: Mapped[str] = mapped_column(String(16), index=True)
    review: Mapped[bool] = mapped_column(default=False)  # approved to run; its result waits for a second look
    created: Mapped[float]
    expires: Mapped[float]  # waiting: given up then; approved: good until then
    dialogue: Mapped[list[dict[str, Any]]] = mapped_column(JSON)  # {at, by, what, text}, in order
    blob: Mapped[str | None] = mapped_column(String(64), unique=True)  # of a value that is held until it is decided
    held: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # {dtype, shape, nbytes, sha256}

    decisions: Mapped[list[Decision]] = relationship(lazy="selectin", order_by="Decision.owner")


class Decision(Base):
    """What one owner, or somebody in their place, said to a request."""

    __tablename__ = "decision"

    request_id: Mapped[int] = mapped_column(ForeignKey("release_request.id", ondelete="CASCADE"), primary_key=True)
    owner: Mapped[str] = mapped_column(String(128), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    by: Mapped[str] = mapped_column(String(128))
    at: Mapped[float]
    expires: Mapped[float]
    review: Mapped[bool] = mapped_column(default=False)


class AuditRow(Base):
    """One thing that a gate decided. `hash` is over the row and the hash of the one before."""

    __tablename__ = "audit"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    at: Mapped[float]
    event: Mapped[str] = mapped_column(String(64))
    actor: Mapped[str] = mapped_column(String(128))
    details: Mapped[str] = mapped_column(Text)  # canonical JSON
    hash: Mapped[str] = mapped_column(String(64))


# ------------------------------------------------------------------ jobs


class JobRow(Base):
    """A job, from its submission until some time after its end."""

    __tablename__ = "job"
    __table_args__ = (UniqueConstraint("submitter", "upload"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    submitter: Mapped[str] = mapped_column(String(128), index=True)
    upload: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), index=True)
    change: Mapped[int]  # grows with each change
    created: Mapped[float]
    began: Mapped[float | None]
    ended: Mapped[float | None]
    document: Mapped[dict[str, Any]] = mapped_column(JSON)  # what was submitted, which never changes
    machine: Mapped[dict[str, Any]] = mapped_column(JSON)  # how it stands (node/job_machine.py)
    log: Mapped[list[Any]] = mapped_column(JSON)
    history: Mapped[list[Any]] = mapped_column(JSON)
    work: Mapped[str | None] = mapped_column(String(64))  # blob of plan and weights
    checkpoint: Mapped[str | None] = mapped_column(String(64))  # blob of the last checkpoint
    result: Mapped[str | None] = mapped_column(String(64))  # blob of the last one, whose release is decided


# ------------------------------------------------------------------ model-centric training


class TrainingRow(Base):
    """A model that devices train, by name and version, and how its training stands."""

    __tablename__ = "training"
    __table_args__ = (UniqueConstraint("name", "version"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    version: Mapped[str] = mapped_column(String(128))
    owner: Mapped[str] = mapped_column(String(128))
    created: Mapped[float]
    client_config: Mapped[dict[str, Any]] = mapped_column(JSON)
    server_config: Mapped[dict[str, Any]] = mapped_column(JSON)
    seed: Mapped[str] = mapped_column(String(64))  # of draws
    secret: Mapped[str] = mapped_column(String(64))  # of request_keys
    buffers: Mapped[list[str]] = mapped_column(JSON)  # tensors that no gradient trains
    averaging: Mapped[str | None] = mapped_column(String(64))  # blob of the host's averaging plan
    state: Mapped[dict[str, Any]] = mapped_column(JSON)  # cycles/machine.py
    registered: Mapped[int]  # devices that ever did
    forgotten: Mapped[int]  # of these, since they were idle
    cursor: Mapped[int]  # rank of the last device that was invited in turn


class TrainingName(Base):
    """A name under which somebody hosted a model: it stays theirs when the model is deleted."""

    __tablename__ = "training_name"

    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    owner: Mapped[str] = mapped_column(String(128))


class TrainingPlan(Base):
    """A plan that devices run."""

    __tablename__ = "training_plan"
    __table_args__ = (UniqueConstraint("training_id", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    training_id: Mapped[int] = mapped_column(ForeignKey("training.id"))
    name: Mapped[str] = mapped_column(String(128))
    sha256: Mapped[str] = mapped_column(String(64))
    blob: Mapped[str] = mapped_column(String(64))
    nbytes: Mapped[int] = mapped_column(BigInteger)


class Checkpoint(Base):
    """The model after a number of cycles; the first one is as it was hosted."""

    __tablename__ = "training_checkpoint"
    __table_args__ = (UniqueConstraint("training_id", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    training_id: Mapped[int] = mapped_column(ForeignKey("training.id"))
    number: Mapped[int]
    blob: Mapped[str] = mapped_column(String(64))
    nbytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created: Mapped[float]
    state: Mapped[dict[str, str]] = mapped_column(JSON)  # blobs of the strategy's state, of the latest one


class DeviceRow(Base):
    """A device that registered for a training."""

    __tablename__ = "training_device"
    __table_args__ = (
        UniqueConstraint("training_id", "rank"),
        Index("ix_training_device_seen", "training_id", "seen"),
    )

    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(String(36), unique=True)
    training_id: Mapped[int] = mapped_column(ForeignKey("training.id"))
    rank: Mapped[int]  # of its registration for this training, from 1
    registered: Mapped[float]
    seen: Mapped[float]
    slow: Mapped[bool]
    subject: Mapped[str | None] = mapped_column(String(64))  # digest of whom its token is for
    last: Mapped[int | None]  # cycle that it last reported in
    asked: Mapped[int]  # attempt that it last asked in


class Participation(Base):
    """A device's place in a cycle, and its report."""

    __tablename__ = "training_place"
    __table_args__ = (
        UniqueConstraint("training_id", "counted", "number"),
        Index("ix_training_place_cycle", "training_id", "sequence", "device"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    training_id: Mapped[int] = mapped_column(ForeignKey("training.id"))
    sequence: Mapped[int]
    device: Mapped[int] = mapped_column(ForeignKey("training_device.number"), index=True)
    state: Mapped[str] = mapped_column(String(16))  # invited, assigned, reported; none: given up
    key: Mapped[str | None] = mapped_column(String(64), unique=True)  # digest of the request_key
    at: Mapped[float]
    counted: Mapped[int | None]  # cycle that its report counts in
    number: Mapped[int | None]  # of the report among those of that cycle, from 1
    samples: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64))
    blob: Mapped[str | None] = mapped_column(String(64))  # until it is in a checkpoint


class MetricsRow(Base):
    """What a device measured in its place of a cycle."""

    __tablename__ = "training_metrics"
    __table_args__ = (Index("ix_training_metrics_training_id", "training_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    training_id: Mapped[int] = mapped_column(ForeignKey("training.id"))
    sequence: Mapped[int]
    place: Mapped[int] = mapped_column(ForeignKey("training_place.id"), unique=True)
    worker: Mapped[int]  # rank of the device
    key: Mapped[str | None] = mapped_column(String(64))  # of the place when it told this
    figures: Mapped[dict[str, float]] = mapped_column(JSON)
    samples: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[float]


# ------------------------------------------------------------------ push


class PushAddress(Base):
    """How a device can be reached, so that it need not ask."""

    __tablename__ = "push_address"
    __table_args__ = (UniqueConstraint("training_id", "digest"),)

    device: Mapped[int] = mapped_column(ForeignKey("training_device.number"), primary_key=True)
    training_id: Mapped[int] = mapped_column(ForeignKey("training.id"), index=True)
    token: Mapped[str | None] = mapped_column(Text)  # of Firebase
    digest: Mapped[str | None] = mapped_column(String(64))  # of the token
    listens: Mapped[bool]  # has taken notices over a WebSocket


class PushNotice(Base):
    """A notice that is to go to a device, or to many: those are made into one for each device, little by little."""

    __tablename__ = "push_notice"
    __table_args__ = (
        Index("ix_push_notice_state_due", "state", "due"),
        Index("ix_push_notice_training_id_state", "training_id", "state"),
        Index("ix_push_notice_device_state", "device", "state"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(256), unique=True)  # what makes it the same notice
    training_id: Mapped[int] = mapped_column(ForeignKey("training.id"))
    type: Mapped[str] = mapped_column(String(32))
    facts: Mapped[dict[str, Any]] = mapped_column(JSON)
    device: Mapped[int | None] = mapped_column(ForeignKey("training_device.number"))  # None: to many
    audience: Mapped[str | None] = mapped_column(String(16))  # to whom, if to many
    sequence: Mapped[int | None]  # of the cycle that the audience is about
    since: Mapped[float | None]  # the audience was last heard of before
    cursor: Mapped[int]  # the last device that has its own
    origin: Mapped[str] = mapped_column(String(16))  # cycle, owner
    created: Mapped[float]
    expires: Mapped[float]
    due: Mapped[float]
    attempts: Mapped[int]  # that were made
    state: Mapped[str] = mapped_column(String(16))  # spreading, waiting, sent, given-up, done, void
    by: Mapped[str] = mapped_column(String(16))  # notifier
    said: Mapped[str] = mapped_column(String(256))  # why it waits, or was given up


# ------------------------------------------------------------------ a Network's members


class GridNode(Base):
    """A Node that joined this Network, and where it was last."""

    __tablename__ = "grid_node"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), unique=True)
    address: Mapped[str] = mapped_column(String(2048))
    account_id: Mapped[int] = mapped_column(ForeignKey("account.id"), index=True)
    joined: Mapped[float]
    last_seen: Mapped[float]
