"""What v2's clients may send has bounds."""

from collections.abc import Iterator
from typing import Any

import pytest

from renderonline.renderapi.main import create_app, shapes
from renderonline.renderapi.settings import load_settings


@pytest.fixture(scope="module", name="description")
def _description(tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = load_settings(flags={"data_directory": tmp_path_factory.mktemp("data")}, environment={})
    return create_app(settings).openapi()


def numbers(schema: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every number that a schema describes, with its place."""
    if isinstance(schema, list):
        for one in schema:
            yield from numbers(one, where)
    elif isinstance(schema, dict):
        if schema.get("type") in ("integer", "number"):
            yield where, schema
        for key, inner in schema.items():
            yield from numbers(inner, f"{where}.{key}")


def test_every_number_of_a_request_has_a_lower_and_an_upper_bound(description: Any) -> None:
    sent: list[tuple[str, dict[str, Any]]] = []
    for path, calls in description["paths"].items():
        for method, call in calls.items():
            sent += numbers(call.get("parameters", []), f"{method} {path}")
            sent += numbers(call.get("requestBody", {}), f"{method} {path}")
    ours = shapes()  # answers, and requests that the codec reads: it takes no number beyond 64 bits
    for name, schema in description["components"]["schemas"].items():
        if name not in ours:
            sent += numbers(schema, name)
    assert len(sent) > 50
    lower, upper = {"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}
    assert [where for where, schema in sent if not (lower & set(schema) and upper & set(schema))] == []
