"""RenderAPI in the test's own event loop, on a free loopback port, with everything real behind it."""

import asyncio
import contextlib
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import aiohttp

from renderonline.engines.definition import shipped
from renderonline.renderapi.main import READY_FILE, serve
from renderonline.renderapi.settings import Settings, load_settings
from renderonline.rnoclient import WEB_PAGE
from renderonline.storage.names import INCOMING

T = TypeVar("T")

SCENE = ("a.blend", b"BLENDER scene")
COMMAND_ENGINE = """
name = "writer"
label = "Writer"
extensions = [".txt"]
template = "writer $RENDERONLINE:@uploaded_file -s $RENDERONLINE:first -e $RENDERONLINE:last -w $RENDERONLINE:words"
split = "frames"

[[arguments]]
id = "first"
type = "integer"
default = "1"

[[arguments]]
id = "last"
type = "integer"
default = "1"

[[arguments]]
id = "words"
type = "sentence"
default = "hello"

[frames]
first = "first"
last = "last"
"""


@dataclass(frozen=True)
class Running:
    """A RenderAPI that answers, and its administrator."""

    url: str
    settings: Settings
    who: Mapping[str, str]
    """The administrator's headers."""
    http: aiohttp.ClientSession

    async def call(
        self, method: str, path: str, json: Any = None, *, who: Mapping[str, str] | None = None, **more: Any
    ) -> "Reply":
        """One call of v2 as the administrator, or as `who`."""
        headers = {**(self.who if who is None else who), **more.pop("headers", {})}
        address = self.url + (path if path.startswith("/renderapi/v1") else f"/renderapi/v2{path}")
        async with self.http.request(method, address, json=json, headers=headers, **more) as response:
            return Reply(response.status, response.headers, await response.read())

    async def submit(
        self,
        request: Any,
        *files: tuple[str, bytes],
        version: int = 1,
        who: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> "Reply":
        """A multipart submission: `request` as JSON (None: no such part), then the files."""
        form = aiohttp.FormData(quote_fields=False)
        form._is_multipart = True
        if request is not None:
            text = request if isinstance(request, str) else json.dumps(request)
            form.add_field("request", text, content_type="application/json")
        for name, content in files:
            form.add_field("file", content, filename=name, content_type="application/octet-stream")
        path = "/renderapi/v1/enqueue" if version == 1 else "/tasks"
        return await self.call("POST", path, who=who, data=form, headers=headers or {})

    async def new_task(self, who: Mapping[str, str] | None = None, **request: Any) -> dict[str, Any]:
        """A Blender task, as v2 shows it."""
        reply = await self.submit({"engine": "blender", **request}, SCENE, version=2, who=who)
        assert reply.status == 201, reply.body
        task: dict[str, Any] = reply.json()
        return task

    async def new_user(self, email: str, role: str = "artist", **more: Any) -> Mapping[str, str]:
        """An account's headers."""
        reply = await self.call("POST", "/users", {"email": email, "role": role, **more})
        assert reply.status == 201, reply.body
        return {"email": email, "token": reply.json()["token"]}

    def tree(self) -> list[str]:
        """Everything below the download path."""
        root = self.settings.files
        found = [Path(folder, name) for folder, *inside in os.walk(root) for name in (*inside[0], *inside[1])]
        return sorted(str(path.relative_to(root)) for path in found if path.name != INCOMING)


@dataclass(frozen=True)
class Reply:
    """An answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def first_login(data: Path) -> dict[str, str]:
    """The administrator's login, also after its file has gone because somebody used it on the page."""
    first, noted = data / "first-login.json", data / "noted-login.json"
    if first.exists():
        shutil.copy2(first, noted)
    login: dict[str, str] = json.loads(noted.read_text())
    return login


@contextlib.asynccontextmanager
async def renderapi(directory: Path, *, reads_scenes: bool = False, **flags: Any) -> AsyncIterator[Running]:
    """RenderAPI with its data in `directory`; `flags` are settings.

    Unless it `reads_scenes`, a new farm's Blender takes whatever is called .blend: most tests send a few bytes.
    """
    plain = {name: re.sub(r"(?m)^facts = .*$", "", toml) for name, toml in shipped().items()}
    with mock.patch("renderonline.renderapi.administration.shipped", shipped if reads_scenes else lambda: plain):
        async with _renderapi(directory, **flags) as running:
            yield running


@contextlib.asynccontextmanager
async def _renderapi(directory: Path, **flags: Any) -> AsyncIterator[Running]:
    settings = load_settings(flags={"port": 0, "data_directory": directory, **flags}, environment={})
    server = asyncio.create_task(serve(settings, WEB_PAGE))
    ready = directory / READY_FILE
    try:
        while not ready.exists():
            if server.done():
                await server
            await asyncio.sleep(0.005)
        url = json.loads(ready.read_text())["url"]
        login = first_login(directory)
        who = {"email": login["email"], "token": login["token"]}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as http:
            yield Running(url, settings, who, http)
    finally:
        server.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await server


async def wait_until(condition: Callable[[], Awaitable[T]], timeout_s: float = 20.0) -> T:
    """Ask again and again until the answer is true; the answer."""
    async with asyncio.timeout(timeout_s):
        while not (found := await condition()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return found
