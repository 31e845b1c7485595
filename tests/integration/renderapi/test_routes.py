"""Who may call what: one line a route, compared with the application's own routing table and tried by everybody."""

import asyncio
import contextlib
import hashlib
import itertools
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from websockets.asyncio.client import connect

from renderonline.protocol.link import LINK_PATH, FromRenderAPI, Hello, Refused, Result, Started, decode, encode
from renderonline.renderapi import auth
from renderonline.renderapi.main import create_app
from renderonline.renderapi.routes import pages
from renderonline.renderapi.settings import load_settings
from renderonline.rnoclient import WEB_PAGE
from renderonline.serving.web import wheel_name
from tests.faults.engine import DEFINITION
from tests.support.held_attempts import Held, held_attempt
from tests.support.renderapi import COMMAND_ENGINE, Running, renderapi

# Callers without an account. "Elsewhere" is a page of another origin, in a browser in which the artist is logged in.
NOBODY, WRONG, EMPTY, NO_TOKEN, NO_EMAIL, ELSEWHERE, LURED, OTHER_MACHINE = UNKNOWN = (
    "nobody",
    "a wrong token",
    "an empty token",
    "an e-mail without a token",
    "a token without an e-mail",
    "a page elsewhere",
    "a page elsewhere with our header",
    "the machine of another attempt",
)
# Callers with an account: the objects below belong to the artist. The page is the artist's, logged in.
STRANGER, ARTIST, PAGE, OPERATOR, ADMIN = KNOWN = ("another artist", "the artist", "the page", "operator", "admin")
MACHINE = "the attempt's machine"
CALLERS: Final = (*UNKNOWN, *KNOWN, MACHINE)

ANYBODY: Final = frozenset(CALLERS)
ACCOUNTS: Final = frozenset(KNOWN)
OWNER: Final = frozenset({ARTIST, PAGE, OPERATOR, ADMIN})
ONLY_OWNER: Final = frozenset({ARTIST, PAGE})
SELF: Final = frozenset({ARTIST, PAGE, ADMIN})
OPERATORS: Final = frozenset({OPERATOR, ADMIN})
ADMINS: Final = frozenset({ADMIN})
ONLY_PAGE: Final = frozenset({PAGE})
V1_ACCOUNTS: Final = ACCOUNTS - {PAGE}
V1_OWNER: Final = frozenset({ARTIST})
MACHINES: Final = frozenset({MACHINE})
BY_SECRET: Final[frozenset[str]] = frozenset()
"""A machine's own secret: `test_link_opens_for_the_secret_of_a_machine_only`."""

SCENE_FORM: Final = (
    '--B\r\nContent-Disposition: form-data; name="request"\r\n\r\n{request}\r\n'
    '--B\r\nContent-Disposition: form-data; name="file"; filename="a.blend"\r\n\r\nscene\r\n--B--\r\n'
)
FORM: Final = {"Content-Type": "multipart/form-data; boundary=B"}
NAMES: Final = {
    "v2/attempts/{attempt_id}/inputs/{name}": "a.scene",
    "/web/{digest}/{name}": "page.css",
    "/install/{name}": wheel_name(),
}
DIGEST: Final = hashlib.blake2b(b"x", digest_size=32).hexdigest()
WRITER: Final = COMMAND_ENGINE.replace("integer", "natural")  # as the other engine has it
A_DEFINITION: Final = WRITER.replace('"writer"', '"writer{number}"')
A_TASK: Final = {"json": {"TaskId": "{task_id}"}}


def form(request: str) -> dict[str, Any]:
    return {"data": SCENE_FORM.replace("{request}", request), "headers": FORM}


