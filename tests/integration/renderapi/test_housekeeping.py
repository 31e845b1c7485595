"""Room on the disk: what a user's tasks may take, how long they stay, what a stop left, and a disk that is full."""

import asyncio
import os
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from renderonline.database import control_rows
from renderonline.database.control_rows import delete_task
from renderonline.database.door import Connection, Database
from renderonline.database.submission_rows import submit_and_lease
from renderonline.farm.errors import NoSpace, NotAvailable
from renderonline.hpcserver import file_exchange as sending_files
from renderonline.hpcserver.file_exchange import OVER, InputCache, RemoteFiles, Transfers
from renderonline.hpcserver.joining import Identity
from renderonline.hpcserver.outputs import Good
from renderonline.renderapi import control, housekeeping
from renderonline.storage.disk import digest_file
from renderonline.storage.names import INCOMING
from tests.faults.engine import DEFINITION
from tests.support.farm import RealFarm
from tests.support.held_attempts import held_attempt
from tests.support.renderapi import SCENE, Reply, Running, renderapi, wait_until
from tests.support.uploading import SCRIBE, Uploader, announced, pack

MIB = 1024 * 1024


@pytest.fixture(name="mine")
async def _mine(api: Running) -> Uploader:
    return await limited(api, keep_mib=10)


async def limited(api: Running, **limits: int) -> Uploader:
    """An artist with these limits."""
    assert (await api.call("POST", "/engines", {"definition": SCRIBE})).status == 201
    made = await api.call("POST", "/subscriptions", {"name": "small", "queue_limit": 100, **limits})
    who = await api.new_user("ada@example.org", subscription_id=made.json()["subscription_id"])
    return Uploader(api, who)


async def task_of(mine: Uploader, size: int, *, ended: bool = True, **request: Any) -> int:
    """A task that takes so many MiB."""
    task, _ = await mine.send({"a.txt": os.urandom(size * MIB)}, **request)
    task_id: int = task["task_id"]
    if ended:
        assert (await mine.call("POST", f"/tasks/{task_id}/cancel")).status == 200
    return task_id


async def there(mine: Uploader) -> list[int]:
    return sorted(task["task_id"] for task in (await mine.call("GET", "/tasks")).json()["items"])


async def multipart(mine: Uploader, size: int) -> Reply:
    return await mine.api.submit({"engine": "scribe"}, ("a.txt", os.urandom(size * MIB)), version=2, who=mine.who)


# -- keep_mib


