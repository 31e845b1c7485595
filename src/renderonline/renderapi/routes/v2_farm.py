"""`/renderapi/v2`: users, subscriptions, engines, argument types and machines, for those who look after the farm."""

from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import Path
from pydantic import BaseModel
from starlette.requests import Request

from renderonline.farm.accounts import Permission
from renderonline.farm.arguments import ArgType
from renderonline.farm.errors import Conflict
from renderonline.renderapi import administration, views
from renderonline.renderapi.administration import Kept
from renderonline.renderapi.auth import Principal
from renderonline.renderapi.routes import models
from renderonline.renderapi.routes.answers import Caller, Center, Json, Part
from renderonline.renderapi.routes.guard import Door, Needs
from renderonline.renderapi.routes.models import LARGEST, Cursor, Id, Limit
from renderonline.renderapi.services import Services
from renderonline.serving.proxies import client_of, is_believed, is_forwarded
from renderonline.serving.reaching import reach
from renderonline.serving.wheel import wheel_name

router = Part()

USERS: Final = Permission.USERS
ENGINES: Final = Permission.ENGINES
MACHINES: Final = Permission.MACHINES
EVERYBODY: Final = Door.ACCOUNT
ArgTypeId = Annotated[str, Path(alias="argtype_id", pattern="^[A-Za-z0-9_]{1,50}$")]


def _engine(_center: Services, row: Any) -> Json:
    return views.engine(row)


def _for(caller: Principal, engine: Json) -> Json:
    """Where the farm keeps its files is no artist's business."""
    if "download_path" in engine and not caller.may(Permission.MACHINES):
        return engine | {"download_path": ""}
    return engine


def _machine(center: Services, row: Any) -> Json:
    return views.machine(row, center.dispatcher.shared.machines)


def _keep(
    kind: Kept,
    name: str,
    needs: Permission,
    *,
    change: type[BaseModel] | None = None,
    show: Callable[[Services, Any], Json] = lambda _center, row: views.shown(row),
    look: Needs | None = None,
) -> None:
    """The calls that all kinds have alike: list (who may `look`), change, remove."""
    shape = {"argtypes": "ArgType"}.get(name, name.capitalize().removesuffix("s"))
    alias = f"{shape.lower()}_id"
    row_key = ArgTypeId if shape == "ArgType" else Annotated[int, Path(alias=alias, ge=0, le=LARGEST)]

    async def rows(caller: Caller, center: Center) -> Json:
        found = [show(center, row) for row in await center.administration.rows(kind)]
        return {"items": [_for(caller, one) for one in found], "next": None}

    rows.__name__ = f"list_{name}"
    router.call("GET", f"/{name}", f"{shape}s", needs=look or needs, description=f"All {name}.", tags=[name])(rows)

    if change is not None:

        async def changed(center: Center, key: row_key, body: change) -> Json:  # type: ignore[valid-type]
            changes = body.model_dump(exclude_unset=True)  # type: ignore[attr-defined]
            return show(center, await center.administration.change(kind, key, changes))

        changed.__name__ = f"change_{name}"
        path = f"/{name}/{{{alias}}}"
        router.call("PATCH", path, shape, needs=needs, description="Change some fields.", tags=[name])(changed)

    if kind.remove is not None:

        async def removed(center: Center, key: row_key) -> None:  # type: ignore[valid-type]
            await center.administration.remove(kind, key)

        removed.__name__ = f"remove_{name}"
        told = "Remove it; `conflict` while it is in use."
        router.call("DELETE", f"/{name}/{{{alias}}}", needs=needs, description=told, tags=[name])(removed)


_keep(administration.USERS, "users", USERS, change=models.UserChange)
_keep(administration.SUBSCRIPTIONS, "subscriptions", USERS, change=models.SubscriptionChange)
_keep(administration.ENGINES, "engines", ENGINES, change=models.EngineChange, show=_engine, look=EVERYBODY)
_keep(administration.ARGTYPES, "argtypes", ENGINES, look=EVERYBODY)
_keep(administration.MACHINES, "machines", MACHINES, change=models.MachineChange, show=_machine)


@router.call("POST", "/users", "UserWithToken", 201, needs=USERS, tags=["users"])
async def add_user(center: Center, body: models.NewUser) -> Json:
    """A new account. Its token is in this answer and nowhere else."""
    user, token = await center.administration.add_user(body.model_dump(exclude_unset=True))
    return views.shown(user, token=token)


@router.call("GET", "/users/{user_id}", "User", needs=EVERYBODY, tags=["users"])
async def get_user(caller: Caller, center: Center, user_id: Id) -> Json:
    """One account; everybody may see their own."""
    if user_id != caller.user_id:
        caller.require(USERS)
    return views.shown(await center.administration.row(administration.USERS, user_id))


