"""On what a scene says that Cycles renders, read without Blender.

It is no field of the scene but a setting of the add-on Cycles, which Blender keeps among the scene's properties: in a
group `cycles`, a number called `device`, and only where somebody changed it.
"""

from typing import Final

from renderonline.engines.blender.blend_file import Blend, Block

_ROOTS: Final = ("*system_properties", "*properties")
"""Where the settings of add-ons are, since Blender 5.0 and before."""
_GPU: Final = 1
_MOST: Final = 10_000
"""Properties of one group that are looked at; their list may lead in a circle."""


def device_of(blend: Blend, scene: Block) -> str:
    """`gpu` when the scene asks for graphics cards, else ""."""
    dna = blend.dna
    assert dna is not None
    for root in _ROOTS:
        group = blend.at(dna.get(scene, "id", root), "IDProperty") if dna.has(scene, "id", root) else None
        cycles = _member(blend, group, "cycles")
        device = _member(blend, cycles, "device")
        if device is not None and dna.get(device, "data", "val") == _GPU:
            return "gpu"
    return ""


def _member(blend: Blend, group: Block | None, name: str) -> Block | None:
    """The property of this name in a group."""
    dna = blend.dna
    assert dna is not None
    found = None if group is None else blend.at(dna.get(group, "data", "group", "*first"), "IDProperty")
    for _ in range(_MOST):
        if found is None or dna.get(found, "name") == name:
            return found
        found = blend.at(dna.get(found, "*next"), "IDProperty")
    return None
