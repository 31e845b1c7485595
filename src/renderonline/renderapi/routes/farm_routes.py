"""`/renderapi/v2`: users, subscriptions, engines, argument types and machines, for those who look after the farm."""

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from fastapi import Path
from pydantic import BaseModel, Field
from starlette.requests import Request

from renderonline.farm.accounts import Permission, Role
from renderonline.farm.arguments import ArgType
from renderonline.farm.errors import Conflict
from renderonline.farm.machines import MOST_SLOTS
from renderonline.renderapi import administration, task_views
from renderonline.renderapi.administration import Resource
from renderonline.renderapi.auth import Principal
from renderonline.renderapi.services import (
    LARGEST_ID,
    Access,
    Cursor,
    Id,
    Json,
    Limit,
    Needs,
    Place,
    PrincipalDep,
    Router,
    Sent,
    Services,
    ServicesDep,
)
from renderonline.serving.admission import client_of, is_believed, is_forwarded
from renderonline.serving.web import reach, wheel_name

router = Router()

USERS: Final = Permission.USERS
ENGINES: Final = Permission.ENGINES
MACHINES: Final = Permission.MACHINES
EVERYBODY: Final = Access.ACCOUNT
Name = Annotated[str, Field(max_length=50)]
Named = Annotated[str, Field(min_length=1, max_length=100)]
Slots = Annotated[int, Field(ge=0, le=MOST_SLOTS, description="Attempts at once; 0: four, or its cores if fewer.")]
ArgTypeId = Annotated[str, Path(alias="argtype_id", pattern="^[A-Za-z0-9_]{1,50}$")]


class UserChange(Sent):
    email: str = Field("", min_length=3, max_length=255)
    first_name: Name = ""
    last_name: Name = ""
    subscription_id: int | None = Field(None, ge=0, le=2**31 - 1)
    role: Role = Field(Role.ARTIST, strict=False)
    is_active: bool = True


class UserBody(UserChange):
    email: str = Field(min_length=3, max_length=255)


class SubscriptionChange(Sent):
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


class EngineChange(Sent):
    definition: str = Field("", max_length=64 * 1024, description="The TOML of an engine's definition.")
    download_path: Place = ""
    is_enabled: bool = True


class EngineBody(Sent):
    definition: str = Field(max_length=64 * 1024, description="The TOML of an engine's definition.")
    download_path: Place | None = None


class NewArgType(Sent):
    type: Annotated[str, Field(max_length=20)]
    regex: Place | None = None


class NewMachine(Sent):
    ip_address: Annotated[str, Field(min_length=1, max_length=45)]
    port: int = Field(ge=1, le=65535)


class MachineChange(Sent):
    wish: Literal["active", "draining", "disabled"] = "active"
    name: Named = "-"
    wish_reason: str = Field("", max_length=255, alias="reason")
    tags: list[Name] = Field([], max_length=16)
    pool: Name = ""
    hours: str = Field("", max_length=255, description="Such as Mon-Fri 18:00-08:00, Sat, Sun; empty: always.")
    slots_allowed: Slots = 0


class Invitation(Sent):
    uses: int = Field(1, ge=1, le=10_000)
    hours: float = Field(24, gt=0, le=8784, strict=False)
    slots: Slots = 0


class Enrolment(Sent):
    code: Named
    name: Named


def _engine(_services: Services, row: Any) -> Json:
    return task_views.engine(row)


def _for(principal: Principal, engine: Json) -> Json:
    """Where the farm keeps its files is no artist's business."""
    if "download_path" in engine and not principal.may(Permission.MACHINES):
        return engine | {"download_path": ""}
    return engine


def _machine(services: Services, row: Any) -> Json:
    return task_views.machine(row, services.farm.machines)