async def test_tasks_are_added_up_only_when_there_is_too_little_room(
    mine: Uploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    added_up: list[int] = []

    def stored_tasks(connection: Connection, user_id: int) -> tuple[control_rows.StoredTask, ...]:
        added_up.append(user_id)
        return original(connection, user_id)

    original = control_rows.stored_tasks
    monkeypatch.setattr(control_rows, "stored_tasks", stored_tasks)
    await task_of(mine, 5)
    await task_of(mine, 5)
    assert added_up == []
    await task_of(mine, 1)
    assert added_up


@pytest.mark.both_databases
async def test_ended_tasks_make_room_oldest_first(api: Running, mine: Uploader) -> None:
    first, second, third = [await task_of(mine, 3) for _ in range(3)]
    trees = api.tree()
    fourth = await task_of(mine, 4)
    assert await there(mine) == [second, third, fourth]
    assert len(api.tree()) == len(trees)
    me = (await mine.call("GET", "/me")).json()
    assert (me["keep_mib"], me["kept_bytes"]) == (10, 10 * MIB)
    fifth = await multipart(mine, 5)
    assert fifth.status == 201, fifth.body
    assert await there(mine) == [fourth, fifth.json()["task_id"]]
    assert (await api.call("GET", f"/tasks/{first}")).status == 404


async def test_what_is_still_needed_does_not_make_room(api: Running, mine: Uploader) -> None:
    waited_for = await task_of(mine, 3)
    waiting = await task_of(mine, 3, ended=False, waits_for=[waited_for])
    ended = await task_of(mine, 3)
    before = api.tree()
    for refused in (
        await multipart(mine, 5),
        await mine.call("POST", "/uploads", {"files": [{"name": "a.txt", "size": 5 * MIB}]}),
    ):
        assert (refused.status, refused.json()["code"]) == (413, "over_quota")
        assert "holds 10 MiB. Your tasks take 9 MiB, and this is 5 MiB more" in refused.json()["detail"]
    assert await there(mine) == [waited_for, waiting, ended]
    assert [name for name in api.tree() if name not in before] == []
    assert (await mine.call("DELETE", f"/tasks/{waiting}")).status == 204
    assert (await multipart(mine, 5)).status == 201
    assert ended in await there(mine)


async def test_a_task_that_the_new_one_waits_for_stays(mine: Uploader) -> None:
    first, second = [await task_of(mine, 4) for _ in range(2)]
    third = await task_of(mine, 4, ended=False, waits_for=[first])
    assert second not in await there(mine)
    assert {first, third} <= set(await there(mine))


@pytest.mark.both_databases
async def test_open_uploads_count_with_what_was_announced(api: Running, mine: Uploader) -> None:
    first = await mine.announce(announced("a.txt", os.urandom(6 * MIB), chunked=False))
    before = api.tree()
    for refused in (
        await mine.call("POST", "/uploads", {"files": [{"name": "a.txt", "size": 5 * MIB}]}),
        await multipart(mine, 5),
    ):
        assert (refused.status, refused.json()["code"]) == (413, "over_quota")
        told = f"holds 10 MiB. Your tasks take 0 MiB, your open uploads 6 MiB ({first['upload_id']}), and this is 5 MiB"
        assert told in refused.json()["detail"]
        assert "finish or delete open uploads" in refused.json()["detail"]
    assert [name for name in api.tree() if name not in before and name != ".manifests"] == []
    assert (await mine.call("DELETE", f"/uploads/{first['upload_id']}")).status == 204
    assert (await multipart(mine, 5)).status == 201


async def test_an_upload_of_which_a_task_is_made_does_not_count_twice(mine: Uploader) -> None:
    ended = await task_of(mine, 3)
    task = await task_of(mine, 7)
    assert await there(mine) == [ended, task]


async def test_body_without_a_length_that_has_no_room_leaves_nothing(api: Running, mine: Uploader) -> None:
    kept = await task_of(mine, 8, ended=False)
    before = api.tree()

    async def body() -> AsyncIterator[bytes]:
        yield b'--B\r\nContent-Disposition: form-data; name="request"\r\n\r\n{"engine":"scribe"}\r\n'
        yield b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        for _ in range(3):
            yield os.urandom(MIB)
        yield b"\r\n--B--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    refused = await mine.call("POST", "/tasks", data=body(), headers=headers)
    assert (refused.status, refused.json()["code"]) == (413, "over_quota")
    assert api.tree() == before
    assert await there(mine) == [kept]


async def test_large_body_that_has_no_room_is_refused_before_it_is_read(api: Running, mine: Uploader) -> None:
    headers = {
        "Content-Type": "multipart/form-data; boundary=B",
        "Content-Length": str(20 * MIB),
        "Expect": "100-continue",
    }
    refused = await mine.call("POST", "/tasks", data=b"", headers=headers)
    assert (refused.status, refused.json()["code"]) == (413, "over_quota")


async def test_submitted_again_with_its_key_needs_no_room(mine: Uploader) -> None:
    form = {"headers": {"Idempotency-Key": "k"}, "version": 2, "who": mine.who}
    content = ("a.txt", os.urandom(6 * MIB))
    first, again = [await mine.api.submit({"engine": "scribe"}, content, **form) for _ in range(2)]
    assert (first.status, again.status, again.json()["task_id"]) == (201, 201, first.json()["task_id"])


@pytest.mark.both_databases
async def test_parallel_uploads_never_pass_the_limit(mine: Uploader) -> None:
    replies = await asyncio.gather(*(multipart(mine, 3) for _ in range(6)))
    assert sorted(reply.status for reply in replies) == [201, 201, 201, 413, 413, 413]


# -- keep_days, and what a stop left


async def change_end(api: Running, task_id: int, days: float) -> None:
    end_us = int((time.time() - days * 86400) * 1e6)
    with Database.open(api.settings.database) as database:
        database.write_now(lambda c: c.exec_driver_sql(f"update tasks set end_us = {end_us} where task_id = {task_id}"))


@pytest.mark.both_databases
async def test_tasks_go_when_their_days_are_over(
    tmp_path: Path, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "EVERY_S", 0.05)
    async with renderapi(tmp_path / "data", connection_string=migrated_url) as api:
        mine = await limited(api)
        empty = api.tree()
        ended, waited_for = await task_of(mine, 5), await task_of(mine, 1)
        waiting = await task_of(mine, 1, ended=False, waits_for=[waited_for])
        for task_id in (ended, waited_for):
            await change_end(api, task_id, 3)
        number = (await api.call("GET", "/subscriptions")).json()["items"][-1]["subscription_id"]
        await api.call("PATCH", f"/subscriptions/{number}", {"keep_days": 4})
        task = (await mine.call("GET", f"/tasks/{ended}")).json()
        assert task["deletes_at"].startswith(time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86400)))
        assert (await mine.call("GET", f"/tasks/{waiting}")).json()["deletes_at"] is None
        assert await there(mine) == [ended, waited_for, waiting]
        await api.call("PATCH", f"/subscriptions/{number}", {"keep_days": 2})

        async def gone() -> bool:
            return await there(mine) == [waited_for, waiting]

        await wait_until(gone)
        await mine.call("DELETE", f"/tasks/{waiting}")

        async def all_gone() -> bool:
            return await there(mine) == [] and set(api.tree()) - set(empty) <= {".manifests", str(task["user_id"])}

        await wait_until(all_gone)


