"""`/renderapi/v2/machines`: for operators; a machine that joins needs its code alone."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from renderonline.farm.accounts import Permission
from renderonline.farm.errors import InvalidRequest
from renderonline.renderapi import views
from renderonline.renderapi.routes import models
from renderonline.renderapi.routes.answers import Caller, Center, answer, documented
from renderonline.renderapi.services import Services

router = APIRouter(tags=["machines"])


@router.get("/machines", responses=documented(models.Machines), response_model=None)
async def list_machines(caller: Caller, center: Center) -> Response:
    """All machines and what they do now."""
    caller.require(Permission.MACHINES)
    live = _live(center)
    rows = await center.administration.machines()
    return answer({"items": [views.machine(row, live.get(row.machine_id)) for row in rows]})


@router.post("/machines", status_code=201, responses=documented(models.Machine, 201), response_model=None)
async def add_machine(caller: Caller, center: Center, body: models.NewMachine) -> Response:
    """A machine that speaks v1, by its address. Linked machines join by themselves: `invite`."""
    caller.require(Permission.MACHINES)
    row = await center.administration.add_machine(body.ip_address, body.port)
    return answer(views.machine(row, _live(center).get(row.machine_id)), 201)


@router.post("/machines/invite", status_code=201, responses=documented(models.Invited, 201), response_model=None)
async def invite(request: Request, caller: Caller, center: Center, body: models.Invitation) -> Response:
    """A code with which machines join, for a while."""
    caller.require(Permission.MACHINES)
    code = await center.administration.invite(body.uses, body.hours, caller.user_id)
    url = str(request.base_url).rstrip("/")
    command = f"renderonline node --join {url} --code {code.code}"
    if center.fingerprint:
        command += f" --fingerprint {center.fingerprint}"
    return answer({"code": code.code, "expires": views.moment(code.expires_us), "command": command}, 201)


@router.post("/machines/enroll", status_code=201, responses=documented(models.Enrolled, 201), response_model=None)
async def enroll(request: Request, center: Center, body: models.Enrolment) -> Response:
    """A machine joins with a code and gets a secret of its own."""
    client = request.client.host if request.client is not None else ""
    machine_id, secret = await center.enrolments.enroll(client, body.code, body.name)
    return answer({"machine_id": machine_id, "secret": secret}, 201)


@router.patch("/machines/{machine_id}", responses=documented(models.Machine), response_model=None)
async def change_machine(caller: Caller, center: Center, machine_id: models.Id, body: models.MachineChange) -> Response:
    """Say what is wished of a machine (active, draining, disabled) and why, or name it."""
    caller.require(Permission.MACHINES)
    changes = body.model_dump(exclude_unset=True)
    if not changes:
        raise InvalidRequest("Name at least one field to change.")
    if "reason" in changes:
        changes["wish_reason"] = changes.pop("reason")
    row = await center.administration.change_machine(machine_id, changes)
    return answer(views.machine(row, _live(center).get(machine_id)))


@router.delete("/machines/{machine_id}", status_code=204, response_model=None)
async def remove_machine(caller: Caller, center: Center, machine_id: models.Id) -> Response:
    """Forget a machine; its secret is worth nothing afterwards."""
    caller.require(Permission.MACHINES)
    await center.administration.remove_machine(machine_id)
    return Response(status_code=204)


def _live(center: Services) -> dict[int, dict[str, object]]:
    return {machine["machine_id"]: machine for machine in center.machines_view()}
