"""Machines, join codes, secrets."""

import asyncio
from secrets import token_urlsafe

import pytest
from sqlalchemy import select

from renderonline.database import administration_rows
from renderonline.database.administration_rows import JoinCode
from renderonline.database.door import Database
from renderonline.database.machine_rows import (
    MachineRow,
    get_machine,
    hello,
    list_machines,
    refresh_machines,
    secret_matches,
)
from renderonline.database.schema import attempts, join_codes
from renderonline.database.schema import machines as machine_table
from renderonline.farm.errors import Conflict, InvalidRequest, NotAuthenticated, NotFound
from tests.support.farm_rows import NOW_US

HOUR_US = 3_600_000_000


async def invite(db: Database, uses: int = 1) -> JoinCode:
    return await db.write(
        lambda c: administration_rows.invite(c, uses=uses, expires_us=NOW_US + HOUR_US, created_by=1, now_us=NOW_US)
    )


async def enroll(db: Database, code: str, name: str = "node", secret: str = "", now_us: int = NOW_US) -> MachineRow:
    secret = secret or token_urlsafe()
    return await db.write(lambda c: administration_rows.enroll(c, code, name, secret, now_us=now_us))


async def test_v1_machines_have_ids_of_a_byte_and_linked_ones_from_a_thousand(database: Database) -> None:
    one = await database.write(lambda c: administration_rows.add_v1(c, "192.0.2.1", 5001, now_us=NOW_US))
    linked = await enroll(database, (await invite(database)).code)
    two = await database.write(lambda c: administration_rows.add_v1(c, "192.0.2.2", 5001, now_us=NOW_US))
    assert (one.machine_id, two.machine_id, linked.machine_id) == (1, 2, 1000)
    assert (one.is_linked, linked.is_linked) == (False, True)


async def test_the_id_of_a_removed_machine_is_not_used_again(database: Database) -> None:
    first = await enroll(database, (await invite(database)).code)
    await database.write(lambda c: administration_rows.remove_machine(c, first.machine_id))
    second = await enroll(database, (await invite(database)).code)
    assert second.machine_id == first.machine_id + 1


async def test_ids_that_were_inserted_by_hand_are_passed_over(database: Database) -> None:
    rows = [{"machine_id": number, "ip_address": "192.0.2.9", "port": number} for number in (7, 1005)]
    await database.write(lambda c: c.execute(machine_table.insert(), rows))
    one = await database.write(lambda c: administration_rows.add_v1(c, "192.0.2.1", 5001, now_us=NOW_US))
    linked = await enroll(database, (await invite(database)).code)
    assert (one.machine_id, linked.machine_id) == (8, 1006)


async def test_an_address_is_there_once(database: Database) -> None:
    await database.write(lambda c: administration_rows.add_v1(c, "192.0.2.1", 5001, now_us=NOW_US))
    with pytest.raises(Conflict):
        await database.write(lambda c: administration_rows.add_v1(c, "192.0.2.1", 5001, now_us=NOW_US))
    for address in ("", "x" * 46, "host/path?q="):
        with pytest.raises(InvalidRequest):
            await database.write(lambda c, a=address: administration_rows.add_v1(c, a, 5001, now_us=NOW_US))


async def test_a_join_code_is_good_as_often_as_it_says(database: Database) -> None:
    code = await invite(database, uses=3)
    answers = await asyncio.gather(*(enroll(database, code.code) for _ in range(8)), return_exceptions=True)
    joined = [answer for answer in answers if isinstance(answer, MachineRow)]
    assert len({machine.machine_id for machine in joined}) == 3
    assert sum(isinstance(answer, NotAuthenticated) for answer in answers) == 5


async def test_a_join_code_may_be_typed_carelessly(database: Database) -> None:
    code = (await invite(database)).code
    assert (await enroll(database, f"  {code.lower().replace('-', ' ')} ")).machine_id == 1000


@pytest.mark.parametrize("code", ["", "AAAA-BBBB-CCCC", "' OR 1=1", "\udcff"])
async def test_a_code_that_nobody_gave_is_refused(database: Database, code: str) -> None:
    await invite(database)
    with pytest.raises(NotAuthenticated):
        await enroll(database, code)


async def test_a_join_code_ends(database: Database) -> None:
    code = await invite(database)
    with pytest.raises(NotAuthenticated):
        await enroll(database, code.code, now_us=code.expires_us)
    await database.write(
        lambda c: administration_rows.invite(
            c, uses=1, expires_us=code.expires_us + HOUR_US, created_by=1, now_us=code.expires_us
        )
    )
    assert len(await database.read(lambda c: c.execute(select(join_codes)).all())) == 1