# Each route, who is let in, and what is sent. {names} are filled in, in bodies as well.
EXPECTED: Final[dict[str, tuple[frozenset[str], dict[str, Any]]]] = {
    # What everybody may know
    "GET /": (ANYBODY, {}),
    "GET /login": (ANYBODY, {}),
    "GET /submit": (ANYBODY, {}),
    "GET /farm": (ANYBODY, {}),
    "GET /admin": (ANYBODY, {}),
    "GET /admin/{part}": (ANYBODY, {}),
    "GET /tasks/{task_id}": (ANYBODY, {}),
    "GET /web/{digest}/{name}": (ANYBODY, {}),
    "GET /install/{name}": (ANYBODY, {}),  # the program, without anything of this farm
    "GET /healthz": (ANYBODY, {}),
    "GET /docs": (ANYBODY, {}),
    "GET v2/docs": (ANYBODY, {}),
    "GET v2/openapi.json": (ANYBODY, {}),
    "GET /metrics": (ANYBODY, {}),  # on this computer; `test_figures_are_for_this_computer_and_operators`
    # Machines
    "POST v2/machines/enroll": (ANYBODY, {"json": {"code": "{code}", "name": "new"}}),  # who has a code
    "WS v2/link": (BY_SECRET, {}),
    "GET v2/attempts/{attempt_id}/inputs": (MACHINES, {}),
    "GET v2/attempts/{attempt_id}/inputs/{name}": (MACHINES, {}),
    "PUT v2/attempts/{attempt_id}/outputs/{name}": (MACHINES, {"data": b"x", "headers": {"X-Digest": DIGEST}}),
    "PUT v2/attempts/{attempt_id}/previews/{name}": (MACHINES, {"data": b"\xff\xd8\xff"}),
    # Every account
    "GET v2/me": (ACCOUNTS, {}),
    "GET v2/events": (ACCOUNTS, {}),
    "GET v2/engines": (ACCOUNTS, {}),
    "GET v2/engines/{engine_id}": (ACCOUNTS, {}),
    "GET v2/argtypes": (ACCOUNTS, {}),
    "GET v2/tasks": (ACCOUNTS, {}),
    "POST v2/tasks": (ACCOUNTS, form('{"engine": "blender"}')),
    "POST v2/uploads": (ACCOUNTS, {"json": {"files": [{"name": "a.blend", "size": 9}]}}),
    "GET v1/info": (V1_ACCOUNTS, {}),
    "POST v1/enqueue": (V1_ACCOUNTS, form('{"EngineId": "{engine_id}", "Arguments": []}')),
    # One's own uploads
    "GET v2/uploads/{upload_id}": (ONLY_OWNER, {}),
    "GET v2/uploads/{upload_id}/facts": (ONLY_OWNER, {"params": {"name": "a.blend"}}),
    "PATCH v2/uploads/{upload_id}/files/{index}": (ONLY_OWNER, {"data": b"", "headers": {"Upload-Offset": "0"}}),
    "PUT v2/uploads/{upload_id}/pack": (ONLY_OWNER, {"data": b""}),
    "DELETE v2/uploads/{upload_id}": (ONLY_OWNER, {}),
    # One's own tasks, and everybody's for operators
    "GET v2/tasks/{task_id}": (OWNER, {}),
    "GET v2/tasks/{task_id}/chunks": (OWNER, {}),
    "GET v2/tasks/{task_id}/attempts": (OWNER, {}),
    "GET v2/tasks/{task_id}/results": (OWNER, {}),
    "GET v2/tasks/{task_id}/explain": (OWNER, {}),
    "GET v2/tasks/{task_id}/download": (OWNER, {}),
    "GET v2/tasks/{task_id}/results/{name}": (OWNER, {}),
    "GET v2/tasks/{task_id}/previews/{name}": (OWNER, {}),
    "GET v2/attempts/{attempt_id}/log": (OWNER, {}),
    "PATCH v2/tasks/{task_id}": (OWNER, {"json": {"priority": 51}}),
    "POST v2/tasks/{task_id}/accept": (OPERATORS, {}),
    "POST v2/tasks/{task_id}/film": (OWNER, {}),
    "POST v2/tasks/{task_id}/pause": (OWNER, {}),
    "POST v2/tasks/{task_id}/resume": (OWNER, {}),
    "POST v2/tasks/{task_id}/cancel": (OWNER, {}),
    "POST v2/tasks/{task_id}/retry": (OWNER, {}),
    "POST v2/tasks/{task_id}/requeue": (OWNER, {}),
    "DELETE v2/tasks/{task_id}": (OWNER, {}),
    "POST v1/dequeue": (V1_OWNER, A_TASK),
    "POST v1/download": (V1_OWNER, A_TASK),
    "POST v1/delete": (V1_OWNER, A_TASK),
    # Machines and what they tried: operators
    "GET v2/attempts": (OPERATORS, {}),
    "GET v2/machines": (OPERATORS, {}),
    "POST v2/machines": (OPERATORS, {"json": {"ip_address": "127.0.0.{number}", "port": 9}}),
    "PATCH v2/machines/{machine_id}": (OPERATORS, {"json": {"tags": ["old"]}}),
    "DELETE v2/machines/{machine_id}": (OPERATORS, {}),
    "POST v2/machines/{machine_id}/restart": (OPERATORS, {}),
    "POST v2/machines/invite": (OPERATORS, {"json": {}}),
    # Engines run programs on every machine, accounts open everything: administrators
    "POST v2/engines": (ADMINS, {"json": {"definition": A_DEFINITION}}),
    "PATCH v2/engines/{engine_id}": (ADMINS, {"json": {"is_enabled": True}}),
    "DELETE v2/engines/{engine_id}": (ADMINS, {}),
    "PUT v2/argtypes/{argtype_id}": (ADMINS, {"json": {"type": "word"}}),
    "DELETE v2/argtypes/{argtype_id}": (ADMINS, {}),
    "GET v2/users": (ADMINS, {}),
    "POST v2/users": (ADMINS, {"json": {"email": "n{number}@example.org"}}),
    "PATCH v2/users/{user_id}": (ADMINS, {"json": {"first_name": "Ada"}}),
    "GET v2/subscriptions": (ADMINS, {}),
    "POST v2/subscriptions": (ADMINS, {"json": {"name": "more", "queue_limit": 1}}),
    "PATCH v2/subscriptions/{subscription_id}": (ADMINS, {"json": {"share": 2}}),
    # One's own account, and its sessions
    "GET v2/users/{user_id}": (SELF, {}),
    "POST v2/session/tickets": (ACCOUNTS, {"json": {"path": "/renderapi/v2/me"}}),
    "POST v2/session": (ONLY_PAGE, {"json": {"email": "artist@example.org", "token": "{token}"}}),
    "GET v2/session": (ANYBODY, {}),  # but null to others
    "DELETE v2/session": (ANYBODY, {}),
    "POST v2/users/{user_id}/token": (SELF, {}),
    "POST v2/users/{user_id}/logout": (ADMINS, {}),  # the last: it takes the artist's token
}


