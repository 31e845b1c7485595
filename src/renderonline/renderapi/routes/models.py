"""The shapes of v2: what is read is checked by them, what is answered is documented by them."""

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Id = Annotated[int, Path(le=2**63 - 1)]
"""An id in a path; larger numbers no database can look for."""
Name = Annotated[str, StringConstraints(max_length=50)]
Email = Annotated[str, StringConstraints(min_length=3, max_length=255)]
RoleName = Literal["admin", "operator", "artist"]


class _Sent(BaseModel):
    """What a client sends: unknown fields are mistakes."""

    model_config = ConfigDict(extra="forbid", strict=True)


class NewUser(_Sent):
    email: Email
    first_name: Name = ""
    last_name: Name = ""
    subscription_id: int | None = Field(default=None, le=2**31 - 1)
    role: RoleName = "artist"
    is_active: bool = True


class UserChange(_Sent):
    email: Email = ""
    first_name: Name = ""
    last_name: Name = ""
    subscription_id: int = Field(default=0, le=2**31 - 1)
    role: RoleName = "artist"
    is_active: bool = True


class NewSubscription(_Sent):
    name: Name
    queue_limit: int = Field(ge=0, le=1_000_000)
    share: int = Field(default=1, ge=1, le=1_000_000)


class SubscriptionChange(_Sent):
    name: Name = ""
    queue_limit: int = Field(default=0, ge=0, le=1_000_000)
    share: int = Field(default=1, ge=1, le=1_000_000)


class NewEngine(_Sent):
    definition: str = Field(max_length=64 * 1024, description="The TOML of an engine's definition.")
    download_path: str | None = Field(default=None, max_length=4096)


class EngineChange(_Sent):
    definition: str = Field(default="", max_length=64 * 1024)
    download_path: str = Field(default="", max_length=4096)
    is_enabled: bool = True


class NewArgType(_Sent):
    type: Annotated[str, StringConstraints(max_length=20)]
    regex: str | None = Field(default=None, max_length=4096)


class NewMachine(_Sent):
    ip_address: Annotated[str, StringConstraints(min_length=1, max_length=45)]
    port: int = Field(ge=1, le=65535)


class MachineChange(_Sent):
    wish: Literal["active", "draining", "disabled"] = "active"
    name: Annotated[str, StringConstraints(min_length=1, max_length=100)] = "-"
    reason: Annotated[str, StringConstraints(max_length=255)] = ""


class Invitation(_Sent):
    uses: int = Field(default=1, ge=1, le=10_000)
    hours: float = Field(default=24, gt=0, le=8784, strict=False)


class Enrolment(_Sent):
    code: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    name: Annotated[str, StringConstraints(min_length=1, max_length=100)]


# -- answers


class User(BaseModel):
    user_id: int
    email: str
    first_name: str
    last_name: str
    role: RoleName
    subscription_id: int
    is_active: bool


class Me(User):
    permissions: list[str]


class UserWithToken(User):
    token: str = Field(description="Shown this once only.")


class Users(BaseModel):
    items: list[User]


class Token(BaseModel):
    token: str = Field(description="Shown this once only.")


class Subscription(BaseModel):
    subscription_id: int
    name: str
    queue_limit: int
    share: int


class Subscriptions(BaseModel):
    items: list[Subscription]


class Argument(BaseModel):
    id: str
    type: str
    label: str
    help: str
    default: str | None
    regex: str
    choices: list[str]


class Engine(BaseModel):
    engine_id: int
    name: str
    label: str
    extension: str
    extensions: list[str]
    download_path: str
    render_argument: str
    is_enabled: bool
    split: str
    frames: dict[str, str] | None
    arguments: list[Argument]
    definition: str | None


class Engines(BaseModel):
    items: list[Engine]


class ArgType(BaseModel):
    argtype_id: str
    type: str
    regex: str


class ArgTypes(BaseModel):
    items: list[ArgType]


class EngineOffer(BaseModel):
    name: str
    version: str


class Machine(BaseModel):
    machine_id: int
    name: str
    kind: Literal["linked", "v1"]
    ip_address: str
    port: int
    status: Literal["idle", "busy", "draining", "disabled", "offline"]
    wish: Literal["active", "draining", "disabled"]
    reason: str
    engines: list[EngineOffer]
    slots: int
    attempts: list[int]


class Machines(BaseModel):
    items: list[Machine]


class Invited(BaseModel):
    code: str
    expires: str
    command: str = Field(description="What to type on the new machine.")


class Enrolled(BaseModel):
    machine_id: int
    secret: str


class Task(BaseModel):
    task_id: int
    name: str
    user_id: int
    email: str
    engine: str
    engine_id: int
    status: Literal["queued", "running", "paused", "succeeded", "failed", "canceled"]
    priority: int
    paused: bool
    file_name: str
    file_size: int
    arguments: dict[str, str]
    frames: str | None
    frames_total: int
    frames_done: int
    chunk_size: int
    chunks: dict[str, int]
    queued: str | None
    started: str | None
    ended: str | None
    reason: str | None
    machine_ids: list[int]
    progress: float = Field(ge=0, le=1)


class Tasks(BaseModel):
    items: list[Task]
    next: str | None


class Chunk(BaseModel):
    chunk_id: int
    kind: Literal["render", "join", "film"]
    stage: int
    state: Literal["waiting", "assigned", "running", "succeeded", "failed", "canceled"]
    frames: str | None
    place: int
    tries: int
    not_before: str | None
    reason: str | None


class Chunks(BaseModel):
    items: list[Chunk]
    next: str | None


class Attempt(BaseModel):
    attempt_id: int
    task_id: int
    chunk_id: int
    machine_id: int
    machine: str
    state: Literal["assigned", "running", "ended"]
    outcome: Literal["succeeded", "failed", "canceled", "timed_out", "stalled", "lost"] | None
    assigned: str | None
    started: str | None
    ended: str | None
    exit_code: int | None
    failure: str
    reason: str | None
    peak_memory_mib: int
    frames: str | None
    progress: float | None


class Attempts(BaseModel):
    items: list[Attempt]
    next: str | None


class Result(BaseModel):
    name: str
    frame: int | None
    size: int
    digest: str = Field(description="BLAKE2b-256 in hex.")
    crc32: int
    machine_id: int | None
    attempt_id: int
    facts: dict[str, Any]
    landed: str | None


class Results(BaseModel):
    items: list[Result]
    next: str | None


class Reasons(BaseModel):
    reasons: list[str]


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str
