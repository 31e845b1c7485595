"""On what the launcher has Cycles render, with cards that are only said to be there."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from renderonline.engines.blender.install import LAUNCHER

CARDS = {
    "OPTIX": ["NVIDIA RTX 4090", "NVIDIA RTX 3060"],
    "CUDA": ["NVIDIA RTX 4090", "NVIDIA RTX 3060"],
    "HIP": ["Radeon RX 7900", "Radeon Pro W6800"],
    "ONEAPI": ["Intel Arc A770", "Intel Arc B580"],
    "METAL": ["Apple M2", "AMD Radeon Pro"],
}
KINDS = {"OPTIX": "cuda", "CUDA": "cuda", "HIP": "hip", "ONEAPI": "oneapi", "METAL": "metal"}


def _launcher() -> ModuleType:
    """The launcher's module of devices, as its directory is run."""
    name = "launcher_of_tests"
    spec = importlib.util.spec_from_file_location(
        name, LAUNCHER / "__init__.py", submodule_search_locations=[str(LAUNCHER)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return importlib.import_module(f"{name}.task_options")


devices = _launcher()


class Preferences:
    """Cycles' preferences in a Blender that finds these cards."""

    def __init__(self, table: dict[str, list[str]]) -> None:
        self.table, self.devices = table, list[SimpleNamespace]()
        self.compute_device_type = "NONE"

    def get_devices_for_type(self, kind: str) -> list[SimpleNamespace]:
        if kind not in self.table:
            raise ValueError("this Blender was made without it")
        names = [(kind, name) for name in self.table[kind]] + [("CPU", "AMD EPYC")]
        for one_kind, name in names:
            if not any((one.type, one.id) == (one_kind, name) for one in self.devices):
                self.devices.append(SimpleNamespace(type=one_kind, id=name, name=name, use=one_kind != "CPU"))
        return [one for one in self.devices if (one.type, one.id) in names]

    @property
    def used(self) -> list[tuple[str, str]]:
        return [(one.type, one.name) for one in self.devices if one.use]


def blender(table: dict[str, list[str]], *scenes: tuple[str, str]) -> Any:
    made = [SimpleNamespace(render=SimpleNamespace(engine=engine), cycles=SimpleNamespace(device=device))
            for engine, device in scenes]  # fmt: skip
    addon = SimpleNamespace(preferences=Preferences(table))
    preferences = SimpleNamespace(addons={"cycles": addon})
    return SimpleNamespace(data=SimpleNamespace(scenes=made), context=SimpleNamespace(preferences=preferences))


def chosen(
    table: dict[str, list[str]], capsys: pytest.CaptureFixture[str], device: str = "GPU", **environment: str
) -> tuple[str, str, list[tuple[str, str]]]:
    """What is said, the device of the scene afterwards, and which devices Cycles uses."""
    bpy = blender(table, ("CYCLES", device))
    (scene,) = bpy.data.scenes
    devices.Devices(bpy, environment).choose(scene)
    preferences = bpy.context.preferences.addons["cycles"].preferences
    used = preferences.used if preferences.compute_device_type != "NONE" else []
    return capsys.readouterr().out, scene.cycles.device, used


@pytest.mark.parametrize("backend", list(CARDS))
@pytest.mark.parametrize("count", [0, 1, 2])
def test_cycles_uses_the_cards_that_it_finds_and_says_so(
    backend: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    names = CARDS[backend][:count]
    table = {other: list[str]() for other in CARDS} | {backend: names}
    for environment in ({}, {devices.DEVICE: "auto"}):
        said, device, used = chosen(table, capsys, **environment)
        if count:
            assert said == f"Cycles on {backend}: {', '.join(names)}\n"
            assert (device, used) == ("GPU", [(backend, name) for name in names])
        else:
            assert said.startswith("Cycles on CPU: no card found\nWarning: ")
            assert (device, used) == ("CPU", [])
    if count:
        said, device, _ = chosen(table, capsys, "CPU", **{devices.DEVICE: "gpu"})
        assert (said, device) == (f"Cycles on {backend}: {', '.join(names)}\n", "GPU")
        said, device, used = chosen(table, capsys, **{devices.DEVICE: "cpu"})
        assert (said, device, used) == ("Cycles on CPU: the task asks for it\n", "CPU", [])
    else:
        with pytest.raises(devices.NoDevice, match=r"^no device: "):
            chosen(table, capsys, "CPU", **{devices.DEVICE: "gpu"})


def test_first_way_that_finds_a_card_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    table = dict(CARDS)
    for backend in CARDS:
        assert chosen(table, capsys)[0].startswith(f"Cycles on {backend}: ")
        del table[backend]  # a Blender without it
    assert chosen({}, capsys)[0].startswith("Cycles on CPU: no card found\n")


def test_cards_that_the_farm_gave_are_used_whatever_the_scene_says(capsys: pytest.CaptureFixture[str]) -> None:
    said, device, _ = chosen(CARDS, capsys, "CPU", **{devices.CARDS: "hip:GPU-1", devices.DEVICE: "auto"})
    assert (said, device) == ("Cycles on HIP: Radeon RX 7900, Radeon Pro W6800\n", "GPU")
    two = {devices.CARDS: "cuda:GPU-1,cuda:GPU-2"}
    one_is_old = {"OPTIX": CARDS["OPTIX"][:1], "CUDA": CARDS["CUDA"]}
    assert chosen(one_is_old, capsys, **two)[0].startswith("Cycles on CUDA: ")  # each that was given must be found
    with pytest.raises(devices.NoDevice):
        chosen({"CUDA": CARDS["CUDA"][:1]}, capsys, **two)
    for wish in ("auto", "gpu", ""):  # never the processor, where a card was given
        with pytest.raises(devices.NoDevice):
            chosen({"HIP": CARDS["HIP"]}, capsys, **{devices.CARDS: "cuda:GPU-1", devices.DEVICE: wish})


def test_no_cards_given_means_the_processor_and_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    said, device, used = chosen(CARDS, capsys, **{devices.CARDS: "", devices.DEVICE: "auto"})
    assert said.splitlines()[0] == "Cycles on CPU: no card found"
    assert said.splitlines()[1].startswith("Warning: The scene asks for a graphics card")
    assert (device, used) == ("CPU", [])
    assert chosen(CARDS, capsys, "CPU", **{devices.CARDS: ""})[0] == "Cycles on CPU: the scene asks for it\n"


def test_scenes_that_others_show_are_chosen_for_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_renderer", lambda _: "NVIDIA RTX 4090")
    bpy = blender({"CUDA": CARDS["CUDA"]}, ("BLENDER_EEVEE", "CPU"), ("CYCLES", "CPU"), ("CYCLES", "GPU"))
    devices.Devices(bpy, {devices.DEVICE: "gpu"}).choose(bpy.data.scenes[0])
    assert [one.cycles.device for one in bpy.data.scenes] == ["CPU", "GPU", "GPU"]
    assert capsys.readouterr().out == "EEVEE on NVIDIA RTX 4090\n"


def test_renderers_that_draw_say_when_they_do_so_in_software(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bpy = blender({}, ("BLENDER_EEVEE_NEXT", "CPU"))
    (scene,) = bpy.data.scenes

    def drawn(renderer: str, **environment: str) -> None:
        monkeypatch.setattr(devices, "_renderer", lambda _: renderer)
        devices.Devices(bpy, environment).choose(scene)

    drawn("llvmpipe (LLVM 15.0.6, 256 bits)")
    assert capsys.readouterr().out == "EEVEE on CPU: in software, which is slow (llvmpipe (LLVM 15.0.6, 256 bits))\n"
    drawn("NVIDIA RTX 4090/PCIe/SSE2")
    assert capsys.readouterr().out == "EEVEE on NVIDIA RTX 4090/PCIe/SSE2\n"
    for renderer in ("llvmpipe", ""):  # that nobody can tell is not enough either
        with pytest.raises(devices.NoDevice, match="no device: EEVEE found no card"):
            drawn(renderer, **{devices.CARDS: "cuda:GPU-1"})