@dataclass
class World:
    """A farm with something of everything. `token`: the artist's; `cookie`: of their page."""

    api: Running
    mine: Held
    other: Held
    headers: dict[str, Mapping[str, str]]
    objects: dict[str, Any]
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    async def log_in(self, token: str) -> None:
        """The artist has this token now; so has their page, and the browser in which it is."""
        artist = {"email": "artist@example.org", "token": token}
        page = {"X-RenderOnline": "1", "Origin": self.api.url}
        reply = await self.api.call("POST", "/session", artist, who={}, headers=page)
        cookie = {"Cookie": reply.headers["Set-Cookie"].partition(";")[0]}
        elsewhere = {**cookie, "Origin": "https://elsewhere.example"}
        self.objects["token"] = token
        self.headers |= {
            NO_EMAIL: {"token": token},
            ARTIST: artist,
            PAGE: {**cookie, **page},
            ELSEWHERE: elsewhere,
            LURED: {**elsewhere, "Sec-Fetch-Site": "cross-site", "X-RenderOnline": "1"},
        }

    async def call(self, route: str, caller: str, **objects: Any) -> tuple[int, bytes]:
        """Status and the beginning of the answer; an event stream has no end."""
        method, path = route.split()
        known = {**self.objects, "number": next(self.numbers), "name": NAMES.get(path, "frame_0001.png"), **objects}
        sent = filled(EXPECTED[route.replace("HEAD", "GET")][1] if route in ROUTES else {}, known)
        sent["headers"] = {**sent.get("headers", {}), **self.headers[caller]}
        url = self.api.url + filled(path if path.startswith("/") else f"/renderapi/{path}", known)
        async with asyncio.timeout(20), self.api.http.request(method, url, allow_redirects=False, **sent) as answer:
            return answer.status, await answer.content.readany()

    async def fresh(self, path: str) -> dict[str, Any]:
        """Something of the artist's, or of the farm, that may be deleted."""
        number = next(self.numbers)
        if "task" in path or path == "v1/delete":
            return {"task_id": (await self.api.new_task(who=self.headers[ARTIST]))["task_id"]}
        made: dict[str, tuple[str, str, dict[str, Any]]] = {
            "upload_id": ("POST", "/uploads", {"files": [{"name": "a.blend", "size": 9}]}),
            "engine_id": ("POST", "/engines", {"definition": filled(A_DEFINITION, {"number": number})}),
            "argtype_id": ("PUT", f"/argtypes/fresh{number}", {"type": "word"}),
            "machine_id": ("POST", "/machines", {"ip_address": f"127.0.1.{number}", "port": 9}),
        }
        for key, (method, address, body) in made.items():
            if key in path:
                who = self.headers[ARTIST if key == "upload_id" else ADMIN]
                return {key: (await self.api.call(method, address, body, who=who)).json()[key]}
        return {}