async def test_start_sweeps_up_what_is_ours_and_gone(tmp_path: Path, migrated_url: str) -> None:
    data = tmp_path / "data"
    async with (
        renderapi(data, connection_string=migrated_url) as api,
        held_attempt(api, DEFINITION, ("a.scene", b"x")) as held,
    ):
        attempt, task, files = held.assign.attempt, held.assign.task, api.settings.files
        upload = await Uploader(api).announce(announced("a.txt", b"new"))
    previews, logs, incoming = data / "previews", data / "logs", files / ".incoming"
    preview, manifest, old = (
        previews / "777" / "x.thumb.jpg",
        files / ".manifests" / "1-638",
        incoming / f"1-{'a' * 32}",
    )
    foreign = logs / f"{attempt + 2**33}.log"
    ours = [logs / f"{attempt}.log", previews / str(task) / "x.thumb.jpg", logs / "notes.txt"]
    gone = [logs / f"{attempt - 7}.log", logs / f"{attempt - 8}.tail" / "4194304", manifest, old / "upload.json"]
    for path in (*ours, *gone, foreign, preview):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    os.utime(old / "upload.json", (0, time.time() - 8 * 86400))
    (incoming / f"1-{'b' * 32}").mkdir()  # just being made

    async def swept() -> bool:
        return not any(path.exists() for path in (*gone, old))

    async with renderapi(data, connection_string=migrated_url):
        await wait_until(swept)
        assert all(path.exists() for path in (*ours, foreign, preview))
        staged = sorted(path.name for path in incoming.iterdir() if path.is_dir())
        assert staged == sorted([f"1-{upload['upload_id']}", f"1-{'b' * 32}"])
    foreign.unlink()  # now nothing says that the previews could be another farm's
    gone.append(preview)
    async with renderapi(data, connection_string=migrated_url):
        await wait_until(swept)
        assert all(path.exists() for path in ours)


