"""`/renderapi/v2/tasks`: look at tasks and act on them."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from renderonline.farm.accounts import Permission
from renderonline.renderapi import views
from renderonline.renderapi.routes import models
from renderonline.renderapi.routes.answers import Caller, Center, answer, documented

router = APIRouter(tags=["tasks"])

Limit = Annotated[int, Query(ge=1, le=500)]
Cursor = Annotated[str | None, Query(max_length=100)]


@router.get("/me", responses=documented(models.Me), response_model=None)
async def me(caller: Caller) -> Response:
    """Who I am and what I may do."""
    return answer({**views.user(caller.user), "permissions": [one.value for one in Permission if caller.may(one)]})


@router.get("/tasks", responses=documented(models.Tasks), response_model=None)
async def list_tasks(
    caller: Caller,
    center: Center,
    limit: Limit = 50,
    cursor: Cursor = None,
    status: Annotated[str | None, Query(max_length=20)] = None,
    engine: Annotated[str, Query(max_length=50)] = "",
    search: Annotated[str, Query(max_length=200)] = "",
    all: bool = False,  # noqa: A002, FBT001, FBT002
) -> Response:
    """Tasks, newest first: my own, or with `all=1` everybody's that I may see."""
    return answer(
        await center.reading.tasks(
            caller, everybody=all, status=status, engine=engine, search=search, limit=limit, cursor=cursor
        )
    )


@router.get("/tasks/{task_id}", responses=documented(models.Task), response_model=None)
async def get_task(caller: Caller, center: Center, task_id: models.Id) -> Response:
    """One task."""
    return answer(await center.reading.task(caller, task_id))


@router.get("/tasks/{task_id}/chunks", responses=documented(models.Chunks), response_model=None)
async def list_chunks(
    caller: Caller, center: Center, task_id: models.Id, limit: Limit = 100, cursor: Cursor = None
) -> Response:
    """The pieces that a task was cut into."""
    return answer(await center.reading.chunks(caller, task_id, limit, cursor))


@router.get("/tasks/{task_id}/attempts", responses=documented(models.Attempts), response_model=None)
async def list_attempts(
    caller: Caller, center: Center, task_id: models.Id, limit: Limit = 100, cursor: Cursor = None
) -> Response:
    """Every try of every chunk, newest first."""
    return answer(await center.reading.attempts(caller, task_id, limit, cursor))


@router.get("/tasks/{task_id}/results", responses=documented(models.Results), response_model=None)
async def list_results(
    caller: Caller, center: Center, task_id: models.Id, limit: Limit = 100, cursor: Cursor = None
) -> Response:
    """The files that have landed."""
    return answer(await center.reading.results(caller, task_id, limit, cursor))


@router.get("/tasks/{task_id}/explain", responses=documented(models.Reasons), response_model=None)
async def explain(caller: Caller, center: Center, task_id: models.Id) -> Response:
    """Why the task is not running, or not faster."""
    return answer({"reasons": await center.control.explain(task_id, user_id=caller.tasks_of)})


@router.post("/tasks/{task_id}/cancel", responses=documented(models.Task), response_model=None)
async def cancel(caller: Caller, center: Center, task_id: models.Id) -> Response:
    """Take a task from the queue and stop what runs of it."""
    await center.control.cancel(task_id, user_id=caller.tasks_of)
    return answer(await center.reading.task(caller, task_id))


@router.post("/tasks/{task_id}/pause", responses=documented(models.Task), response_model=None)
async def pause(caller: Caller, center: Center, task_id: models.Id) -> Response:
    """Start nothing new of a task; what runs goes on."""
    await center.control.pause(task_id, user_id=caller.tasks_of)
    return answer(await center.reading.task(caller, task_id))


@router.post("/tasks/{task_id}/resume", responses=documented(models.Task), response_model=None)
async def resume(caller: Caller, center: Center, task_id: models.Id) -> Response:
    """Undo a pause."""
    await center.control.resume(task_id, user_id=caller.tasks_of)
    return answer(await center.reading.task(caller, task_id))


@router.post("/tasks/{task_id}/retry", responses=documented(models.Task), response_model=None)
async def retry(caller: Caller, center: Center, task_id: models.Id) -> Response:
    """Render again what failed or was canceled."""
    await center.control.retry(task_id, user_id=caller.tasks_of)
    return answer(await center.reading.task(caller, task_id))


@router.delete("/tasks/{task_id}", status_code=204, response_model=None)
async def delete(caller: Caller, center: Center, task_id: models.Id) -> Response:
    """Stop a task and delete it with all its files."""
    await center.control.delete(task_id, user_id=caller.tasks_of)
    return Response(status_code=204)
