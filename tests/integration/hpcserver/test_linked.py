"""A real HPCServer on the link of a stand-in RenderAPI (R5 Attempts and reports)."""

import hashlib
import json
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from OpenImageIO import ROI, ImageBuf, ImageSpec

from renderonline.farm.result_names import MoreResults
from renderonline.protocol.link import PROTOCOL, Cancel, Limits
from tests.support.fake_renderapi import FakeRenderAPI
from tests.support.machines import Node, linked_node, png, until

Wire = dict[str, int | str]


@pytest.fixture
async def api() -> AsyncIterator[FakeRenderAPI]:
    async with FakeRenderAPI() as server:
        yield server


@pytest.fixture
def node(tmp_path: Path, api: FakeRenderAPI) -> Iterator[Node]:
    with linked_node(tmp_path, api) as running:
        yield running


async def test_hello_says_what_the_machine_is(api: FakeRenderAPI, node: Node) -> None:
    hello = await api.linked()
    assert (hello["protocol"], hello["machine_id"], hello["secret"]) == (PROTOCOL, 1000, "secret")
    assert {"name": "sh", "version": "", "renderers": []} in hello["engines"]
    assert (hello["name"], hello["slots"], hello["held"], hello["full"]) == ("node", 1, [], "")
    assert hello["cpu_count"] >= 1
    assert hello["memory_mib"] > 100
    assert len(hello["instance"]) == 16
    assert (hello["sandbox"], hello["sandbox_advice"]) == ("bwrap", "")
    await until((node.home / "hpcserver.json").exists, "ready file")
    assert json.loads((node.home / "hpcserver.json").read_text())["pid"] == node.pid


async def test_attempt_is_started_its_files_reported_and_its_end(
    api: FakeRenderAPI, node: Node, tmp_path: Path
) -> None:
    await api.linked()
    await api.assign(1, ["-c", "mkdir sub; printf abc > sub/a.txt; ln -s a.txt sub/link; echo done"], tmp_path / "a/1")
    exited = await api.report(1, "exited")
    assert (exited["outcome"], exited["exit_code"], exited["failure"]) == ("succeeded", 0, "")
    kinds = [report["type"] for report in api.reports(1)]
    assert kinds == ["started", "result", "exited"]
    assert [report["seq"] for report in api.reports(1)] == [1, 2, 3]
    assert {report["token"] for report in api.reports(1)} == {"token-1"}
    result = await api.report(1, "result")
    assert (result["name"], result["size"], result["crc32"]) == ("sub/a.txt", 3, zlib.crc32(b"abc"))
    assert result["digest"] == hashlib.blake2b(b"abc", digest_size=32).hexdigest()
    assert api.log_text(1) == "done\n"


@pytest.fixture
def unboxed(tmp_path: Path, api: FakeRenderAPI) -> Iterator[Node]:
    with linked_node(tmp_path, api, sandbox="off") as running:
        yield running


@pytest.mark.usefixtures("unboxed")
async def test_directories_are_made_only_for_engines_that_put_something_into_them(
    api: FakeRenderAPI, tmp_path: Path
) -> None:
    """Without a box: bubblewrap puts a directory into the temporary one when the home lies below /tmp, as here."""
    await api.linked()
    places = set[str]()
    for number in range(1, 6):
        await api.assign(number, ["-c", 'echo "$PWD $HOME"; exit 0'], tmp_path / f"a/{number}")
        assert (await api.report(number, "exited"))["outcome"] == "succeeded"
        places.add(api.log_text(number))
    assert len(places) == 1
    assert not (tmp_path / "a").exists()
    await api.assign(6, ["-c", "mkdir -p sub $HOME/x; ln -s /etc sub/link; echo a > sub/b"], tmp_path / "a/6")
    await api.report(6, "exited")
    assert [result["name"] for result in api.reports(6, "result")] == ["sub/b"]
    assert (tmp_path / "a/6/sub/b").read_text() == "a\n"
    await api.assign(7, ["-c", 'ls -A "$HOME" "$TMPDIR" .'], tmp_path / "a/7")
    await api.report(7, "exited")
    assert "x" not in api.log_text(7).split()
    assert api.log_text(7) not in places
    await api.assign(8, ["-c", f"test $PWD = {tmp_path}/a/8"], tmp_path / "a/8")
    assert (await api.report(8, "exited"))["outcome"] == "succeeded", "its command names the directory"