def filled(value: Any, known: Mapping[str, Any]) -> Any:
    """The same with every {name} replaced."""
    if isinstance(value, str):
        for name, one in known.items():
            value = value.replace(f"{{{name}}}", str(one))
        return value
    if isinstance(value, list):
        return [filled(one, known) for one in value]
    return {key: filled(one, known) for key, one in value.items()} if isinstance(value, dict) else value


@pytest.fixture(name="world")
async def _world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(auth, "LONGEST_S", 0.0)  # hundreds of wrong tokens are sent here
    async with contextlib.AsyncExitStack() as stack:
        api = await stack.enter_async_context(renderapi(tmp_path / "data"))
        plan = (await api.call("GET", "/subscriptions")).json()["items"][0]["subscription_id"]
        await api.call("PATCH", f"/subscriptions/{plan}", {"queue_limit": 1000})
        roles = {ARTIST: "artist", STRANGER: "artist", OPERATOR: "operator"}
        who = {
            one: await api.new_user(f"{one.replace(' ', '.').removeprefix('the.')}@example.org", role)
            for one, role in roles.items()
        }
        mine = await stack.enter_async_context(held_attempt(api, DEFINITION, ("a.scene", b"x"), who[ARTIST]))
        other = await stack.enter_async_context(held_attempt(api, WRITER, ("a.txt", b"x"), who[STRANGER]))
        attempt = (mine.assign.attempt, mine.assign.token)
        assert (await mine.send("frame_0001.png", b"x")).status == 204
        await mine.report(Started(1, *attempt, 1, 1), Result(2, *attempt, 1, "frame_0001.png", 1, DIGEST, 0))
        assert (await mine.call("PUT", "previews/frame_0001.png", data=b"\xff\xd8\xff")).status == 204
        announced = {"files": [{"name": "a.blend", "size": 2}]}
        upload_id = (await api.call("POST", "/uploads", announced, who=who[ARTIST])).json()["upload_id"]
        begin = {"data": b"no", "headers": {"Upload-Offset": "0"}}
        assert (await api.call("PATCH", f"/uploads/{upload_id}/files/0", who=who[ARTIST], **begin)).status == 204
        users = {one["email"]: one["user_id"] for one in (await api.call("GET", "/users")).json()["items"]}
        headers = {
            **who,
            NOBODY: {},
            WRONG: {**who[ARTIST], "token": "wrong", "Authorization": "Attempt wrong"},
            NO_TOKEN: {"email": who[ARTIST]["email"]},
            EMPTY: {**who[ARTIST], "token": "", "Authorization": "Attempt "},
            OTHER_MACHINE: other.headers,
            MACHINE: mine.headers,
            ADMIN: api.who,
        }
        objects = {
            "task_id": mine.assign.task,
            "attempt_id": mine.assign.attempt,
            "machine_id": mine.machine_id,
            "upload_id": upload_id,
            "user_id": users["artist@example.org"],
            "engine_id": (await api.call("GET", "/engines")).json()["items"][0]["engine_id"],
            "argtype_id": "first",
            "subscription_id": plan,
            "code": (await api.call("POST", "/machines/invite", {"uses": 100})).json()["code"],
            "index": 0,
            "part": "users",
            "digest": "-",
        }
        world = World(api, mine, other, headers, objects)
        await world.log_in(who[ARTIST]["token"])
        yield world


def application(directory: Path) -> FastAPI:
    return create_app(load_settings(flags={"data_directory": directory}, environment={}), WEB_PAGE)


def table(app: FastAPI) -> set[str]:
    """Every route of the application and its method, as `EXPECTED` names them."""
    found = set()
    for context in iter_route_contexts(app.routes):
        path = str(context.path_format).removeprefix("/renderapi/")
        found |= {f"{method} {path}" for method in context.methods or ("WS",)}
    return found


ROUTES: Final = table(application(Path()))


def test_every_route_has_an_expectation_and_every_expectation_a_route() -> None:
    plain = {route for route in ROUTES if not route.startswith("HEAD")}
    assert plain == set(EXPECTED)
    assert {route.replace("HEAD", "GET") for route in ROUTES - plain} <= plain


async def test_everybody_may_call_what_is_expected_and_nothing_else(world: World) -> None:
    wrong = []
    for route in EXPECTED:
        head = route.replace("GET", "HEAD")
        for one in (head, route) if head in ROUTES and head != route else (route,):
            wrong += [f"{one}: {told}" async for told in differences(world, one)]
    assert not wrong, "\n".join(wrong)


