"""Every row of `golden.toml` against our servers as real programs."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.databases import directory_in_memory
from tests.support.existing_farm import ExistingFarm, v1_node
from tests.support.golden import GOLDEN, NodeStates, RenderAPIStates, Row, furnish, message_in, pattern_of, rows_of
from tests.support.stub_engine import write_stub_engine


def ids(row: Row) -> str:
    return re.sub(r"[^a-z0-9]+", "_", str(row["name"]).lower()).strip("_")


# -- the data itself


@pytest.mark.parametrize("message", GOLDEN["messages"])
def test_every_message_of_the_contract_has_a_row(message: str) -> None:
    assert any(pattern_of(message).fullmatch(message_in(row) or "") for row in GOLDEN["row"])


@pytest.mark.parametrize("row", GOLDEN["row"], ids=ids)
def test_no_row_expects_a_message_that_is_not_the_contracts(row: Row) -> None:
    message = message_in(row)
    if message is None or message.startswith("<like "):
        return
    assert any(pattern_of(known).fullmatch(message) for known in GOLDEN["messages"])


def test_names_of_rows_differ() -> None:
    assert len({row["name"] for row in GOLDEN["row"]}) == len(GOLDEN["row"])


# -- HPCServer


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    engine = str(write_stub_engine(tmp_path_factory.mktemp("engines") / "blender"))
    return {"blender": engine, "Povray": engine}


@pytest.fixture(scope="module")
def node(engines: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeStates]:
    with v1_node(tmp_path_factory.mktemp("node"), engines) as url:
        yield NodeStates(url)


@pytest.mark.parametrize("row", [row for row in rows_of("hpcserver") if row["given"] != "fresh"], ids=ids)
def test_hpcserver_answers_as_the_contract_says(row: Row, node: NodeStates) -> None:
    node.play(row)


def test_hpcserver_answers_as_the_contract_says_before_its_first_render(
    engines: dict[str, str], tmp_path: Path
) -> None:
    with v1_node(tmp_path, engines) as url:
        for row in rows_of("hpcserver"):
            if row["given"] == "fresh":
                NodeStates(url).play(row)


# -- RenderAPI


@pytest.fixture(scope="module", params=["sqlite", "mariadb"])
def renderapi(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RenderAPIStates]:
    directory = tmp_path_factory.mktemp("renderapi")
    with directory_in_memory(directory) as memory:
        connection = f"sqlite:///{memory / 'farm.sqlite'}"
        if request.param == "mariadb":
            connection = request.getfixturevalue("mariadb").create_database()
        with ExistingFarm(directory, connection) as farm:
            furnish(farm)
            farm.start(quickly=False)
            yield RenderAPIStates(farm)


@pytest.mark.parametrize("row", rows_of("renderapi"), ids=ids)
def test_renderapi_answers_as_the_contract_says(row: Row, renderapi: RenderAPIStates) -> None:
    renderapi.play(row)
