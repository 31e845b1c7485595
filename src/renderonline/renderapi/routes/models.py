"""What v2's clients send; unknown fields are mistakes. Everything of a `…Change` may be left out."""

from typing import Annotated, Final, Literal

from fastapi import Header, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from renderonline.farm.accounts import Role
from renderonline.farm.frames import MAX_FRAMES
from renderonline.farm.machines import MOST_SLOTS
from renderonline.storage.staging import MOST_FILES

LARGEST: Final = 2**63 - 1
"""Larger numbers no database can look for. Every number that is sent has a bound at both ends."""

Id = Annotated[int, Path(ge=0, le=LARGEST)]
FileIndex = Annotated[int, Path(ge=0, lt=MOST_FILES, description="The file's place in the upload's list.")]
Limit = Annotated[int, Query(ge=1, le=500)]
LogOffset = Annotated[int, Query(ge=0, lt=10**16)]
UploadOffset = Annotated[str, Header(alias="upload-offset", pattern="^[0-9]{1,19}$")]
Cursor = Annotated[str | None, Query(max_length=100)]
Name = Annotated[str, Field(max_length=50)]
Named = Annotated[str, Field(min_length=1, max_length=100)]
Size = Annotated[str, Query(max_length=20, description="thumb or view")]
Slots = Annotated[int, Field(ge=0, le=MOST_SLOTS, description="Attempts at once; 0: four, or its cores if fewer.")]
Place = Annotated[str, Field(max_length=4096)]


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class UserChange(_Sent):
    email: str = Field("", min_length=3, max_length=255)
    first_name: Name = ""
    last_name: Name = ""
    subscription_id: int | None = Field(None, ge=0, le=2**31 - 1)
    role: Role = Field(Role.ARTIST, strict=False)
    is_active: bool = True


class NewUser(UserChange):
    email: str = Field(min_length=3, max_length=255)


class SubscriptionChange(_Sent):
    name: Name = ""
    queue_limit: int = Field(0, ge=0, le=1_000_000)
    share: int = Field(1, ge=1, le=1_000_000)
    running_limit: int = Field(0, ge=0, le=1_000_000)
    keep_days: int = Field(0, ge=0, le=1_000_000)
    keep_mib: int = Field(0, ge=0, le=1_000_000)
    names: str = Field("", max_length=200, description="What results are called, such as {scene}/{name}_{frame:04}.")


class NewSubscription(SubscriptionChange):
    name: Name
    queue_limit: int = Field(ge=0, le=1_000_000)


class EngineChange(_Sent):
    definition: str = Field("", max_length=64 * 1024, description="The TOML of an engine's definition.")
    download_path: Place = ""
    is_enabled: bool = True


class NewEngine(_Sent):
    definition: str = Field(max_length=64 * 1024, description="The TOML of an engine's definition.")
    download_path: Place | None = None


class NewArgType(_Sent):
    type: Annotated[str, Field(max_length=20)]
    regex: Place | None = None


class NewMachine(_Sent):
    ip_address: Annotated[str, Field(min_length=1, max_length=45)]
    port: int = Field(ge=1, le=65535)


class MachineChange(_Sent):
    wish: Literal["active", "draining", "disabled"] = "active"
    name: Named = "-"
    wish_reason: str = Field("", max_length=255, alias="reason")
    tags: list[Name] = Field([], max_length=16)
    pool: Name = ""
    hours: str = Field("", max_length=255, description="Such as Mon-Fri 18:00-08:00, Sat, Sun; empty: always.")
    slots_allowed: Slots = 0


class TaskChange(_Sent):
    name: str = Field("", max_length=255)
    priority: int = Field(50, ge=0, le=100)
    running_limit: int = Field(0, ge=0, le=MAX_FRAMES)


class FilmRequest(_Sent):
    film: str = Field("mp4", max_length=50, description="mp4 or webm, with frames per second if you like: webm@25.")


class Requeue(_Sent):
    chunks: list[Annotated[int, Field(ge=0, le=LARGEST)]] = Field(default=[], max_length=10_000)
    frames: str = Field(default="", max_length=65_536)


class Accept(_Sent):
    names: list[Annotated[str, Field(max_length=1000)]] = Field(
        default=[], max_length=10_000, description="Only these; none: all that were found altered or have no digest."
    )


class Credentials(_Sent):
    email: str = Field(max_length=1_000)
    token: str = Field(max_length=1_000)


class TicketFor(_Sent):
    path: Place


class Invitation(_Sent):
    uses: int = Field(1, ge=1, le=10_000)
    hours: float = Field(24, gt=0, le=8784, strict=False)
    slots: Slots = 0


class Enrolment(_Sent):
    code: Named
    name: Named