def refusals(path: str, caller: str) -> tuple[int, ...]:
    """The statuses that say no to this caller."""
    if "v2/attempts/{attempt_id}/" in path and not path.endswith("log"):
        return (404,)  # no such attempt, or its token is another one
    if caller not in KNOWN or path == "v2/session" or (caller == PAGE and path.startswith("v1/")):
        return (401,)
    return (400,) if path.startswith("v1/") else (403, 404)  # not their role, or not their object


async def differences(world: World, route: str) -> AsyncIterator[str]:
    """What is not as expected of a route: who is refused comes first, together; who is let in may change something."""
    method, path = route.split()
    let_in = EXPECTED[route.replace("HEAD", "GET")][0]
    if method == "WS":
        return
    refused = [caller for caller in CALLERS if caller not in let_in]
    answers = await asyncio.gather(*(world.call(route, one) for one in refused))
    for caller, (status, _) in zip(refused, answers, strict=True):
        if status not in refusals(path, caller):
            yield f"{caller} is not refused: {status}"
    for caller in (one for one in CALLERS if one in let_in):
        objects = await world.fresh(path) if method == "DELETE" or path == "v1/delete" else {}
        status, body = await world.call(route, caller, **objects)
        if status >= 500 or status in (401, 403, 404) or b"not found for" in body or (method == "HEAD" and body):
            yield f"{caller} is not let in: {status} {body[:200]!r}"
        if route == "POST v2/users/{user_id}/token" and status == 200:
            await world.log_in(json.loads(body)["token"])
        if route == "DELETE v2/session" and caller == PAGE:
            await world.log_in(world.objects["token"])


async def test_session_is_shown_to_its_own_page_only_and_ended_by_nobody_else(world: World) -> None:
    for caller in CALLERS:
        if caller != PAGE:
            assert json.loads((await world.call("GET v2/session", caller))[1]) == {"me": None}
            await world.call("DELETE v2/session", caller)
    assert json.loads((await world.call("GET v2/session", PAGE))[1])["me"]["email"] == "artist@example.org"


async def test_no_other_method_of_any_address_does_anything(world: World) -> None:
    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
    for path in sorted({route.split()[1] for route in ROUTES}):
        odd = [f"{method} {path}" for method in methods if f"{method} {path}" not in ROUTES]
        asked = list(itertools.product(odd, (NOBODY, ELSEWHERE, ADMIN)))
        answers = await asyncio.gather(*(world.call(route, caller) for route, caller in asked))
        for (route, caller), (status, _) in zip(asked, answers, strict=True):
            # An address of one route may fit another one, whose own rules hold: 401 without an account, 400 with one.
            assert status in (404, 405, 400 if caller == ADMIN else 401), f"{route} by {caller}: {status}"


async def test_figures_are_for_this_computer_and_operators(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "is_loopback", lambda _host: False)
    for caller in CALLERS:
        status, _ = await world.call("GET /metrics", caller)
        assert status == (200 if caller in OPERATORS else 403 if caller in KNOWN else 401)


async def test_preflight_allows_headers_and_never_a_cookie(world: World) -> None:
    headers = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "DELETE"}
    for path in ("/me", "/tasks/1", "/machines/enroll"):
        reply = await world.api.call("OPTIONS", path, who={}, headers=headers)
        assert reply.headers["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in reply.headers


async def test_link_opens_for_the_secret_of_a_machine_only(world: World) -> None:
    url = world.api.url.replace("http", "ws") + LINK_PATH
    for caller, secret in itertools.product(CALLERS, ("", "wrong", world.mine.assign.token)):
        about = (world.mine.machine_id, secret, "instance", "boot", "0", "far", 1)
        async with connect(url, compression=None, additional_headers=world.headers[caller]) as link:
            await link.send(encode(Hello(1, *about)))
            answer = decode(await link.recv(), FromRenderAPI)
            assert isinstance(answer, Refused)
            assert answer.code == "not_authenticated"


async def test_an_open_address_opens_no_other_route_that_fits_it(world: World) -> None:
    for method, path in (
        ("PATCH", "/machines/enroll"),
        ("DELETE", "/machines/enroll"),
        ("GET", "/attempts/1/log"),
        ("POST", "/machines/1/restart"),
    ):
        reply = await world.api.call(method, path, {}, who={})
        assert (reply.status, reply.json()["code"]) == (401, "not_authenticated")