async def test_files_left_where_an_attempt_has_a_directory_already_are_no_results(
    api: FakeRenderAPI, node: Node, tmp_path: Path
) -> None:
    await api.linked()
    (tmp_path / "1").mkdir()
    (tmp_path / "1/sub").symlink_to(tmp_path)
    await api.assign(1, ["-c", "mkdir sub; touch sub/x"], tmp_path / "1")
    assert (await api.report(1, "exited"))["failure"] == "bad_output"
    assert not (tmp_path / "x").exists()


async def test_what_the_engine_warns_of_is_reported_with_its_end(
    api: FakeRenderAPI, node: Node, tmp_path: Path
) -> None:
    await api.linked()
    script = "echo Warning: a is missing; echo Warning: a is missing; echo odd b; "
    script += "for i in $(seq 200); do echo odd $i; done"
    reading = {"warnings": [{"regex": "^Warning: (.+)$"}, {"regex": "^odd "}]}
    await api.assign(1, ["-c", script], tmp_path / "1", reading=reading)
    exited = await api.report(1, "exited")
    assert exited["warnings"][:3] == ["a is missing", "odd b", "odd 1"]
    assert exited["warnings"][9:] == ["and at least 91 more: the log has them"]


async def test_engine_sees_no_secret_and_has_its_own_home(api: FakeRenderAPI, node: Node, tmp_path: Path) -> None:
    await api.linked()
    environment = {"FLAVOUR": "vanilla", "HOME": "/root", "RENDERONLINE_ATTEMPT": "forged"}
    await api.assign(1, ["-c", "env"], tmp_path / "1", environment=environment)
    await api.report(1, "exited")
    seen = dict(line.partition("=")[::2] for line in api.log_text(1).splitlines())
    assert "SECRET_TOKEN" not in seen
    assert seen["FLAVOUR"] == "vanilla"
    assert seen["RENDERONLINE_ATTEMPT"] == node.mark + "1/"
    assert Path(seen["HOME"]).is_relative_to(node.home / "scratch")
    assert Path(seen["TMPDIR"]).is_relative_to(node.home / "scratch")
    await until(lambda: not Path(seen["HOME"]).exists(), "end of the scratch directory")


async def test_picture_that_the_engine_saved_is_reported_while_it_runs(
    api: FakeRenderAPI, node: Node, tmp_path: Path
) -> None:
    await api.linked()
    picture = tmp_path / "picture.png"
    picture.write_bytes(png())
    wait = f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
    script = f"cp {picture} f1.png; echo Saved: $PWD/f1.png; {wait}; cp {picture} f2.png"
    reading = {"progress": [{"regex": "Saved: (.*)", "kind": "saved"}]}
    await api.assign(1, ["-c", script], tmp_path / "1", names=("f1.png", "f2.png"), reading=reading)
    assert (await api.report(1, "result"))["name"] == "f1.png"
    assert not api.reports(1, "exited")
    (tmp_path / "go").touch()
    assert (await api.report(1, "exited"))["outcome"] == "succeeded"
    results = api.reports(1, "result")
    assert [result["name"] for result in results] == ["f1.png", "f2.png"]
    assert (results[0]["facts"]["width"], results[0]["facts"]["height"]) == (4, 3)


def picture_of(path: Path, value: float | None, pixel_type: str = "uint8") -> Path:
    """A real picture of 4 x 3 pixels, of one value or (None) of different ones."""
    picture = ImageBuf(ImageSpec(4, 3, 3, pixel_type))
    values = np.arange(36, dtype=np.float32).reshape(3, 4, 3) / 36
    picture.set_pixels(ROI(), values if value is None else np.full_like(values, value))
    assert picture.write(str(path)), picture.geterror()
    return path