# -- a deletion that was interrupted


@pytest.mark.both_databases
async def test_deletion_that_a_stop_interrupts_is_carried_through(
    tmp_path: Path, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RenderAPI ended when the files were gone and the rows were not."""
    write, reached = Database.write, asyncio.Event()

    async def ends(self: Database, operation: Any, **more: Any) -> Any:
        if getattr(operation, "func", None) is not delete_task:
            return await write(self, operation, **more)
        reached.set()
        return await asyncio.Event().wait()

    monkeypatch.setattr(Database, "write", ends)
    async with renderapi(tmp_path / "data", connection_string=migrated_url) as api:
        mine = await limited(api)
        task_id, kept = await task_of(mine, 1), await task_of(mine, 1)
        deleting = asyncio.ensure_future(mine.call("DELETE", f"/tasks/{task_id}"))
        await asyncio.wait_for(reached.wait(), 20)
        assert [path.endswith("a.txt") for path in api.tree()].count(True) == 1
        for refused in ("retry", "requeue"):
            assert (await mine.call("POST", f"/tasks/{task_id}/{refused}", {})).status == 409
        assert (await mine.call("GET", f"/tasks/{task_id}")).json()["reason"] == "It is being deleted."
        deleting.cancel()
    monkeypatch.undo()
    async with renderapi(tmp_path / "data", connection_string=migrated_url) as api:
        again = Uploader(api, mine.who)

        async def gone() -> bool:
            return await there(again) == [kept]

        await wait_until(gone)


@pytest.mark.both_databases
async def test_deletion_outlasts_a_database_that_goes_away(
    api: Running, mine: Uploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_AGAIN_S", 0.01)
    write, failures = Database.write, [NoSpace("The disk is full."), NotAvailable("The database went away.")]

    async def fails(self: Database, operation: Any, **more: Any) -> Any:
        if getattr(operation, "func", None) is delete_task and failures:
            raise failures.pop()
        return await write(self, operation, **more)

    monkeypatch.setattr(Database, "write", fails)
    task_id = await task_of(mine, 1)
    assert (await mine.call("DELETE", f"/tasks/{task_id}")).status == 204
    assert await there(mine) == failures == []


# -- a full disk


async def test_full_disk_heals_by_itself(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = await limited(api)
    chunked, plain = os.urandom(MIB), os.urandom(MIB)
    upload = await mine.announce(announced("a.txt", chunked), announced("b.txt", plain, chunked=False))
    upload_id, body = upload["upload_id"], pack([chunked], {"files": upload["files"][:1]})
    before = await mine.look(upload_id)
    monkeypatch.setattr(housekeeping, "_free_bytes", lambda _root: api.settings.reserve_mib * MIB)
    refused = [
        await mine.put(upload_id, body),
        await mine.append(upload_id, 1, 0, plain),
        await mine.call("POST", "/uploads", {"files": [{"name": "a.txt", "size": 20 * MIB}]}),
        await multipart(mine, 1),
    ]
    assert [(one.status, one.json()["code"]) for one in refused] == [(507, "no_space")] * 4
    assert await mine.look(upload_id) == before
    monkeypatch.undo()
    assert (await mine.put(upload_id, body)).status == 204
    assert (await mine.append(upload_id, 1, 0, plain)).status == 204
    assert (await mine.submit(upload_id, scene="a.txt")).status == 201


async def test_finished_frame_waits_for_room_on_the_farms_disk(
    tmp_path: Path, api: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending_files, "FULL_S", 0.02)
    refusals = []

    def full(_root: Path) -> int:
        refusals.append(_root)
        return 0

    async with held_attempt(api, DEFINITION, ("a.scene", b"x")) as held:
        transfers = Transfers(Identity(api.url, held.machine_id, ""))
        remote = RemoteFiles(held.assign, transfers, InputCache(tmp_path / "cache", MIB), tmp_path / "own")
        frame = Path(remote.assign.directory) / "frame_0001.png"
        frame.parent.mkdir(parents=True)
        frame.write_bytes(b"frame")
        monkeypatch.setattr(housekeeping, "_free_bytes", full)
        sending = asyncio.ensure_future(remote.send(Good("frame_0001.png", digest_file(frame), (0, 0, 0))))

        async def tried() -> bool:
            return len(refusals) > 2

        await wait_until(tried)
        assert not sending.done()
        monkeypatch.setattr(housekeeping, "_free_bytes", lambda _root: 2**60)
        assert await sending is None
        assert (held.directory / "frame_0001.png").read_bytes() == b"frame"
        monkeypatch.setattr(housekeeping, "_free_bytes", full)
        canceled = asyncio.ensure_future(remote.send(Good("frame_0001.png", digest_file(frame), (0, 0, 0))))
        remote.stop()
        assert await canceled == OVER
        transfers.close()


def test_server_that_can_not_write_goes_on_when_it_can_again(tmp_path: Path) -> None:
    """A real process whose files may not grow: what a full disk does, without filling one."""
    large = tmp_path / "b.txt"
    large.write_bytes(os.urandom(12 * MIB))
    with RealFarm(tmp_path) as farm:
        farm.client.admin.add_engine(definition=SCRIBE)
        pid = farm.renderapi.process.pid
        usual = resource.prlimit(pid, resource.RLIMIT_FSIZE, (8 * MIB, resource.RLIM_INFINITY))
        with pytest.raises(NoSpace):
            farm.client.submit(large, engine="scribe")
        resource.prlimit(pid, resource.RLIMIT_FSIZE, usual)
        task = farm.client.submit(large, engine="scribe")
        assert task["file_size"] == 12 * MIB
        assert farm.renderapi.process.poll() is None


# -- a commit for which nobody answers


@pytest.mark.both_databases
@pytest.mark.parametrize("committed", [True, False])
async def test_files_of_a_submission_in_doubt_stay_exactly_if_there_is_such_a_task(
    api: Running, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """The connection to the database broke during the commit."""
    write, whole = Database.write, [False]

    async def breaks(self: Database, operation: Any, **more: Any) -> Any:
        if getattr(operation, "func", None) is submit_and_lease and whole and not whole.pop():
            if committed:
                await write(self, operation, **more)
            raise NotAvailable("The database went away.")
        return await write(self, operation, **more)

    monkeypatch.setattr(Database, "write", breaks)
    assert (await api.submit({"engine": "blender"}, SCENE, version=2)).status == 503

    async def settled() -> bool:
        return not list((api.settings.files / INCOMING).glob("*.mark"))

    await wait_until(settled)
    (task,) = (await api.call("GET", "/tasks")).json()["items"] or (None,)
    assert (task is not None) is committed
    assert [path.endswith(SCENE[0]) for path in api.tree()].count(True) == int(committed)


async def test_files_that_come_at_the_same_time_leave_the_reserve_of_the_disk_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mib, files = 2**20, tmp_path / "data" / "files"

    def free(_root: Path) -> int:
        return 130 * mib - sum(one.stat().st_size for one in files.rglob("*") if one.is_file())

    async with renderapi(tmp_path / "data", reserve_mib=100) as api:
        monkeypatch.setattr(housekeeping, "_free_bytes", free)
        mine = Uploader(api)
        uploads = [await mine.announce({"name": "a.txt", "size": 25 * mib}) for _ in range(4)]
        sent = [mine.append(upload["upload_id"], 0, 0, bytes(25 * mib)) for upload in uploads]
        sent += [api.submit({"engine": "blender"}, ("a.blend", bytes(25 * mib)), version=2) for _ in range(2)]
        assert 507 in {reply.status for reply in await asyncio.gather(*sent)}
        assert free(files) >= 100 * mib - 8 * mib  # a piece for each that came at this moment
