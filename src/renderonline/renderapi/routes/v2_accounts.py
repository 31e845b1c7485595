"""`/renderapi/v2/users` and `/subscriptions`: for administrators."""

from fastapi import APIRouter
from starlette.responses import Response

from renderonline.farm.accounts import Permission
from renderonline.farm.errors import InvalidRequest
from renderonline.renderapi import views
from renderonline.renderapi.administration import checked_role
from renderonline.renderapi.routes import models
from renderonline.renderapi.routes.answers import Caller, Center, answer, documented

router = APIRouter(tags=["accounts"])


@router.get("/users", responses=documented(models.Users), response_model=None)
async def list_users(caller: Caller, center: Center) -> Response:
    """All accounts."""
    caller.require(Permission.USERS)
    return answer({"items": [views.user(user) for user in await center.administration.users()]})


@router.post("/users", status_code=201, responses=documented(models.UserWithToken, 201), response_model=None)
async def add_user(caller: Caller, center: Center, body: models.NewUser) -> Response:
    """A new account. Its token is in this answer and nowhere else."""
    caller.require(Permission.USERS)
    values = {**body.model_dump(), "role": checked_role(body.role)}
    user, token = await center.administration.add_user(values)
    return answer({**views.user(user), "token": token}, 201)


@router.get("/users/{user_id}", responses=documented(models.User), response_model=None)
async def get_user(caller: Caller, center: Center, user_id: models.Id) -> Response:
    """One account; everybody may see their own."""
    if user_id != caller.user_id:
        caller.require(Permission.USERS)
    return answer(views.user(await center.administration.user(user_id)))


@router.patch("/users/{user_id}", responses=documented(models.User), response_model=None)
async def change_user(caller: Caller, center: Center, user_id: models.Id, body: models.UserChange) -> Response:
    """Change some fields of an account."""
    caller.require(Permission.USERS)
    changes = _changes(body)
    if "role" in changes:
        changes["role"] = checked_role(body.role)
    return answer(views.user(await center.administration.change_user(user_id, changes)))


@router.post("/users/{user_id}/token", responses=documented(models.Token), response_model=None)
async def new_token(caller: Caller, center: Center, user_id: models.Id) -> Response:
    """Another token; the old one ends. Everybody may renew their own."""
    if user_id != caller.user_id:
        caller.require(Permission.USERS)
    return answer({"token": await center.administration.new_token(user_id)})


@router.get("/subscriptions", responses=documented(models.Subscriptions), response_model=None)
async def list_subscriptions(caller: Caller, center: Center) -> Response:
    """All subscriptions."""
    caller.require(Permission.USERS)
    return answer({"items": [views.subscription(row) for row in await center.administration.subscriptions()]})


@router.post("/subscriptions", status_code=201, responses=documented(models.Subscription, 201), response_model=None)
async def add_subscription(caller: Caller, center: Center, body: models.NewSubscription) -> Response:
    """A new subscription: how many tasks may wait or run at once, and the share inside a priority class."""
    caller.require(Permission.USERS)
    row = await center.administration.add_subscription(body.name, body.queue_limit, body.share)
    return answer(views.subscription(row), 201)


@router.patch("/subscriptions/{subscription_id}", responses=documented(models.Subscription), response_model=None)
async def change_subscription(
    caller: Caller, center: Center, subscription_id: models.Id, body: models.SubscriptionChange
) -> Response:
    """Change some fields of a subscription."""
    caller.require(Permission.USERS)
    row = await center.administration.change_subscription(subscription_id, _changes(body))
    return answer(views.subscription(row))


def _changes(body: models.UserChange | models.SubscriptionChange) -> dict[str, object]:
    changes = body.model_dump(exclude_unset=True)
    if not changes:
        raise InvalidRequest("Name at least one field to change.")
    return changes
