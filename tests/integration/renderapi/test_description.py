"""Whatever fits the API's description, and whatever does not, gets a proper answer and leaves no traceback.

schemathesis makes the requests from the description itself: the same ones in every run.
"""

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from renderonline.renderapi import auth
from tests.support.renderapi import SCENE, Running, renderapi

EXAMPLES: Final = 6
"""Requests of each kind (fitting, not fitting) to each call."""
ALLOWED: Final = {503, 507}
ENDLESS: Final = "/renderapi/v2/events"
LAST: Final = ("/users/{user_id}", "/users/{user_id}/logout", "/users/{user_id}/token")
"""Calls that may end the caller's own account come last."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("role", ["artist", "admin"])
async def test_whatever_is_sent_gets_a_proper_answer(
    tmp_path: Path,
    role: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auth, "LONGEST_S", 0.0)  # who guesses waits: test_auth.py
    async with renderapi(tmp_path / "data") as api:
        description = (await api.call("GET", "/openapi.json")).json()
        who = await api.new_user("fuzz@example.org", role)
        known = await something_of_everything(api, who)
        wrong = await asyncio.to_thread(lambda: list(mistakes(api.url, description, who, known)))
    assert not wrong, "\n\n".join(wrong)
    out, err = capsys.readouterr()
    assert "Traceback" not in caplog.text + out + err


async def something_of_everything(api: Running, who: Mapping[str, str]) -> dict[str, Any]:
    """Values of path parameters that name something."""
    upload = await api.call("POST", "/uploads", {"files": [{"name": SCENE[0], "size": 9}]}, who=who)
    machine = await api.call("POST", "/machines", {"ip_address": "127.0.0.1", "port": 9})
    return {
        "task_id": (await api.new_task(who, frames="1-20"))["task_id"],
        "upload_id": upload.json()["upload_id"],
        "index": 0,
        "user_id": (await api.call("POST", "/users", {"email": "spare@example.org"})).json()["user_id"],
        "engine_id": 1,
        "subscription_id": 1,
        "argtype_id": "start_frame",
        "machine_id": machine.json()["machine_id"],
    }


def mistakes(url: str, description: Any, who: Mapping[str, str], known: Mapping[str, Any]) -> Iterator[str]:
    """What was not answered properly."""
    schema = schemathesis.openapi.from_dict(description)
    found = [one.ok() for one in schema.get_all_operations()]
    with requests.Session() as session:
        for operation in sorted(found, key=lambda one: (one.path.endswith(LAST), one.method == "delete", one.path)):
            if operation.path != ENDLESS:
                for mode in GenerationMode.POSITIVE, GenerationMode.NEGATIVE:
                    yield from failures(operation, mode, known, base_url=url, session=session, headers=who)


def failures(operation: Any, mode: GenerationMode, known: Mapping[str, Any], **how: Any) -> Iterator[str]:
    checks = [not_a_server_error, response_schema_conformance, status_code_conformance]

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode), st.booleans())
    def try_it(case: Any, named: bool) -> None:
        if named:
            case.path_parameters = {
                name: known.get(name, value) for name, value in (case.path_parameters or {}).items()
            }
        response = case.call(**how, timeout=60)
        if response.status_code not in ALLOWED:
            case.validate_response(response, checks=checks)

    try:
        try_it()
    except FailureGroup as error:
        yield "\n".join(map(str, (f"{operation.method.upper()} {operation.path} ({mode.value})", *error.exceptions)))
    except Unsatisfiable:  # everything fits this call
        pass
