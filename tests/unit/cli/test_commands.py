"""Every command as a person types it, against a server that answers by a script."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from renderonline.cli.main import run
from renderonline.cli.task_commands import follow
from renderonline.engines.blender.launcher.inputs import FOLDER
from renderonline.rnoclient.scenes import SceneInputs
from renderonline.rnoclient.sdk.client import Client
from tests.support.scripted_server import Answer, Asked, ScriptedServer, free_port

TASK: dict[str, Any] = {
    "task_id": 7,
    "name": "shot \x1b[31m",
    "user_id": 1,
    "email": "ada@studio.org",
    "engine": "blender",
    "engine_id": 1,
    "status": "succeeded",
    "priority": 50,
    "running_limit": 0,
    "paused": False,
    "file_name": "shot.blend",
    "file_size": 1234,
    "arguments": {"format": "PNG"},
    "frames": "1-2",
    "frames_total": 2,
    "frames_done": 2,
    "chunks": {"succeeded": 1},
    "queued": "2026-11-21T12:00:00Z",
    "started": None,
    "ended": None,
    "reason": None,
    "machine_ids": [1000],
    "notify": False,
    "progress": 1.0,
    "latest": {"name": "frame_0002.png", "facts": {"width": 640, "render_time_s": 1.5, "constant": True}},
}
ATTEMPT = {
    "attempt_id": 99,
    "chunk_id": 1,
    "machine_id": 1000,
    "machine": "box",
    "state": "ended",
    "outcome": "failed",
    "assigned": "2026-11-21T12:00:00Z",
    "started": None,
    "ended": None,
    "exit_code": 1,
    "failure": "scene",
    "reason": "no camera",
    "frames": "1-2",
    "progress": None,
}
MACHINE = {
    "machine_id": 1000,
    "name": "box",
    "status": "idle",
    "slots": 1,
    "wish": "active",
    "engines": [{"name": "blender", "version": "5.0.1"}],
    "ip_address": "",
    "port": 0,
    "reason": "",
    "sandbox": "landlock",
    "sandbox_advice": "apt-get install bubblewrap",
    "cards": [
        {
            "id": "GPU-1",
            "name": "RTX 4090",
            "kind": "cuda",
            "memory_mib": 24576,
            "usable": True,
            "unusable": "",
            "load": 0.37,
            "memory_used_mib": 1024,
        },
        {
            "id": "metal-0",
            "name": "",
            "kind": "metal",
            "memory_mib": 0,
            "usable": False,
            "unusable": "no device",
            "load": None,
            "memory_used_mib": 0,
        },
    ],
}
USER = {
    "user_id": 1,
    "email": "ada@studio.org",
    "first_name": "Ada",
    "last_name": "L",
    "role": "admin",
    "subscription_id": 1,
    "is_active": True,
}
FORMAT = {"id": "format", "type": "word", "default": "PNG", "choices": ["PNG"], "help": "Frames are written so."}
ENGINE = {"engine_id": 1, "name": "blender", "extensions": [".blend"], "is_enabled": True, "arguments": [FORMAT]}
SUBSCRIPTION = {"subscription_id": 1, "name": "all", "queue_limit": 10, "share": 1, "running_limit": 0}
SUBSCRIPTION |= {"keep_days": 30, "keep_mib": 0}


def page(*items: object) -> Answer:
    return Answer(body=json.dumps({"items": items, "next": None}).encode())


def one(item: object, status: int = 200) -> Answer:
    return Answer(status, json.dumps(item).encode())


def farm(asked: Asked) -> Answer:
    """A RenderAPI of one of everything."""
    path = asked.path.partition("?")[0].removeprefix("/renderapi/v2")
    answers = {
        "GET /me": one(USER),
        "GET /tasks": page(TASK),
        "POST /tasks": one(TASK, 201),
        "GET /tasks/7": one(TASK),
        "GET /tasks/7/attempts": page(ATTEMPT),
        "GET /tasks/7/explain": one({"reasons": ["No machine has blender."]}),
        "DELETE /tasks/7": Answer(204, b""),
        "GET /attempts/99/log": Answer(body=b"Fra:1\n\x1b[31mError\n", headers={"x-log-size": "19"}),
        "GET /events": Answer(body=b""),
        "GET /machines": page(MACHINE),
        "POST /machines": one(MACHINE, 201),
        "PATCH /machines/1000": one({**MACHINE, "tags": ["gpu"], "pool": "film", "hours": "Sat, Sun"}),
        "DELETE /machines/1000": Answer(204, b""),
        "POST /machines/invite": one(
            {
                "code": "ABCD-EFGH",
                "expires": "2026-11-22T12:00:00Z",
                "command": "renderonline node",
                "first": "Only this computer itself reaches it.",
            }
        ),
        "GET /users": page(USER),
        "POST /users": one({**USER, "token": "raw"}, 201),
        "PATCH /users/1": one(USER),
        "POST /users/1/token": one({"token": "raw"}),
        "GET /subscriptions": page(SUBSCRIPTION),
        "POST /subscriptions": one(SUBSCRIPTION, 201),
        "PATCH /subscriptions/1": one(SUBSCRIPTION),
        "GET /argtypes": page({"argtype_id": "width", "type": "natural", "regex": None}),
        "PUT /argtypes/width": one({"argtype_id": "width", "type": "natural", "regex": "1.*"}),
        "DELETE /argtypes/width": Answer(204, b""),
        "GET /engines": page(ENGINE),
        "POST /engines": one(ENGINE, 201),
        "PATCH /engines/1": one(ENGINE),
        "DELETE /engines/1": Answer(204, b""),
        "PATCH /tasks/7": one(TASK),
    }
    verbs = ("cancel", "pause", "resume", "retry", "requeue", "film")
    answers |= {f"POST /tasks/7/{verb}": one(TASK) for verb in verbs}
    missing = Answer(404, b'{"title": "x", "detail": "Not there.", "code": "not_found"}')
    return answers.get(f"{asked.method} {path}", missing)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.setenv("RENDERONLINE_CONFIG", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shot.blend").write_bytes(b"BLENDER")
    (tmp_path / "engine.toml").write_text("name = 'x'\n")
    with ScriptedServer(farm).running() as running:
        for name, value in (("URL", running.url), ("EMAIL", "ada@studio.org"), ("TOKEN", "t")):
            monkeypatch.setenv(f"RENDERONLINE_{name}", value)
        yield running


COMMANDS = [
    ("tasks", "shot"),
    ("tasks 7", "shot.blend"),
    ("tasks 7", "name=frame_0002.png, width=640, render_time_s=1.5, constant=yes"),
    ("submit shot.blend --notify", "Task 7"),
    ("submit shot.blend --frames 1-2 --arg format=PNG", "Task 7"),
    ("submit shot.blend --wait", "succeeded"),
    ("watch 7", "2 of 2 frames"),
    ("logs 7", "Fra:1"),
    ("logs 7 --list", "no camera"),
    ("logs 7 --attempt 99 --follow", "Error"),
    ("explain 7", "No machine has blender."),
    ("cancel 7", "task 7"),
    ("pause 7 7", "task 7"),
    ("pause 7 --now", "task 7"),
    ("requeue 7", "task 7"),
    ("requeue 7 --frames 1-2,5 --chunk 1 --chunk 2", "task 7"),
    ("change 7 --name Walk --priority 80 --limit 0", "task 7"),
    ("resume 7", "task 7"),
    ("retry 7", "task 7"),
    ("delete 7 --yes", "deleted"),
    ("machine list", "blender 5.0.1"),
    ("machine list", "Cards of box: RTX 4090, 1024 of 24576 MiB, 37% busy; metal-0, gets no work (no device)."),
    ("machine show box", "landlock"),
    ("machine invite", "renderonline node"),
    ("machine invite --uses 20", "Only this computer itself reaches it."),
    ("machine add 10.0.0.1:5001", "1000"),
    ("machine drain 1000 --reason disk", "Machine 1000 box"),
    ("machine disable 1000", "Machine 1000 box"),
    ("machine enable box", "active"),
    ("machine set box --pool film --tags gpu --hours Sat", "box: active, tags gpu, pool film, hours Sat, Sun."),
    ("machine rename 1000 big", "Machine 1000 box"),
    ("machine remove 1000 --yes", "removed"),
    ("user list", "ada@studio.org"),
    ("user add bob@studio.org", "raw"),
    ("user change ADA@studio.org --role operator", "changed"),
    ("user token 1", "raw"),
    ("user disable 1", "changed"),
    ("user enable 1", "changed"),
    ("subscription list", "all"),
    ("subscription add students --queue-limit 3", "added"),
    ("subscription change 1 --share 2 --running-limit 8", "changed"),
    ("engine list", ".blend"),
    ("engine add engine.toml", "added"),
    ("engine show blender", "Frames are"),
    ("engine argtype", "natural"),
    ("engine argtype width --type natural --regex 1.*", "width"),
    ("engine argtype width --delete", "removed"),
    ("engine disable blender", "disabled"),
    ("engine enable 1", "enabled"),
    ("engine remove blender --yes", "removed"),
]


@pytest.mark.parametrize(("line", "wanted"), COMMANDS)
def test_command_prints_for_people(
    line: str, wanted: str, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line.split()) == 0
    printed = capsys.readouterr().out
    assert wanted in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize("line", [line for line, _ in COMMANDS])
def test_command_prints_json_for_programs(
    line: str, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*line.split(), "--json"]) == 0
    for document in capsys.readouterr().out.splitlines():
        json.loads(document)


def test_one_task_that_can_not_be_changed_does_not_keep_the_others_from_it(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["retry", "8", "7", "9", "--json"]) == run(["retry", "8"]) != 0
    printed = capsys.readouterr()
    assert [task["task_id"] for task in json.loads(printed.out)] == [7]
    assert printed.err.count("Not there.") == 3


def test_requeue_and_change_send_what_was_typed(server: ScriptedServer) -> None:
    run(["requeue", "7", "--frames", "1-2", "--chunk", "5"])
    run(["change", "7", "--priority", "0"])
    run(["pause", "7", "--now"])
    run(["film", "7", "--kind", "webm@25"])
    sent = [(one.path, json.loads(one.body or "null")) for one in server.asked]
    assert sent == [
        ("/renderapi/v2/tasks/7/requeue", {"frames": "1-2", "chunks": [5]}),
        ("/renderapi/v2/tasks/7", {"priority": 0}),
        ("/renderapi/v2/tasks/7/pause?now=1", None),
        ("/renderapi/v2/tasks/7/film", {"film": "webm@25"}),
    ]


def test_machine_list_says_what_gets_a_better_box(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["machine", "list"]) == 0
    shown = capsys.readouterr()
    assert "landlock" in shown.out
    assert "box: apt-get install bubblewrap" in shown.err
    for name in ("sandbox", "sandbox_advice"):
        monkeypatch.delitem(MACHINE, name)
    assert run(["machine", "list"]) == 0  # of a farm that knows no boxes yet
    assert capsys.readouterr().err == ""


def test_machine_list_says_how_to_allow_more_slots(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MACHINE, "slots_claimed", 16)
    assert run(["machine", "list"]) == 0
    told = "box says it has 16 slots; 1 count. Allow more: renderonline machine set box --slots 16"
    assert told in capsys.readouterr().err


def test_machine_set_sends_what_was_typed(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    run(["machine", "set", "box", "--tags", "gpu  fast", "--pool", "", "--hours", "Sat, Sun"])
    assert json.loads(server.asked[-1].body) == {"tags": ["gpu", "fast"], "pool": "", "hours": "Sat, Sun"}
    run(["machine", "invite", "--slots", "16"])
    assert json.loads(server.asked[-1].body) == {"uses": 1, "hours": 24, "slots": 16}
    assert run(["machine", "enable", "boxes"]) == 4
    assert "renderonline machine list" in capsys.readouterr().err


def test_submit_sends_needs_and_limit(server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "shot.blend").write_text("scene")
    words = "--tag gpu --tag fast --pool film --memory 32000 --gpus 1 --engine-version 5.0 --sandbox bwrap --limit 4"
    assert run(["submit", str(tmp_path / "shot.blend"), *words.split()]) == 0
    body = server.asked[-1].body
    request = json.loads(body[body.index(b"{") : body.index(b"}\r\n") + 1])
    assert request["running_limit"] == 4
    assert request["needs"] == {
        "engine_version": "5.0",
        "tags": ["gpu", "fast"],
        "pool": "film",
        "memory_mib": 32000,
        "gpus": 1,
        "sandbox": "bwrap",
    }


def test_exit_codes_say_what_went_wrong(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tasks", "8"]) == 4
    assert run(["tasks", "--nonsense"]) == 2
    assert run(["nonsense"]) == 2
    assert run(["submit", "missing.blend"]) == 1
    monkeypatch.setenv("RENDERONLINE_URL", f"http://127.0.0.1:{free_port()}")
    assert run(["tasks"]) == 5
    monkeypatch.delenv("RENDERONLINE_TOKEN")
    assert run(["tasks"]) == 3
    assert "Error: " in capsys.readouterr().err


def test_unusable_place_is_told_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert run(["demo", "--output", str(tmp_path / "file" / "out")]) == 1
    assert "--output" in capsys.readouterr().err


def test_errors_are_json_for_programs(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tasks", "8", "--json"]) == 4
    assert json.loads(capsys.readouterr().err) == {"code": "not_found", "detail": "Not there."}


def test_failed_task_makes_watch_fail(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TASK, "status", "failed")
    monkeypatch.setitem(TASK, "reason", "No camera.")
    assert run(["watch", "7"]) == 1
    assert "renderonline logs 7" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["tasks"], ["tasks", "7"], ["watch", "7"], ["submit", "shot.blend", "--wait"]])
def test_a_task_with_warnings_never_shows_plain_success(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setitem(TASK, "warnings", ["a.png is not there", "b\x1b[31m"])
    assert run(words) == 0
    said = capsys.readouterr()
    listed = words == ["tasks"]
    assert "succeeded, 2 warnings" in said.out
    assert ("a.png is not there" in said.out + said.err) != listed
    assert "\x1b" not in said.out + said.err


@pytest.mark.parametrize(
    ("words", "told"),
    [((), 1), (("--chunk", "100000"), 0), (("--frames", "1-8", "--chunk", "8"), 0), (("--frames", "1-8"), 1)],
)
def test_simulations_that_are_not_baked_are_told_before_anything_is_sent(
    server: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    told: int,
) -> None:
    monkeypatch.setattr("renderonline.rnoclient.scenes.needed_files", lambda *_, **__: SceneInputs(unbaked=("Cloth",)))
    warning = "not baked: each part begins it from the start: Cloth; bake, or use --chunk 100000 for one part"
    monkeypatch.setitem(TASK, "warnings", [warning] * told)
    assert run(["submit", "shot.blend", *words]) == 0
    assert capsys.readouterr().err.count(warning) == told


def test_what_lies_outside_of_the_folder_is_sent_when_somebody_asks_to_pack_it(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when the scene names it from its own folder: `//../lib/oak.png`."""
    wood, sent = tmp_path / "oak.png", dict[str, Path]()
    wood.write_bytes(b"oak")
    others = {f"_outside/{number}/a.png": tmp_path / str(number) / "a.png" for number in range(40)}
    needed = SceneInputs(outside={**others, "_outside/lib/oak.png": wood})
    monkeypatch.setattr("renderonline.rnoclient.scenes.needed_files", lambda *_, **__: needed)
    monkeypatch.setattr(Client, "submit", lambda _, *__, inputs, **___: sent.update(inputs) or TASK)
    assert run(["submit", "shot.blend", "--pack"]) == 0
    assert sent["_outside/lib/oak.png"] == wood
    assert FOLDER in sent
    told = capsys.readouterr().err
    assert not [path for path in (*others.values(), wood) if f"from {path.parent}: {path.name}" not in told]


