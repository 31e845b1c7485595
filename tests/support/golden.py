"""Replaying rows of `tests/contract/golden.toml`: states, requests, and the comparison with what came back."""

import io
import itertools
import json
import re
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.support.existing_client import Answer, ExistingClient, Part, multipart
from tests.support.existing_farm import ExistingFarm, address_of, email_of, token_of, wait_until

GOLDEN: Mapping[str, Any] = tomllib.loads((Path(__file__).parents[1] / "contract/golden.toml").read_text())
Row = Mapping[str, Any]

VALID = {"start_frame": "1", "end_frame": "2"}
"""Arguments of the engine 1 of `furnish`."""
STRANGER = 1
"""The user of "somebody else's" tasks."""
INACTIVE = 2
CONTENT = b"BLENDER-v500"


def rows_of(server: str) -> list[Row]:
    """The rows of one server, in order."""
    return [row for row in GOLDEN["row"] if row["of"] == server]


def pattern_of(message: str) -> re.Pattern[str]:
    """A message of the list with its holes, as a regular expression."""
    return re.compile(".*".join(re.escape(piece) for piece in message.split("{}")), re.DOTALL)


def message_in(row: Row) -> str | None:
    """The message that a row expects."""
    answer = json.loads(row["json"]) if "json" in row else {}
    return answer.get("Message", answer.get("ErrorMessage"))


# -- comparing


def check(row: Row, answer: Answer, names: Mapping[str, Any]) -> None:
    """Fail unless `answer` is the row's answer, wholly."""
    wanted = row["status"] if isinstance(row["status"], list) else [row["status"]]
    assert answer.status in wanted, f"{answer.status} instead of {wanted}: {answer.body[:500]!r}"
    if row.get("empty"):
        assert answer.body == b""
    if "json" in row:
        differences = list(_differences(json.loads(row["json"]), answer.json(), names, "answer"))
        assert not differences, "\n".join(differences)
    if "zip" in row:
        with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
            assert archive.testzip() is None
            assert sorted(archive.namelist()) == sorted(row["zip"])
    for name, pattern in row.get("answers", {}).items():
        value = answer.headers.get(name)
        fits = value is None if pattern == "" else value is not None and re.fullmatch(pattern, value)
        assert fits, f"header {name}: {value!r} instead of {pattern!r}"


def _differences(wanted: Any, found: Any, names: Mapping[str, Any], where: str) -> Iterable[str]:
    """What differs; the same keys and nothing else, true is not 1, a number is not its text."""
    if isinstance(wanted, str):
        yield from _text_differs(wanted, found, names, where)
    elif isinstance(wanted, dict) and isinstance(found, dict):
        for key in sorted(set(wanted) | set(found)):
            if key in wanted and key in found:
                yield from _differences(wanted[key], found[key], names, f"{where}.{key}")
            else:
                yield f"{where}.{key} is {'missing' if key in wanted else 'too much'}"
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for place, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from _differences(one, other, names, f"{where}[{place}]")
    elif type(wanted) is not type(found) or wanted != found:
        yield f"{where} is {found!r} instead of {wanted!r}"


def _text_differs(wanted: str, found: Any, names: Mapping[str, Any], where: str) -> Iterable[str]:
    placeholder = re.fullmatch(r"<([a-z0-9 ]+)>", wanted)
    like = re.fullmatch(r"<like (.*)>", wanted, re.DOTALL)
    if like:
        fits = isinstance(found, str) and re.fullmatch(like.group(1), found) is not None
    elif placeholder and placeholder.group(1) in _KINDS:
        fits = _KINDS[placeholder.group(1)](found)
    elif placeholder and placeholder.group(1) in names:
        fits = type(found) is type(names[placeholder.group(1)]) and found == names[placeholder.group(1)]
    else:
        fits = found == filled(wanted, names)
    if not fits:
        yield f"{where} is {found!r} instead of {wanted!r}"


def filled(text: str, names: Mapping[str, Any]) -> str:
    """A text with the ids of the state put in."""
    for name, value in names.items():
        text = text.replace(f"<{name}>", str(value))
    return text


def _is_time(value: Any) -> bool:
    # To the second, without an offset.
    return isinstance(value, str) and datetime.fromisoformat(value).isoformat(timespec="seconds") == value


def _are_the_15_newest(value: Any) -> bool:
    ids = [entry["Task"]["TaskId"] for entry in value]
    return len(ids) == 15 and ids == sorted(ids, reverse=True) and all(set(entry) == _ENTRY for entry in value)


_ENTRY = {"Task", "Render", "Engine"}
_KINDS: Mapping[str, Callable[[Any], bool]] = {
    "number": lambda value: type(value) is int and value >= 0,
    "text": lambda value: isinstance(value, str),
    "time": _is_time,
    "anything": lambda _: True,
    "the 15 newest": _are_the_15_newest,
}


# -- RenderAPI


def furnish(farm: ExistingFarm) -> None:
    """The rows that every state needs: engines, argument types, two users."""
    template = 'blender -b "$RENDERONLINE:@uploaded_file" -s $RENDERONLINE:start_frame -e $RENDERONLINE:end_frame -a'
    farm.add_engine(1, "blender", ".blend", template)
    farm.add_engine(2, "povray", ".pov", "+I$RENDERONLINE:@uploaded_file +F$RENDERONLINE:format")
    farm.add_argtype("start_frame", "natural")
    farm.add_argtype("end_frame", "natural", "")
    farm.add_argtype("format", "word", "PNG|EXR")
    farm.add_argtype("wrong", "foo")
    farm.add_user(STRANGER, queue_limit=250)
    farm.add_user(INACTIVE, active=False)