def _add_routes(
    kind: Resource,
    name: str,
    needs: Permission,
    *,
    change: type[BaseModel] | None = None,
    show: Callable[[Services, Any], Json] = lambda _services, row: task_views.shown_row(row),
    look: Needs | None = None,
) -> None:
    """Add the routes that all resources have: list (allowed to `look`), change, remove."""
    shape = {"argtypes": "ArgType"}.get(name, name.capitalize().removesuffix("s"))
    alias = f"{shape.lower()}_id"
    row_key = ArgTypeId if shape == "ArgType" else Annotated[int, Path(alias=alias, ge=0, le=LARGEST_ID)]

    async def rows(principal: PrincipalDep, services: ServicesDep) -> Json:
        found = [show(services, row) for row in await services.administration.rows(kind)]
        return {"items": [_for(principal, one) for one in found], "next": None}

    rows.__name__ = f"list_{name}"
    router.call("GET", f"/{name}", f"{shape}s", needs=look or needs, description=f"All {name}.", tags=[name])(rows)

    if change is not None:

        async def changed(services: ServicesDep, key: row_key, body: change) -> Json:  # type: ignore[valid-type]
            changes = body.model_dump(exclude_unset=True)  # type: ignore[attr-defined]
            return show(services, await services.administration.change(kind, key, changes))

        changed.__name__ = f"change_{name}"
        path = f"/{name}/{{{alias}}}"
        router.call("PATCH", path, shape, needs=needs, description="Change some fields.", tags=[name])(changed)

    if kind.remove is not None:

        async def removed(services: ServicesDep, key: row_key) -> None:  # type: ignore[valid-type]
            await services.administration.remove(kind, key)

        removed.__name__ = f"remove_{name}"
        description = "Remove it; `conflict` while it is in use."
        router.call("DELETE", f"/{name}/{{{alias}}}", needs=needs, description=description, tags=[name])(removed)


_add_routes(administration.USERS, "users", USERS, change=UserChange)
_add_routes(administration.SUBSCRIPTIONS, "subscriptions", USERS, change=SubscriptionChange)
_add_routes(administration.ENGINES, "engines", ENGINES, change=EngineChange, show=_engine, look=EVERYBODY)
_add_routes(administration.ARGTYPES, "argtypes", ENGINES, look=EVERYBODY)
_add_routes(administration.MACHINES, "machines", MACHINES, change=MachineChange, show=_machine)


@router.call("POST", "/users", "UserWithToken", 201, needs=USERS, tags=["users"])
async def add_user(services: ServicesDep, body: UserBody) -> Json:
    """A new account. Its token is in this answer and nowhere else."""
    user, token = await services.administration.add_user(body.model_dump(exclude_unset=True))
    return task_views.shown_row(user, token=token)


@router.call("GET", "/users/{user_id}", "User", needs=EVERYBODY, tags=["users"])
async def get_user(principal: PrincipalDep, services: ServicesDep, user_id: Id) -> Json:
    """One account; everybody may see their own."""
    if user_id != principal.user_id:
        principal.require(USERS)
    return task_views.shown_row(await services.administration.row(administration.USERS, user_id))


@router.call("POST", "/users/{user_id}/token", "Token", needs=EVERYBODY, tags=["users"])
async def new_token(principal: PrincipalDep, services: ServicesDep, user_id: Id) -> Json:
    """Another token; the old one ends. Everybody may renew their own."""
    if user_id != principal.user_id:
        principal.require(USERS)
    return {"token": await services.administration.new_token(user_id)}


@router.call("POST", "/users/{user_id}/logout", needs=USERS, tags=["users"])
async def log_out_everywhere(principal: PrincipalDep, services: ServicesDep, user_id: Id) -> None:
    """End the account's token, its sessions and its event streams, at once. It can do nothing until an administrator
    makes a new token. For one's own account renew the token instead."""
    if user_id == principal.user_id:
        raise Conflict("This is your own account, and nobody could let you in again. Make a new token instead.")
    await services.administration.new_token(user_id)  # which nobody knows


