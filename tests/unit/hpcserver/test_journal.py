"""The journal: durable before it counts, and patient with a disk that refuses."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import orjson
import pytest

from renderonline.farm.errors import NoSpace
from renderonline.hpcserver import journal as module
from renderonline.hpcserver.journal import Append, Held, Journal, Outbox
from renderonline.protocol.link import Exited, Started


def started(attempt: int) -> Started:
    return Started(0, attempt, "t", 1, 2)


def exited(attempt: int) -> Exited:
    return Exited(0, attempt, "t", 1, "succeeded")


async def until_seq(journal: Journal, seq: int) -> None:
    async with asyncio.timeout(10):
        while journal.last_seq < seq:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    opened = Journal(tmp_path / "outbox.db")
    await opened.open()
    yield opened
    await opened.close()


async def test_reports_keep_their_order_and_come_out_with_their_numbers(journal: Journal) -> None:
    for attempt in range(600):
        journal.report(started(attempt))
    await until_seq(journal, 600)
    seen: list[int] = []
    while entries := await journal.after(len(seen)):
        assert [seq for seq, _ in entries] == list(range(len(seen) + 1, len(seen) + len(entries) + 1))
        seen += [orjson.loads(body)["attempt"] for _, body in entries]
    assert seen == list(range(600))


async def test_attempt_is_held_until_its_end_is_acknowledged(journal: Journal) -> None:
    await journal.store(Held(1, "t", "/d"))
    assert 1 in journal.held
    journal.report(started(1))
    journal.report(exited(1))
    await until_seq(journal, 2)
    journal.acknowledge(1)
    assert 1 in journal.held
    assert not journal.is_settled
    journal.acknowledge(2)
    assert 1 not in journal.held
    assert journal.is_settled
    journal.acknowledge(99)  # of more than was ever sent
    assert journal.acknowledged == 2


async def test_acknowledgement_alone_reaches_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_ACKNOWLEDGE_S", 0.01)
    first = Journal(tmp_path / "outbox.db")
    await first.open()
    await first.store(Held(1, "t", "/d"))
    journal_report = exited(1)
    first.report(journal_report)
    await until_seq(first, 1)
    first.acknowledge(1)
    await first.close()
    second = Journal(tmp_path / "outbox.db")
    await second.open()
    assert (second.held, second.last_seq) == ({}, 0)
    await second.close()


async def test_next_run_reports_what_did_not_end_as_lost(tmp_path: Path) -> None:
    first = Journal(tmp_path / "outbox.db")
    await first.open()
    await first.store(Held(1, "t", "/d"))
    await first.store(Held(2, "t", "/d"))
    first.report(exited(2))
    await until_seq(first, 1)
    await first.close()
    second = Journal(tmp_path / "outbox.db")
    await second.open()
    assert sorted(second.held) == [1, 2]
    await until_seq(second, 2)
    reports = [orjson.loads(body) for _, body in await second.after(1)]
    assert [(report["attempt"], report["failure"]) for report in reports] == [(1, "lost_process")]
    await second.close()


async def test_refusing_disk_keeps_reports_and_takes_no_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    (tmp_path / "outbox.db").mkdir()
    journal = Journal(tmp_path / "outbox.db")
    await journal.open()
    assert "can't be written" in journal.full
    with pytest.raises(NoSpace):
        await journal.store(Held(1, "t", "/d"))
    assert 1 not in journal.held
    journal.report(started(2))
    assert not await journal.after(0)
    (tmp_path / "outbox.db").rmdir()
    await until_seq(journal, 1)
    assert journal.full == ""
    await journal.store(Held(1, "t", "/d"))
    await journal.close()


async def test_start_waits_a_moment_to_share_the_commit_of_the_end(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[int] = []
    commit = Outbox.commit

    def counted(outbox: Outbox, reports: Sequence[Append], acknowledged: int = 0) -> Sequence[int]:
        commits.append(len(reports))
        return commit(outbox, reports, acknowledged)

    monkeypatch.setattr(Outbox, "commit", counted)
    journal.report(started(1))
    await asyncio.sleep(0)
    journal.report(exited(1))
    await until_seq(journal, 2)
    assert commits == [2]
    journal.report(started(2))
    await until_seq(journal, 3)
    assert commits == [2, 1]
