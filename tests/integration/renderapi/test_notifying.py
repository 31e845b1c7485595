"""People are told of tasks that end and machines that are benched, and nothing of the farm waits for that."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog

from renderonline.database.door import Database
from renderonline.database.machine_rows import bench_machine
from renderonline.farm.errors import InvalidRequest
from renderonline.renderapi import events
from renderonline.renderapi.events import Channel, Message, Notifier, tame
from renderonline.storage.archive import Member
from tests.support.dispatching import Machine, Rig, joined, opened_rig, until
from tests.support.machines import png
from tests.support.renderapi import renderapi
from tests.support.sinks import MailServer, Webhook, attached, wait_for

MESSAGE = Message("A title", "Some text", good=True)
BENCHED = {"machine_id": 7, "name": "node7", "benched": True, "reason": "benched: chunks of three tasks failed there"}


@contextlib.asynccontextmanager
async def telling(database: Database, *addresses: str, mail: str = "") -> AsyncIterator[Notifier]:
    notifier = Notifier(database, url="https://farm.example.org", pause_s=0.01)
    await notifier.open(addresses, mail)
    try:
        yield notifier
    finally:
        await notifier.close()


@contextlib.asynccontextmanager
async def farm(database: Database, directory: Path, *addresses: str, mail: str = "") -> AsyncIterator[Rig]:
    async with (
        telling(database, *addresses, mail=mail) as notifier,
        opened_rig(database, directory, events=notifier) as rig,
    ):
        yield rig


async def rendered(rig: Rig, machine: Machine, picture: bytes) -> None:
    """The machine does what it was given, with this picture."""
    (assign,) = await machine.given()
    await machine.start(assign.attempt)
    for output in assign.expected:
        await machine.write(assign.attempt, output.name, picture)
    await machine.exit(assign.attempt)


@pytest.mark.both_databases
async def test_the_end_of_a_task_is_told_with_its_last_frame(database: Database, tmp_path: Path) -> None:
    with Webhook() as hook, MailServer() as mails:
        async with farm(database, tmp_path, hook.url, mail=mails.url) as rig:
            machine = await joined(rig, works=False)
            task_id = await rig.submit("1-2", chunk_size=2, name="shot\n<!channel> @everyone", notify=True)
            await rendered(rig, machine, png())
            await rig.ended(task_id)
            await until(lambda: hook.got and mails.got, "messages")
            await rig.assert_sound()
        (told,), ((recipients, mail),) = hook.got, mails.got
        assert told["title"] == f"Task {task_id} shot <\u200b!channel> @\u200beveryone: succeeded"
        assert told["type"] == "success"
        for words in (
            "Frames: 2 of 2 (1-2)",
            f"renderonline download {task_id}",
            "https://farm.example.org",
            "a.scene",
        ):
            assert words in told["message"]
        assert attached(told) == [("frame_0002.png", png())]
        user = (await rig_user(database))["email"]
        assert recipients == (user,)
        assert str(task_id) in mail["Subject"]
        assert "Frames: 2 of 2" in mail.get_body(("plain",)).get_content()
        assert attached(mail) == [("frame_0002.png", png())]


async def rig_user(database: Database) -> dict[str, Any]:
    from sqlalchemy import text

    row = await database.read(lambda connection: connection.execute(text("select * from users")).first())
    assert row is not None
    return dict(row._mapping)


@pytest.mark.both_databases
async def test_a_failed_task_is_told_once_with_its_reason_and_mail_only_to_who_asked(
    database: Database, tmp_path: Path
) -> None:
    with Webhook() as hook, MailServer() as mails:
        async with farm(database, tmp_path, hook.url, mail=mails.url) as rig:
            machine = await joined(rig, works=False)
            task_id = await rig.submit("1")
            (assign,) = await machine.given()
            await machine.start(assign.attempt)
            await machine.exit(assign.attempt, "failed", failure="scene", reason="Error: no camera")
            await rig.ended(task_id)
            rig.events.publish("task", {"task_id": task_id, "status": "failed"})
            await until(lambda: hook.got, "message")
        assert [told["title"].rpartition(": ")[2] for told in hook.got] == ["failed"]
        assert hook.got[0]["type"] == "failure"
        assert "no camera" in hook.got[0]["message"]
        assert f"renderonline logs {task_id}" in hook.got[0]["message"]
        assert not attached(hook.got[0])
        assert not mails.got


async def test_a_message_of_a_success_names_what_was_missing(database: Database, tmp_path: Path) -> None:
    with Webhook() as hook:
        async with farm(database, tmp_path, hook.url) as rig:
            machine = await joined(rig, works=False)
            task_id = await rig.submit("1")
            (assign,) = await machine.given()
            await machine.start(assign.attempt)
            await machine.write(assign.attempt, "frame_0001.png")
            await machine.exit(assign.attempt, warnings=[f"{one}.png is missing @everyone" for one in range(7)])
            await rig.ended(task_id)
            await until(lambda: hook.got, "message")
    assert hook.got[0]["title"].endswith(": succeeded, with warnings")
    assert "Warning: 4.png is missing @\u200beveryone\nand 2 more warnings\n" in hook.got[0]["message"]


async def test_a_machine_that_the_farm_benches_is_told(database: Database, tmp_path: Path) -> None:
    with Webhook() as hook:
        async with farm(database, tmp_path, hook.url) as rig:
            machine = await joined(rig, slots=2)
            now_us = rig.farm.clocks.now().us
            bench = partial(bench_machine, machine_id=machine.machine_id, since_us=now_us, reason="benched: it fails")
            await database.write(bench)
            await rig.dispatcher.refresh()
            await until(lambda: hook.got, "message")
        assert hook.got[0]["title"].endswith("is benched")
        assert "benched: it fails" in hook.got[0]["message"]


async def test_a_benched_machine_is_told_once_until_it_is_well(database: Database) -> None:
    with Webhook() as hook:
        async with telling(database, hook.url) as notifier:
            for event in (BENCHED, BENCHED, {**BENCHED, "benched": False}, BENCHED):
                notifier.publish("machine", event)
            await until(lambda: len(hook.got) == 2, "two messages")
        assert hook.got[0]["title"] == "Machine node7 is benched"
        assert "chunks of three tasks failed there" in hook.got[0]["message"]
        assert "renderonline machine enable node7" in hook.got[0]["message"]


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_a_channel_that_hangs_holds_up_neither_the_farm_nor_the_others(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOST_WAITING", 3)
    monkeypatch.setattr(events, "CLOSE_S", 0.2)
    with Webhook() as hangs, Webhook() as hook, structlog.testing.capture_logs() as logs:
        hangs.waits.clear()
        async with farm(database, tmp_path, hangs.url, hook.url) as rig:
            await joined(rig)
            for number in range(1, 7):
                task_id = await rig.submit("1")
                assert (await rig.ended(task_id)).is_success
                await until(lambda wanted=number: len(hook.got) == wanted, "message")
            began = time.monotonic()
        assert time.monotonic() - began < 5
        assert not hangs.got
        dropped = [line for line in logs if line["event"].startswith("message is dropped")]
        assert len(dropped) in (2, 3)
        assert "s3cret-word" not in str(logs)


def test_what_fails_is_tried_again_the_last_time_without_the_picture_and_logged_without_secrets(
    tmp_path: Path,
) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(png())
    with structlog.testing.capture_logs() as logs, Webhook(500, 413) as hook:
        channel = Channel("Notify[9]", hook.url, pause_s=0.01)
        channel.tell(Message("A title", "Some text", good=True, picture=as_landed(picture, png())))
        wait_for(lambda: hook.got, "message")
        assert (hook.calls, attached(hook.got[0])) == (3, [])
        hook.answers += [401, 401, 401]
        channel.tell(MESSAGE)
        wait_for(lambda: channel.idle, "end of the tries")
        hook.answers.clear()
        channel.tell(MESSAGE)
        wait_for(lambda: len(hook.got) == 2, "message after a failure")
    (line,) = [line for line in logs if line["channel"] == "Notify[9] (json)"]
    assert line["reason"] == "it answered 401"
    assert "apprise" in line["hint"]
    assert "s3cret-word" not in str(logs)


def as_landed(path: Path, content: bytes) -> Member:
    """A result that landed with this content."""
    return Member(path.name, path, len(content), 0, None, hashlib.blake2b(content, digest_size=32).hexdigest())


@pytest.mark.parametrize("name", ["large.png", "text.png", "link.png", "gone.png", "altered.png"])
def test_only_small_pictures_as_they_landed_are_attached(tmp_path: Path, name: str) -> None:
    contents = {"large.png": png() + bytes(events.LARGEST_PICTURE), "text.png": b"secret"}
    for its_name, content in contents.items():
        (tmp_path / its_name).write_bytes(content)
    (tmp_path / "altered.png").write_bytes(png().swapcase())
    (tmp_path / "real.png").write_bytes(png())
    (tmp_path / "link.png").symlink_to("real.png")
    with Webhook() as hook:
        channel = Channel("Notify[0]", hook.url, pause_s=0.01)
        channel.tell(
            Message("A title", "Some text", good=True, picture=as_landed(tmp_path / name, contents.get(name, png())))
        )
        wait_for(lambda: channel.idle, "end")
        assert not attached(hook.got[0])


@pytest.mark.parametrize("address", ["nonsense", "nope://x", "json://", "slack://to/few", ""])
def test_an_address_that_is_none_is_named_without_being_shown(address: str) -> None:
    with pytest.raises(InvalidRequest, match=r"setting Notify\[0\].*apprise") as caught:
        Channel("Notify[0]", address, pause_s=0.01)
    assert not address or f"{address}" not in caught.value.message.replace("(nope)", "")


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_a_mail_is_promised_only_where_the_farm_sends_mail(migrated_url: str, tmp_path: Path) -> None:
    scene = ("a.blend", b"BLENDER scene")
    async with renderapi(tmp_path / "data", connection_string=migrated_url) as api:
        reply = await api.submit({"engine": "blender", "notify": True}, scene, version=2)
        assert (reply.status, "NotifyMail" in reply.json()["detail"]) == (400, True)
        assert not [name for name in api.tree() if name.endswith(".blend")]
    with MailServer() as mails:
        async with renderapi(tmp_path / "data", connection_string=migrated_url, notify_mail=mails.url) as api:
            reply = await api.submit({"engine": "blender", "notify": True}, scene, version=2)
            assert (reply.status, reply.json()["notify"]) == (201, True)
            assert "notify_mail" not in repr(api.settings)


async def test_nothing_is_read_or_sent_when_nobody_wants_it(database: Database) -> None:
    async with telling(database) as notifier:
        before = {task.get_name() for task in asyncio.all_tasks()}
        notifier.publish("task", {"task_id": 1, "status": "succeeded"})
        assert {task.get_name() for task in asyncio.all_tasks()} == before


def test_texts_of_strangers_are_short_and_on_one_line() -> None:
    assert tame("a\nb\x1b[1m\u202e") == "a b [1m "
    assert len(tame("x" * 10_000)) == 500
    assert tame("ann@example.org") == "ann@example.org"