PICTURES: tuple[tuple[str, float | None, Wire, str], ...] = (
    ("f.exr", np.nan, {}, "36 values of channel R, G, B are not numbers (NaN or infinite)"),
    ("f.png", None, {"width": 8, "height": 6}, "it has 4 x 3 pixels, the task asks for 8 x 6"),
    ("f.png", 0.0, {"constant": "fail"}, "all its pixels have the same colour"),
    ("f.png", 0.0, {"constant": "warn"}, ""),
    ("f.png", None, {"width": 4, "height": 3, "constant": "fail"}, ""),
)


async def test_a_wrong_picture_is_a_failure_with_a_reason(api: FakeRenderAPI, node: Node, tmp_path: Path) -> None:
    await api.linked()
    for number, (name, value, rules, reason) in enumerate(PICTURES, 1):
        picture = picture_of(tmp_path / name, value, "float" if name.endswith("exr") else "uint8")
        await api.assign(number, ["-c", f"cp {picture} ."], tmp_path / str(number), names=(name,), reading=rules)
        exited = await api.report(number, "exited")
        ending = ("failed", "bad_output") if reason else ("succeeded", "")
        assert (exited["outcome"], exited["failure"]) == ending, (name, rules)
        assert exited["reason"].startswith(f"{name} is not a usable picture: {reason}" if reason else "")
        assert ("have the same colour" in api.log_text(number)) is (rules.get("constant") == "warn")


FAILURES = (
    ("true", "missing_output"),
    ("head -c 60 {picture} > f.png", "bad_output"),
    ("ln -s {picture} f.png", "bad_output"),
    ("cat {picture} > g.png; ln g.png f.png", "bad_output"),
    ("mkfifo f.png", "bad_output"),
    ("echo not a picture > f.png", "bad_output"),
    ("cp {picture} f.png; exit 3", "error"),
    ("cp {picture} f.png; kill -SEGV $$", "crash"),
    ("cp {picture} f.png; kill -KILL $$", "crash"),
    ("cp {picture} f.png; exit 9", "scene"),
    ("cp {picture} f.png; echo Error: bad scene", "scene"),
)


async def test_exit_code_zero_is_not_enough(api: FakeRenderAPI, node: Node, tmp_path: Path) -> None:
    await api.linked()
    picture = tmp_path / "picture.png"
    picture.write_bytes(png())
    reading = {"failures": [{"regex": "^Error:", "kind": "scene"}], "exit_codes": {"9": "scene"}}
    for number, (script, failure) in enumerate(FAILURES, 1):
        argv = ["-c", script.format(picture=picture)]
        await api.assign(number, argv, tmp_path / str(number), names=("f.png",), reading=reading)
        exited = await api.report(number, "exited")
        assert (exited["outcome"], exited["failure"]) == ("failed", failure), script
        assert exited["reason"], script
        assert len(api.reports(number, "result")) == (1 if "cp" in script else 0), script


@pytest.mark.parametrize(("frames", "names"), [(("f.png",), ["notes.svg"]), (("f.png", "g.png"), [])])
async def test_files_besides_that_a_crash_leaves_behind_are_a_warning_when_the_frames_are_there(
    api: FakeRenderAPI, node: Node, tmp_path: Path, frames: tuple[str, ...], names: list[str]
) -> None:
    await api.linked()
    picture = tmp_path / "picture.png"
    picture.write_bytes(png())
    script = f"cp {picture} f.png; cp {picture} mask.png; echo half > notes.svg; kill -SEGV $$"
    more, reading = MoreResults(take=("*",)), {"progress": [{"regex": "Saved: (.*)", "kind": "saved"}]}
    await api.assign(1, ["-c", script], tmp_path / "1", names=frames, more=more, reading=reading)
    exited = await api.report(1, "exited")
    assert (exited["outcome"], exited["failure"]) == ("failed", "crash")
    assert [one["name"] for one in api.reports(1, "result")] == ["f.png", "mask.png"]
    assert [warning.split()[0] for warning in exited.get("warnings", [])] == names