@router.call("POST", "/users/{user_id}/token", "Token", needs=EVERYBODY, tags=["users"])
async def new_token(caller: Caller, center: Center, user_id: Id) -> Json:
    """Another token; the old one ends. Everybody may renew their own."""
    if user_id != caller.user_id:
        caller.require(USERS)
    return {"token": await center.administration.new_token(user_id)}


@router.call("POST", "/users/{user_id}/logout", needs=USERS, tags=["users"])
async def log_out_everywhere(caller: Caller, center: Center, user_id: Id) -> None:
    """End the account's token, its sessions and its event streams, at once. It can do nothing until an administrator
    makes a new token. For one's own account renew the token instead."""
    if user_id == caller.user_id:
        raise Conflict("This is your own account, and nobody could let you in again. Make a new token instead.")
    await center.administration.log_out(user_id)


@router.call("POST", "/subscriptions", "Subscription", 201, needs=USERS, tags=["subscriptions"])
async def add_subscription(center: Center, body: models.NewSubscription) -> Json:
    """A new subscription: how many tasks may wait or run at once, and the share inside a priority class."""
    return views.shown(await center.administration.add_subscription(body.model_dump()))


@router.call("POST", "/engines", "Engine", 201, needs=ENGINES, tags=["engines"])
async def add_engine(center: Center, body: models.NewEngine) -> Json:
    """A new engine from the TOML of its definition."""
    return views.engine(await center.administration.add_engine(body.definition, body.download_path))


@router.call("GET", "/engines/{engine_id}", "Engine", needs=EVERYBODY, tags=["engines"])
async def get_engine(caller: Caller, center: Center, engine_id: Id) -> Json:
    """One engine."""
    return _for(caller, views.engine(await center.administration.row(administration.ENGINES, engine_id)))


@router.call("PUT", "/argtypes/{argtype_id}", "ArgType", needs=ENGINES, tags=["argtypes"])
async def put_argtype(center: Center, argtype_id: ArgTypeId, body: models.NewArgType) -> Json:
    """Make or change an argument type."""
    wanted = ArgType(argtype_id, body.type, body.regex or "")
    return views.shown(await center.administration.put_argtype(wanted))


@router.call("GET", "/attempts", "Attempts", needs=MACHINES, tags=["machines"])
async def list_attempts(center: Center, limit: Limit = 100, cursor: Cursor = None) -> Json:
    """Everything that the machines tried, newest first."""
    return await center.reading.attempts(limit, cursor)


@router.call("POST", "/machines", "Machine", 201, needs=MACHINES, tags=["machines"])
async def add_machine(center: Center, body: models.NewMachine) -> Json:
    """A machine that speaks v1, by its address. Linked machines join by themselves: `invite`."""
    return _machine(center, await center.administration.add_machine(body.ip_address, body.port))


@router.call("POST", "/machines/{machine_id}/restart", needs=MACHINES, tags=["machines"])
async def restart_machine(center: Center, machine_id: Id) -> None:
    """A linked machine finishes what it runs, then its program ends; what keeps it alive starts it again."""
    center.dispatcher.restart_machine(machine_id)


@router.call("POST", "/machines/invite", "Invited", 201, needs=MACHINES, tags=["machines"])
async def invite(request: Request, caller: Caller, center: Center, body: models.Invitation) -> Json:
    """A code with which machines join, for a while, and the line to type there. `first`: what must be changed before
    that line works on another computer, null for nothing; `install`: where pip finds this version of the program."""
    code = await center.administration.invite(body.uses, body.hours, body.slots, caller.user_id)
    settings, asked = center.settings, str(request.base_url)
    is_doubtful = is_forwarded(request) and not is_believed(request)
    url, first = reach(asked, public_url=settings.public_url, listens=settings.host, is_doubtful=is_doubtful)
    command = f"renderonline node --join {url} --code {code.code}"
    if body.slots:
        command += f" --slots {body.slots}"
    is_ours = not is_forwarded(request) and url.startswith("https:")  # a proxy shows a certificate of its own
    if center.fingerprint and is_ours and (not settings.public_url or url == asked.rstrip("/")):
        command += f" --fingerprint {center.fingerprint}"
    # With a certificate of our own, pip would not believe us.
    install = f"{url}/install/{wheel_name()}" if wheel_name() and "--fingerprint" not in command else None
    return views.shown(code, command=command, first=first or None, install=install)


@router.call("POST", "/machines/enroll", "Enrolled", 201, needs=Door.OPEN, tags=["machines"])
async def enroll(request: Request, center: Center, body: models.Enrolment) -> Json:
    """A machine joins with a code and gets a secret of its own."""
    machine_id, secret = await center.administration.enroll(client_of(request), body.code, body.name)
    return {"machine_id": machine_id, "secret": secret}