async def test_joining_again_with_the_same_secret_gives_the_same_machine(database: Database) -> None:
    code = await invite(database)
    first = await enroll(database, code.code, secret="mine")
    assert await enroll(database, code.code, secret="mine") == first
    with pytest.raises(NotAuthenticated):
        await enroll(database, code.code, secret="another")


async def test_a_refused_name_does_not_use_the_code_up(database: Database) -> None:
    code = await invite(database)
    for name in ("", "x" * 101, "a\nb"):
        with pytest.raises(InvalidRequest):
            await enroll(database, code.code, name)
    assert (await enroll(database, code.code)).name == "node"


async def test_neither_code_nor_secret_is_stored(database: Database) -> None:
    code = await invite(database, uses=2)
    machine = await enroll(database, code.code, secret="s3cret")
    stored = str(await database.read(lambda c: [c.execute(select(t)).all() for t in (join_codes, machine_table)]))
    assert "s3cret" not in stored
    assert code.code not in stored
    assert code.code.replace("-", "") not in stored
    assert secret_matches(machine, "s3cret")
    assert not secret_matches(machine, "guess")


async def test_a_v1_machine_has_no_secret_that_matches(database: Database) -> None:
    machine = await database.write(lambda c: administration_rows.add_v1(c, "192.0.2.1", 5001, now_us=NOW_US))
    assert not secret_matches(machine, "")


async def test_another_instance_starts_its_sequence_anew(database: Database) -> None:
    machine_id = (await enroll(database, (await invite(database)).code)).machine_id
    facts = {"cpu": 8, "name": "é"}
    await database.write(lambda c: hello(c, machine_id, "one", facts, now_us=NOW_US))
    await database.write(lambda c: c.execute(machine_table.update().values(last_seq=17)))
    again = await database.write(lambda c: hello(c, machine_id, "one", facts, now_us=NOW_US + 1))
    assert (again.last_seq, again.facts, again.seen_us) == (17, facts, NOW_US + 1)
    other = await database.write(lambda c: hello(c, machine_id, "two", facts, now_us=NOW_US))
    assert (other.last_seq, other.instance) == (0, "two")


@pytest.mark.both_databases
async def test_only_machines_of_which_something_was_decided_are_read_again(database: Database) -> None:
    code = (await invite(database, uses=3)).code
    same, changed, new = [(await enroll(database, code, name)).machine_id for name in ("same", "changed", "new")]
    known = {row.machine_id: row for row in await database.read(list_machines) if row.machine_id != new}
    told = machine_table.update().values(last_seq=17, seen_us=NOW_US + 5, facts='{"cpu": 8}')
    await database.write(lambda c: c.execute(told))
    await database.write(lambda c: administration_rows.change_machine(c, changed, {"tags": ["fast"]}))

    rows = await database.read(lambda c: refresh_machines(c, known))

    assert [row.machine_id for row in rows] == [same, changed, new]
    assert rows[0] is known[same]
    assert [(row.tags, row.last_seq, row.facts) for row in rows[1:]] == [("fast", 17, {"cpu": 8}), ("", 17, {"cpu": 8})]
    assert rows[1:] == list(await database.read(list_machines))[1:]


async def test_a_machine_with_work_stays(database: Database) -> None:
    machine_id = (await enroll(database, (await invite(database)).code)).machine_id
    lease = {"attempt_id": 1, "chunk_id": 1, "task_id": 1, "machine_id": machine_id, "token": "", "assigned_us": 1}
    row = {**lease, "state": "running", "directory": "/x"}
    await database.write(lambda c: c.execute(attempts.insert().values(**row)))
    with pytest.raises(Conflict):
        await database.write(lambda c: administration_rows.remove_machine(c, machine_id))
    await database.write(lambda c: c.execute(attempts.update().values(state="ended")))
    await database.write(lambda c: administration_rows.remove_machine(c, machine_id))
    with pytest.raises(NotFound):
        await database.read(lambda c: get_machine(c, machine_id))


async def test_what_an_operator_may_change_is_checked(database: Database) -> None:
    machine_id = (await enroll(database, (await invite(database)).code)).machine_id
    changes = {"wish": "draining", "wish_reason": "new RAM", "name": "old node"}
    changed = await database.write(lambda c: administration_rows.change_machine(c, machine_id, changes))
    assert (changed.wish, changed.wish_reason, changed.name) == ("draining", "new RAM", "old node")
    for wrong in ({"secret_hash": ""}, {"name": ""}, {"wish_reason": "x" * 256}):
        with pytest.raises(InvalidRequest):
            await database.write(lambda c, wrong=wrong: administration_rows.change_machine(c, machine_id, wrong))