async def test_file_that_was_there_before_is_no_result(api: FakeRenderAPI, node: Node, tmp_path: Path) -> None:
    await api.linked()
    directory = tmp_path / "1"
    directory.mkdir()
    (directory / "f.png").write_bytes(png())
    await api.assign(1, ["-c", "exit 0"], directory, names=("f.png",))
    assert (await api.report(1, "exited"))["failure"] == "missing_output"


IMPOSSIBLE: tuple[tuple[dict[str, object], str], ...] = (
    ({"engine": "nosuch"}, "no_engine"),
    ({"inputs": ("/no/such/scene.blend",)}, "no_input"),
    ({"inputs": ("/tmp",)}, "no_input"),
    ({"reading": {"progress": "nonsense"}}, "machine"),
)


async def test_what_can_not_start_says_why(api: FakeRenderAPI, node: Node, tmp_path: Path) -> None:
    await api.linked()
    for number, (more, failure) in enumerate(IMPOSSIBLE, 1):
        await api.assign(number, ["-c", "exit 0"], tmp_path / str(number), **more)
        exited = await api.report(number, "exited")
        assert (exited["outcome"], exited["failure"]) == ("failed", failure), more
        assert not api.reports(number, "started"), more


async def test_relative_directory_is_refused(api: FakeRenderAPI, node: Node) -> None:
    await api.linked()
    await api.assign(1, ["-c", "exit 0"], Path("somewhere"))
    assert (await api.report(1, "exited"))["failure"] == "machine"


async def test_files_are_looked_for_beside_the_start_where_others_were_there(
    api: FakeRenderAPI, node: Node, tmp_path: Path
) -> None:
    await api.linked()
    await api.assign(1, ["-c", "true"], tmp_path / "1")
    await api.report(1, "exited")
    await api.assign(2, ["-c", "sleep 600"], tmp_path / "2", inputs=("/no/such/scene.blend",))
    exited = await api.report(2, "exited")
    assert (exited["outcome"], exited["failure"]) == ("failed", "no_input")
    assert api.reports(2, "started")
    assert not node.engines()


async def test_assignment_is_idempotent(api: FakeRenderAPI, node: Node, tmp_path: Path) -> None:
    await api.linked()
    script = f"echo x >> {tmp_path}/starts; sleep 0.3"
    for _ in range(3):
        await api.assign(1, ["-c", script], tmp_path / "1")
    await api.report(1, "started")
    await api.assign(1, ["-c", script], tmp_path / "1")
    await api.report(1, "exited")
    assert (tmp_path / "starts").read_text() == "x\n"
    assert len(api.reports(1, "exited")) == 1


async def test_cancel_kills_the_tree_and_says_so(api: FakeRenderAPI, node: Node, tmp_path: Path) -> None:
    await api.linked()
    await api.assign(1, ["-c", "trap '' TERM; setsid sleep 600 & sleep 600; sleep 600"], tmp_path / "1")
    await api.report(1, "started")
    await until(lambda: len(node.engines()) == 3, "processes")
    await api.send(Cancel(1, "not wanted"))
    exited = await api.report(1, "exited")
    assert (exited["outcome"], exited["reason"], exited["failure"]) == ("canceled", "not wanted", "")
    assert not node.engines()


async def test_more_assignments_than_slots_wait_and_can_be_canceled(
    api: FakeRenderAPI, node: Node, tmp_path: Path
) -> None:
    await api.linked()
    await api.assign(1, ["-c", "sleep 600"], tmp_path / "1")
    await api.report(1, "started")
    await api.assign(2, ["-c", "echo never"], tmp_path / "2")
    await api.assign(3, ["-c", "echo third"], tmp_path / "3")
    await api.send(Cancel(2))
    assert (await api.report(2, "exited"))["outcome"] == "canceled"
    assert not api.reports(2, "started")
    await api.send(Cancel(1))
    assert (await api.report(3, "exited"))["outcome"] == "succeeded"