class RenderAPIStates:
    """Makes the state of a row, each with a user of its own."""

    def __init__(self, farm: ExistingFarm) -> None:
        self._farm = farm
        self._users = itertools.count(10)

    def play(self, row: Row) -> None:
        """Make the state, send the request, compare the answer."""
        user = next(self._users)
        client = self._farm.add_user(user, queue_limit=row.get("queue_limit", 20))
        names: dict[str, Any] = {
            "user": user,
            "email": email_of(user),
            "subscription": user,
            "downloads": str(self._farm.downloads),
        }
        self._make(row.get("given", ""), client, names)
        check(row, self._send(row, user, names), names)

    def _make(self, given: str, client: ExistingClient, names: dict[str, Any]) -> None:
        if given == "":
            return
        if given == "somebody else's queued task":
            names["other task"] = self._enqueue(self._farm.client(STRANGER))
        elif given == "a queued task":
            names["task"] = self._enqueue(client)
        elif given.startswith("a queued task with key "):
            names["task"] = self._enqueue(client, given.removeprefix("a queued task with key "))
        elif match := re.fullmatch(r"(\d+) queued tasks?", given):
            for _ in range(int(match.group(1))):
                self._enqueue(client)
        elif given in ("a dequeued task", "a deleted task"):
            names["task"] = self._enqueue(client)
            answer = (client.dequeue if given == "a dequeued task" else client.delete)(names["task"])
            assert answer.status == 200, answer.body
        else:
            raise AssertionError(f"The state {given!r} is not known.")

    def _enqueue(self, client: ExistingClient, key: str = "") -> int:
        more = {"Idempotency-Key": key} if key else {}
        answer = client.enqueue(1, VALID, "a.blend", CONTENT, headers=more)
        assert answer.status == 200, answer.body
        return int(answer.json()["TaskId"])

    def _send(self, row: Row, user: int, names: Mapping[str, Any]) -> Answer:
        method, _, path = row["send"].partition(" ")
        headers, body = _content(row, names)
        headers = {**_who(row.get("who", ""), user), **headers, **row.get("headers", {})}
        return send(self._farm.url, method, path, headers, body)


def _who(who: str, user: int) -> dict[str, str]:
    return {
        "": {"email": email_of(user), "token": token_of(user)},
        "nobody": {},
        "wrong token": {"email": email_of(user), "token": "wrong"},
        "no token": {"email": email_of(user)},
        "inactive": {"email": email_of(INACTIVE), "token": token_of(INACTIVE)},
        "unknown": {"email": "nobody@example.org", "token": token_of(user)},
    }[who]


def _content(row: Row, names: Mapping[str, Any]) -> tuple[dict[str, str], bytes]:
    if "files" not in row:
        body = filled(row.get("body", ""), names).encode()
        return ({"Content-Type": "application/json"} if "body" in row else {}), body
    parts = [Part("request", row["request"].encode(), content_type="application/json")] if "request" in row else []
    files = [Part(name, CONTENT, file_name, "application/octet-stream") for name, file_name in row["files"]]
    content = multipart(files + parts if row.get("file_first") else parts + files, "golden", "quoted")
    return {"Content-Type": 'multipart/form-data; boundary="golden"'}, content


def send(url: str, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
    """One request as it stands, over a connection of its own."""
    host, port = address_of(url)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}:{port}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ExistingClient(url, "", "").send("\r\n".join([*lines, "", ""]).encode() + body)


# -- HPCServer


class NodeStates:
    """Makes the state of a row on a node whose engines are stubs."""

    def __init__(self, url: str) -> None:
        self._url = url

    def play(self, row: Row) -> None:
        self._make(row.get("given", ""))
        method, _, path = row["send"].partition(" ")
        body = row.get("body", "").encode()
        check(row, send(self._url, method, path, {"Content-Type": "application/json"} if body else {}, body), {})

    def _make(self, given: str) -> None:
        if given == "fresh":
            assert self._task() is None
            return
        self._stop()
        match = re.fullmatch(r"task (\d+) (runs|succeeded|failed|was stopped)", given)
        if match is None:
            assert given == "nothing runs", given
            return
        task_id, outcome = int(match.group(1)), match.group(2)
        words = {"succeeded": "--exit 0", "failed": "--exit 3"}.get(outcome, "--sleep 120")
        answer = self._post("start", {"EngineId": "blender", "TaskId": task_id, "Arguments": words})
        assert answer.status == 200, answer.body
        if outcome == "was stopped":
            self._stop()
        elif outcome != "runs":
            self._wait_until_idle()

    def _stop(self) -> None:
        task = self._task()
        if task is not None:
            self._post("stop", {"TaskId": task["TaskId"]})
            self._wait_until_idle()

    def _wait_until_idle(self) -> None:
        wait_until(lambda: not (self._task() or {"IsRunning": False})["IsRunning"], "idle node")

    def _task(self) -> Any:
        return send(self._url, "GET", "/hpc/status", {}, b"").json()["Task"]

    def _post(self, call: str, members: Mapping[str, Any]) -> Answer:
        body = json.dumps(members).encode()
        return send(self._url, "POST", f"/hpc/{call}", {"Content-Type": "application/json"}, body)