@router.call("POST", "/subscriptions", "Subscription", 201, needs=USERS, tags=["subscriptions"])
async def add_subscription(services: ServicesDep, body: NewSubscription) -> Json:
    """A new subscription: how many tasks may wait or run at once, and the share inside a priority class."""
    return task_views.shown_row(await services.administration.add_subscription(body.model_dump()))


@router.call("POST", "/engines", "Engine", 201, needs=ENGINES, tags=["engines"])
async def add_engine(services: ServicesDep, body: EngineBody) -> Json:
    """A new engine from the TOML of its definition."""
    return task_views.engine(await services.administration.add_engine(body.definition, body.download_path))


@router.call("GET", "/engines/{engine_id}", "Engine", needs=EVERYBODY, tags=["engines"])
async def get_engine(principal: PrincipalDep, services: ServicesDep, engine_id: Id) -> Json:
    """One engine."""
    return _for(principal, task_views.engine(await services.administration.row(administration.ENGINES, engine_id)))


@router.call("PUT", "/argtypes/{argtype_id}", "ArgType", needs=ENGINES, tags=["argtypes"])
async def put_argtype(services: ServicesDep, argtype_id: ArgTypeId, body: NewArgType) -> Json:
    """Make or change an argument type."""
    wanted = ArgType(argtype_id, body.type, body.regex or "")
    return task_views.shown_row(await services.administration.put_argtype(wanted))


@router.call("GET", "/attempts", "Attempts", needs=MACHINES, tags=["machines"])
async def list_attempts(services: ServicesDep, limit: Limit = 100, cursor: Cursor = None) -> Json:
    """Everything that the machines tried, newest first."""
    return await services.reading.attempts(limit, cursor)


@router.call("POST", "/machines", "Machine", 201, needs=MACHINES, tags=["machines"])
async def add_machine(services: ServicesDep, body: NewMachine) -> Json:
    """A machine that speaks v1, by its address. Linked machines join by themselves: `invite`."""
    return _machine(services, await services.administration.add_machine(body.ip_address, body.port))


@router.call("POST", "/machines/{machine_id}/restart", needs=MACHINES, tags=["machines"])
async def restart_machine(services: ServicesDep, machine_id: Id) -> None:
    """A linked machine finishes what it runs, then its program ends; what keeps it alive starts it again."""
    services.farm.links.restart(machine_id)


@router.call("POST", "/machines/invite", "Invited", 201, needs=MACHINES, tags=["machines"])
async def invite(request: Request, principal: PrincipalDep, services: ServicesDep, body: Invitation) -> Json:
    """A code with which machines join, for a while, and the line to type there. `first`: what must be changed before
    that line works on another computer, null for nothing; `install`: where pip finds this version of the program."""
    code = await services.administration.invite(body.uses, body.hours, body.slots, principal.user_id)
    settings, asked = services.settings, str(request.base_url)
    is_doubtful = is_forwarded(request) and not is_believed(request)
    url, first = reach(asked, public_url=settings.public_url, listens=settings.host, is_doubtful=is_doubtful)
    command = f"renderonline node --join {url} --code {code.code}"
    if body.slots:
        command += f" --slots {body.slots}"
    is_ours = not is_forwarded(request) and url.startswith("https:")  # a proxy shows a certificate of its own
    if services.fingerprint and is_ours and (not settings.public_url or url == asked.rstrip("/")):
        command += f" --fingerprint {services.fingerprint}"
    # With a certificate of our own, pip would not believe us.
    install = f"{url}/install/{wheel_name()}" if wheel_name() and "--fingerprint" not in command else None
    return task_views.shown_row(code, command=command, first=first or None, install=install)


@router.call("POST", "/machines/enroll", "Enrolled", 201, needs=Access.OPEN, tags=["machines"])
async def enroll(request: Request, services: ServicesDep, body: Enrolment) -> Json:
    """A machine joins with a code and gets a secret of its own."""
    machine_id, secret = await services.administration.enroll(client_of(request), body.code, body.name)
    return {"machine_id": machine_id, "secret": secret}