async def test_limits_end_an_attempt(api: FakeRenderAPI, node: Node, tmp_path: Path) -> None:
    await api.linked()
    await api.assign(1, ["-c", "sleep 600"], tmp_path / "1", limits=Limits(time_s=0.3))
    exited = await api.report(1, "exited")
    assert (exited["outcome"], exited["failure"]) == ("timed_out", "timed_out")
    await api.assign(2, ["-c", "sleep 600"], tmp_path / "2", limits=Limits(stall_s=1.5))
    assert (await api.report(2, "exited"))["outcome"] == "stalled"
    hungry = "import time; x = bytearray(300 << 20); time.sleep(600)"
    await api.assign(3, ["-c", hungry], tmp_path / "3", engine="python", limits=Limits(memory_mib=150))
    exited = await api.report(3, "exited")
    assert (exited["outcome"], exited["failure"]) == ("failed", "out_of_memory")
    assert exited["peak_memory_mib"] > 150


async def test_engine_that_only_computes_is_not_stalled(api: FakeRenderAPI, node: Node, tmp_path: Path) -> None:
    await api.linked()
    script = "import time\nend = time.monotonic() + 3\nwhile time.monotonic() < end: pass"
    await api.assign(1, ["-c", script], tmp_path / "1", engine="python", limits=Limits(stall_s=1.5))
    assert (await api.report(1, "exited"))["outcome"] == "succeeded"


async def test_progress_is_told(api: FakeRenderAPI, node: Node, tmp_path: Path) -> None:
    await api.linked()
    reading = {"progress": [{"regex": "Frame ([0-9]+)", "kind": "frame"}]}
    await api.assign(1, ["-c", "echo Frame 12; sleep 600"], tmp_path / "1", frames=(11, 12), reading=reading)
    await api.until(lambda: any(message["type"] == "progress" for message in api.messages), "progress")
    progress = next(message for message in api.messages if message["type"] == "progress")
    assert (progress["attempt"], progress["frame"], progress["fraction"]) == (1, 12, 0.5)


async def test_reports_wait_for_their_acknowledgement_over_links(
    api: FakeRenderAPI, node: Node, tmp_path: Path
) -> None:
    await api.linked()
    api.acknowledge = False
    await api.assign(1, ["-c", f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; exit 4"], tmp_path / "1")
    await api.report(1, "started")
    await api.cut()
    (tmp_path / "go").touch()
    hello = await api.linked(2)
    assert [held["attempt"] for held in hello["held"]] == [1]
    assert (await api.report(1, "exited"))["exit_code"] == 4
    assert [report["seq"] for report in api.reports(1)] == [1, 1, 2]
    await api.ack()
    await api.cut()
    assert (await api.linked(3))["held"] == []


async def test_attempt_that_is_not_kept_is_killed(api: FakeRenderAPI, node: Node, tmp_path: Path) -> None:
    await api.linked()
    await api.assign(1, ["-c", "sleep 600"], tmp_path / "1")
    await api.report(1, "started")
    api.keep = ()
    await api.cut()
    assert (await api.report(1, "exited"))["outcome"] == "canceled"
    assert not node.engines()


async def test_log_goes_on_where_renderapi_has_it(api: FakeRenderAPI, node: Node, tmp_path: Path) -> None:
    await api.linked()
    script = f"echo first; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo second"
    await api.assign(1, ["-c", script], tmp_path / "1")
    await api.until(lambda: api.log_text(1) == "first\n", "first line")
    api.log_offsets = {"1": 6}
    await api.cut()
    await api.linked(2)
    (tmp_path / "go").touch()
    await api.report(1, "exited")
    assert [message["text"] for message in api.messages if message["type"] == "log"] == ["first\n", "second\n"]


async def test_flood_of_output_does_not_delay_a_report(api: FakeRenderAPI, node: Node, tmp_path: Path) -> None:
    await api.linked()
    node_slots = (
        "i=0; while true; do echo line $i xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done"
    )
    await api.assign(1, ["-c", f"({node_slots}) & sleep 1; kill %1; exit 0"], tmp_path / "1")
    exited = await api.report(1, "exited")
    assert time.time() - exited["at_us"] / 1e6 < 1.0