@pytest.mark.parametrize("words", [["tasks"], ["tasks", "7"], ["submit", "shot.blend"]])
def test_a_task_that_no_machine_can_take_says_so(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setitem(TASK, "stuck", "No machine has the engine blender.")
    assert run(words) == 0
    said = capsys.readouterr()
    told = "can't start" if words == ["tasks"] else "No machine has the engine blender."
    assert told in said.out + said.err


def test_deleting_asks_first(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert run(["delete", "7"]) == 130
    assert not [asked for asked in server.asked if asked.method == "DELETE"]


def test_login_is_checked_and_kept(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("  t \n")
    words = ["login", "--url", server.url, "--email", "ada@studio.org", "--token-file", str(token)]
    assert run(words) == 0
    for name in ("URL", "EMAIL", "TOKEN"):
        monkeypatch.delenv(f"RENDERONLINE_{name}")
    assert run(["tasks"]) == 0
    assert server.asked[-1].headers["token"] == "t"


def test_wrong_login_is_not_kept(server: ScriptedServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t")
    words = ["login", "--url", "http://127.0.0.1:1", "--email", "a@b.org", "--token-file", str(token)]
    assert run(words) == 5
    assert not (tmp_path / "config" / "client.json").exists()


def test_watch_shows_how_far_a_long_frame_is_where_no_bar_moves(capsys: pytest.CaptureFixture[str]) -> None:
    class Farm:
        def watch(self, _task_id: int) -> Iterator[dict[str, Any]]:
            for status, progress in (("queued", 0.0), ("running", 0.01), ("running", 0.04), ("running", 0.56)):
                yield {**TASK, "status": status, "progress": progress, "frames_done": 0}
            yield TASK

    assert follow(cast("Any", Farm()), 7, as_json=False) == 0
    assert capsys.readouterr().out.splitlines() == [
        "task 7 queued, 0 of 2 frames",
        "task 7 running, 0 of 2 frames, 0 %",
        "task 7 running, 0 of 2 frames, 50 %",
        "task 7 succeeded, 2 of 2 frames",
    ]
