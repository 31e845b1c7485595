"""The farm's event stream (SSE), resumed after every break at the event where it broke."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any, Final

from renderonline.farm.errors import LimitReached, NotAvailable
from renderonline.rnoclient.sdk.connection import Connection

RESYNC: Final = "resync"
"""The type of the event that says: some events are lost for good, ask for what you show."""
SILENCE_S: Final = 45.0
POLL_S: Final = 3.0
LINE_LIMIT: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened: `type` is task, result, progress, machine or resync; "" is a sign of life."""

    type: str
    data: dict[str, Any]
    id: str = ""


def stream(connection: Connection, *, patience_s: float = 60.0) -> Iterator[Event]:
    """All events from now on, for ever; the first is always a `resync`.

    After each break that may have lost events another `resync` follows. Where the account has no stream left there is
    a `resync` every few seconds instead. `NotAvailable` when RenderAPI can't be reached for longer than `patience_s`.
    """
    last_id = ""
    broken_since = time.monotonic()
    while True:
        try:
            headers = {"accept": "text/event-stream"} | ({"last-event-id": last_id} if last_id else {})
            with connection.open("GET", "/events", headers=headers, timeout_s=SILENCE_S) as response:
                if not last_id:
                    yield Event(RESYNC, {})
                for event in parse(response):
                    last_id = event.id or last_id
                    broken_since = time.monotonic()
                    if event.type:
                        yield event
                broken_since = time.monotonic()
        except LimitReached:
            last_id, broken_since = "", time.monotonic()
            yield Event(RESYNC, {})
            time.sleep(POLL_S)
        except NotAvailable:
            if time.monotonic() - broken_since > patience_s:
                raise
        time.sleep(0.5)


def parse(response: HTTPResponse) -> Iterator[Event]:
    """The events of one answer. Comments (keep-alive) come as events without a type."""
    fields: dict[str, str] = {}
    data: list[str] = []
    while line := response.readline(LINE_LIMIT):
        if not line.endswith(b"\n"):
            raise HTTPException("an event that was cut or is too long")
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if not text:
            if data:
                yield Event(fields.get("event", "message"), json_object("\n".join(data)), fields.get("id", ""))
            fields, data = {}, []
            continue
        key, _, value = text.partition(":")
        value = value.removeprefix(" ")
        if not key:
            yield Event("", {})
        elif key == "data":
            data.append(value)
        else:
            fields[key] = value


def json_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object that a text holds; {} for everything else."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
