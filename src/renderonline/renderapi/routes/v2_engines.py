"""`/renderapi/v2/engines` and `/argtypes`: everybody may look, administrators change."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.responses import Response

from renderonline.farm.accounts import Permission
from renderonline.farm.arguments import ArgType
from renderonline.farm.errors import InvalidRequest
from renderonline.renderapi import views
from renderonline.renderapi.routes import models
from renderonline.renderapi.routes.answers import Caller, Center, answer, documented

router = APIRouter(tags=["engines"])

ArgTypeId = Annotated[str, Path(pattern="^[A-Za-z0-9_]{1,50}$")]


@router.get("/engines", responses=documented(models.Engines), response_model=None)
async def list_engines(_caller: Caller, center: Center) -> Response:
    """All engines, with their arguments."""
    return answer({"items": [views.engine(row) for row in await center.administration.engines()]})


@router.post("/engines", status_code=201, responses=documented(models.Engine, 201), response_model=None)
async def add_engine(caller: Caller, center: Center, body: models.NewEngine) -> Response:
    """A new engine from the TOML of its definition."""
    caller.require(Permission.ENGINES)
    return answer(views.engine(await center.administration.add_engine(body.definition, body.download_path)), 201)


@router.get("/engines/{engine_id}", responses=documented(models.Engine), response_model=None)
async def get_engine(_caller: Caller, center: Center, engine_id: models.Id) -> Response:
    """One engine."""
    return answer(views.engine(await center.administration.engine(engine_id)))


@router.patch("/engines/{engine_id}", responses=documented(models.Engine), response_model=None)
async def change_engine(caller: Caller, center: Center, engine_id: models.Id, body: models.EngineChange) -> Response:
    """Change an engine's definition or download path, or switch it off. Tasks that were submitted keep theirs."""
    caller.require(Permission.ENGINES)
    changes = body.model_dump(exclude_unset=True)
    if not changes:
        raise InvalidRequest("Name at least one field to change.")
    return answer(views.engine(await center.administration.change_engine(engine_id, changes)))


@router.delete("/engines/{engine_id}", status_code=204, response_model=None)
async def remove_engine(caller: Caller, center: Center, engine_id: models.Id) -> Response:
    """Remove an engine that no task uses."""
    caller.require(Permission.ENGINES)
    await center.administration.remove_engine(engine_id)
    return Response(status_code=204)


@router.get("/argtypes", responses=documented(models.ArgTypes), response_model=None)
async def list_argtypes(_caller: Caller, center: Center) -> Response:
    """All argument types: the rules that values must obey."""
    return answer({"items": [asdict(row) for row in await center.administration.argtypes()]})


@router.put("/argtypes/{argtype_id}", responses=documented(models.ArgType), response_model=None)
async def put_argtype(caller: Caller, center: Center, argtype_id: ArgTypeId, body: models.NewArgType) -> Response:
    """Make or change an argument type."""
    caller.require(Permission.ENGINES)
    wanted = ArgType(argtype_id, body.type, body.regex or "")
    return answer(asdict(await center.administration.put_argtype(wanted)))


@router.delete("/argtypes/{argtype_id}", status_code=204, response_model=None)
async def remove_argtype(caller: Caller, center: Center, argtype_id: ArgTypeId) -> Response:
    """Remove an argument type that no engine names."""
    caller.require(Permission.ENGINES)
    await center.administration.remove_argtype(argtype_id)
    return Response(status_code=204)
