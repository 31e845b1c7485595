"""Engines and argument types."""

import pytest

from renderonline.database import administration_rows, submission_rows
from renderonline.database.door import Database
from renderonline.database.submission_rows import NewEngine
from renderonline.farm.arguments import ArgType
from renderonline.farm.errors import Conflict, InvalidRequest, NotFound
from tests.support.farm_rows import add_engine, add_user, submit


async def test_engine_names_are_taken_once(database: Database) -> None:
    engine_id = await database.write(add_engine)
    with pytest.raises(Conflict):
        await database.write(lambda c: add_engine(c, "Blender"))
    renamed = await database.write(lambda c: administration_rows.change_engine(c, engine_id, {"name": "Blender"}))
    assert renamed.name == "Blender"


async def test_an_engine_keeps_a_long_definition(database: Database) -> None:
    toml = "# é\n" * 30_000
    new = NewEngine("x", ".x", "/srv", "x", definition=toml, is_enabled=False)
    added = await database.write(lambda c: administration_rows.add_engine(c, new))
    assert added.definition == toml
    assert not added.is_enabled


async def test_what_an_engine_does_not_have_can_not_be_changed(database: Database) -> None:
    engine_id = await database.write(add_engine)
    for wrong in ({"engine_id": 7}, {"name": ""}, {"extension": "x" * 51}):
        with pytest.raises(InvalidRequest):
            await database.write(lambda c, wrong=wrong: administration_rows.change_engine(c, engine_id, wrong))


async def test_an_engine_that_tasks_use_stays(database: Database) -> None:
    engine_id = await database.write(add_engine)
    user = await database.write(add_user)
    await database.write(lambda c: submit(c, user.user_id, engine_id))
    with pytest.raises(Conflict, match="1 tasks"):
        await database.write(lambda c: administration_rows.remove_engine(c, engine_id))
    other = await database.write(lambda c: add_engine(c, "other"))
    await database.write(lambda c: administration_rows.remove_engine(c, other))
    with pytest.raises(NotFound):
        await database.write(lambda c: administration_rows.remove_engine(c, other))


async def test_argument_types_are_added_and_changed(database: Database) -> None:
    await database.write(lambda c: administration_rows.put_argtype(c, ArgType("speed", "natural")))
    await database.write(lambda c: administration_rows.put_argtype(c, ArgType("speed", "word", "[a-z]+")))
    assert await database.read(submission_rows.list_argtypes) == (ArgType("speed", "word", "[a-z]+"),)
    for wrong in (ArgType("", "word"), ArgType("x" * 51, "word"), ArgType("x", "")):
        with pytest.raises(InvalidRequest):
            await database.write(lambda c, wrong=wrong: administration_rows.put_argtype(c, wrong))


async def test_an_argument_type_that_a_template_names_stays(database: Database) -> None:
    new = NewEngine("x", ".x", "/srv", "x -s $RENDERONLINE:speed")
    await database.write(lambda c: administration_rows.add_engine(c, new))
    for name in ("speed", "unused"):
        await database.write(lambda c, name=name: administration_rows.put_argtype(c, ArgType(name, "natural")))
    with pytest.raises(Conflict, match="speed"):
        await database.write(lambda c: administration_rows.remove_argtype(c, "speed"))
    await database.write(lambda c: administration_rows.remove_argtype(c, "unused"))
    with pytest.raises(NotFound):
        await database.write(lambda c: administration_rows.remove_argtype(c, "unused"))
