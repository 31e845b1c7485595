"""A route that does not say who may call it is never served."""

from pathlib import Path

import pytest
from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from renderonline.renderapi.main import create_app
from renderonline.renderapi.services import Access, Router, check_declared, declare
from renderonline.renderapi.settings import load_settings


async def answer(_request: Request) -> Response:
    return Response()


async def declared(_request: Request) -> Response:
    return Response()


declare(declared, Access.OPEN)


def test_every_route_of_the_application_declares_who_may_call_it(tmp_path: Path) -> None:
    app = create_app(load_settings(flags={"data_directory": tmp_path}, environment={}))
    check_declared(app.routes)
    app.add_api_route("/more", answer)
    with pytest.raises(TypeError, match="declare who may call it"):
        check_declared(app.routes)


def test_a_call_of_v2_without_a_declaration_can_not_be_made() -> None:
    with pytest.raises(TypeError, match="needs"):
        Router("tasks").call("GET", "/more")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="declare who may call it"):
        Router("tasks").get("/more")(answer)


@pytest.mark.parametrize("route", [Route("/more", declared), Mount("/more", routes=[Route("/", declared)])])
def test_a_route_that_does_not_ask_is_refused_whatever_it_declares(route: Route) -> None:
    with pytest.raises(TypeError):
        check_declared([route])
    inside = APIRouter()
    inside.routes.append(route)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(inside, prefix="/inside")
    with pytest.raises(TypeError):
        check_declared(app.routes)
