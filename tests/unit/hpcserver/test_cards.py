"""Which graphics cards a computer has, as the makers' tools tell, and who has which of them."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from renderonline.engines.blender.install import LAUNCHER, Installation, launched
from renderonline.farm.errors import InvalidRequest
from renderonline.hpcserver import card_rack as tools
from renderonline.hpcserver.card_rack import CARDS, FoundCard, Rack, device_files, find_cards, variables
from renderonline.hpcserver.engine_setup import command

RTX, OLD = "GPU-1a2b3c4d-0000-1111-2222-333344445555", "GPU-99999999-0000-1111-2222-333344445555"
NVIDIA = f"""\
{RTX}, NVIDIA GeForce RTX 4090, 24564, 00000000:01:00.0, 37, 1024
{OLD}, Quadro K620, 2048, 00000000:41:00.0, [N/A], [N/A]
"""
AMD = json.dumps(
    [
        {
            "gpu": 0,
            "asic": {"market_name": "Radeon RX 7900 XTX", "asic_serial": "0x00000000AB12CD34"},
            "bus": {"bdf": "0000:0c:00.0"},
            "vram": {"type": "GDDR6", "size": {"value": 24560, "unit": "MB"}},
        }
    ]
)
ROCM = """WARNING: AMD GPU device(s) is/are in a low-power state
{"card1": {"Card Series": "Radeon Pro W6800", "Unique ID": "0x5e1f", "PCI Bus": "0000:0C:00.0",
"VRAM Total Memory (B)": "32195477504", "VRAM Total Used Memory (B)": "1048576"}, "system": {"Driver": "6.1"}}"""
INTEL = """{"device_list": [{"device_id": 0, "device_name": "Intel(R) Arc(TM) A770", "device_type": "GPU",
"pci_bdf_address": "0000:03:00.0", "uuid": "00000000-0000-0003-0000-000856a08086",
"memory_physical_size_byte": "16225243136"}]}"""
APPLE = """{"SPDisplaysDataType": [{"_name": "Apple M2 Max", "sppci_model": "Apple M2 Max",
"spdisplays_mtlgpufamilysupport": "spdisplays_metal3"}, {"_name": "old", "spdisplays_vram": "256 MB"}]}"""


def told(found: Sequence[FoundCard]) -> list[tuple[str, str, str, int]]:
    return [(one.card.kind, one.card.id, one.card.name, one.card.memory_mib) for one in found]


def test_tools_of_every_maker_are_understood() -> None:
    assert told(tools.nvidia(NVIDIA)) == [
        ("cuda", RTX, "NVIDIA GeForce RTX 4090", 24564),
        ("cuda", OLD, "Quadro K620", 2048),
    ]
    assert [(one.bus, one.load, one.memory_used_mib) for one in tools.nvidia(NVIDIA)] == [
        ("0000:01:00.0", 0.37, 1024),
        ("0000:41:00.0", -1.0, 0),
    ]
    assert told(tools.amd_cards(AMD)) == [("hip", "GPU-00000000ab12cd34", "Radeon RX 7900 XTX", 24560)]
    assert told(tools.amd_cards('{"gpu_data": ' + AMD + "}")) == told(tools.amd_cards(AMD))
    assert told(tools.rocm(ROCM)) == [("hip", "GPU-0000000000005e1f", "Radeon Pro W6800", 30704)]
    assert (tools.rocm(ROCM)[0].bus, tools.rocm(ROCM)[0].index) == ("0000:0c:00.0", 1)
    assert told(tools.intel_cards(INTEL)) == [
        ("oneapi", "00000000-0000-0003-0000-000856a08086", "Intel(R) Arc(TM) A770", 15473)
    ]
    assert told(tools.apple(APPLE)) == [("metal", "metal-0", "Apple M2 Max", 0)]


@pytest.mark.parametrize("text", ["", "No devices were found", "{", "[]", "[1, null]", '{"card0": 7}', "\0\n,,,,,\n"])
def test_tools_that_tell_nothing_give_no_card(text: str) -> None:
    for parser in (tools.nvidia, tools.amd_cards, tools.rocm, tools.intel_cards, tools.apple):
        assert parser(text) == []


def test_system_tells_of_cards_without_any_tool(tmp_path: Path) -> None:
    def card(number: int, bus: str, **files: str) -> None:
        device = tmp_path / "devices" / bus
        device.mkdir(parents=True)
        for name, content in files.items():
            (device / name).write_text(f"{content}\n")
        (tmp_path / f"card{number}").mkdir()
        (tmp_path / f"card{number}" / "device").symlink_to(device)

    card(0, "0000:00:02.0", vendor="0x8086", device="0x9a49")  # built into the processor
    card(1, "0000:0c:00.0", vendor="0x1002", device="0x744c", mem_info_vram_total=str(24 << 30),
         unique_id="ab12cd34", gpu_busy_percent="50", mem_info_vram_used=str(3 << 20))  # fmt: skip
    card(2, "0000:01:00.0", vendor="0x10de", device="0x2684")  # nvidia-smi tells of it
    found = tools.from_system(tmp_path)
    assert told(found) == [("hip", "GPU-00000000ab12cd34", "AMD graphics card 0x744c", 24 << 10)]
    assert (found[0].bus, found[0].load, found[0].memory_used_mib) == ("0000:0c:00.0", 0.5, 3)
    (named,) = tools.joined(tools.amd_cards(AMD), found)
    assert (named.card.name, named.load) == ("Radeon RX 7900 XTX", 0.5)


def test_cards_are_named_by_hand_where_no_tool_knows_them() -> None:
    rack = find_cards(("cuda:0:24576:RTX 4090", "hip:GPU-00000000ab12cd34"), ask=lambda _: "")
    assert told(rack.found) == [
        ("cuda", "0", "RTX 4090", 24576),
        ("hip", "GPU-00000000ab12cd34", "hip GPU-00000000ab12cd34", 0),
    ]
    assert find_cards(("none",), ask=lambda _: NVIDIA).found == ()
    for wrong in ("cuda", "riva:0", "cuda:a b", "cuda:"):
        with pytest.raises(InvalidRequest, match="KIND:ID"):
            find_cards((wrong,))


def test_cards_that_are_hidden_from_hpcserver_are_hidden_from_engines() -> None:
    for hidden, left in {"1": [OLD], RTX: [RTX], "0,1": [RTX, OLD], "": [], "-1": []}.items():
        found = tools.visible(tools.nvidia(NVIDIA), {"CUDA_VISIBLE_DEVICES": hidden})
        assert [one.card.id for one in found] == left, hidden


def test_no_two_attempts_ever_have_the_same_card() -> None:
    rack, random_ = Rack(tools.nvidia(NVIDIA) + tools.amd_cards(AMD)), random.Random(7)
    live: dict[str, frozenset[str]] = {}
    given = 0
    for number in range(3000):
        cards = rack.take(str(number), random_.choice((1, 1, 1, 2)))
        if cards is not None:
            ids = frozenset(one.card.id for one in cards)
            assert not any(ids & others for others in live.values())
            assert len({one.card.kind for one in cards}) == 1
            live[str(number)] = ids
            given += 1
        while live and (cards is None or random_.random() < 0.4):
            ended = random_.choice(list(live))
            del live[ended]
            rack.release(ended)
            cards = ()
    assert given > 1000


def test_smallest_card_that_will_do_is_taken_and_unusable_ones_are_not() -> None:
    rack = Rack(tools.nvidia(NVIDIA))
    assert [one.card.id for one in rack.take("a", 1) or ()] == [OLD]
    assert rack.take("b", 1, 48000) is None
    assert [one.card.id for one in rack.take("b", 1, 16000) or ()] == [RTX]
    rack.release("a")
    changed: list[int] = []
    rack.on_change = lambda: changed.append(1)
    rack.mark_unusable(rack.found[1:], "Error: no device")
    assert rack.take("c", 1) is None
    assert [card.unusable for card in rack.cards] == ["", "Error: no device"]
    assert [one.unusable for one in rack.loads()] == ["", "Error: no device"]
    assert changed == [1]


def test_engine_sees_its_cards_by_the_names_that_drivers_know() -> None:
    nvidia, amd, intel = tools.nvidia(NVIDIA), tools.amd_cards(AMD), tools.intel_cards(INTEL)
    two = variables(nvidia)
    assert two["CUDA_VISIBLE_DEVICES"] == f"{RTX},{OLD}"
    assert (two["HIP_VISIBLE_DEVICES"], two["ONEAPI_DEVICE_SELECTOR"]) == ("-1", "opencl:cpu")
    one = variables(amd)
    assert (one["ROCR_VISIBLE_DEVICES"], one["HIP_VISIBLE_DEVICES"]) == ("GPU-00000000ab12cd34", "0")
    assert variables(intel)["ONEAPI_DEVICE_SELECTOR"] == "level_zero:0"
    by_number = variables([tools.card_by_hand("cuda:3")])
    assert (by_number["CUDA_VISIBLE_DEVICES"], by_number["CUDA_DEVICE_ORDER"]) == ("3", "PCI_BUS_ID")
    none = variables(())
    assert (none[CARDS], none["CUDA_VISIBLE_DEVICES"], none["ROCR_VISIBLE_DEVICES"]) == ("", "-1", "-1")


def test_box_opens_the_device_files_of_the_given_cards_only(tmp_path: Path) -> None:
    nodes = ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "kfd", "dri/renderD128", "dri/renderD129", "dri/card1")
    for node in nodes:
        (tmp_path / "dev" / node).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dev" / node).touch()
    for bus, drawing in {"0000:01:00.0": ("card1", "renderD128"), "0000:0c:00.0": ("renderD129",)}.items():
        for name in drawing:
            (tmp_path / "sys/bus/pci/devices" / bus / "drm" / name).mkdir(parents=True)
    about = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information"
    about.parent.mkdir(parents=True)
    about.write_text(f"Model: RTX\nGPU UUID: {RTX}\nDevice Minor: \t 1\n")
    (rtx, old), (radeon,) = tools.nvidia(NVIDIA), tools.amd_cards(AMD)
    common = {"/dev/nvidiactl", "/dev/nvidia-uvm"}
    assert set(device_files([rtx], tmp_path)) == common | {"/dev/nvidia1", "/dev/dri/card1", "/dev/dri/renderD128"}
    assert set(device_files([radeon], tmp_path)) == {"/dev/kfd", "/dev/dri/renderD129"}
    assert set(device_files([old], tmp_path)) == common | {"/dev/nvidia0", "/dev/nvidia1"}  # nobody knows which is its
    assert device_files([], tmp_path) == ()


def test_kernels_are_compiled_by_the_blender_that_renders() -> None:
    prefix = Installation(Path("/env/python")).prefix
    assert command(prefix) == ["/env/python", "-I", "-X", "utf8", str(LAUNCHER), "--try-cards"]
    system = command(launched(("/usr/bin/blender",), "4.2"))
    assert system[0] == "/usr/bin/blender"
    assert system[-4:] == ["--python", str(LAUNCHER / "__main__.py"), "--", "--try-cards"]
    assert command(("/usr/bin/blender",)) == system
