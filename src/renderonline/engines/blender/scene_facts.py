"""What a .blend file says of itself, and the files that it needs: for the child that reads strangers' files
(R13 Hostile content)."""

import posixpath
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final

from renderonline.engines.blender import needed_files, scene_parts
from renderonline.engines.blender.blend_file import Blend, Block, BrokenScene, Left, opened, several, understood
from renderonline.engines.blender.needed_files import MOST_INPUTS, Needed
from renderonline.engines.blender.scene_devices import device_of
from renderonline.engines.blender.scene_paths import KINDS as PATHS
from renderonline.engines.blender.scene_paths import Named, named_files

KINDS: Final = {**PATHS, **scene_parts.KINDS}
MOST_SCENES, MOST_TOLD = 64, 500
"""MOST_TOLD: names of files that an answer lists; a warning has the number of the others."""

_FORMATS: Final[Mapping[int, str]] = (
    {0: "TGA", 1: "IRIS", 4: "JPEG", 14: "TGA", 15: "AVI_RAW", 16: "AVI_JPEG", 17: "PNG", 20: "BMP", 21: "HDR"}
    | {22: "TIFF", 23: "OPEN_EXR", 24: "FFMPEG", 26: "CINEON", 27: "DPX", 28: "OPEN_EXR_MULTILAYER"}
    | {30: "JP2", 35: "WEBP", 36: "AVIF"}
)
_SHOWN: Final = 5
_SEQUENCER, _MULTIVIEW = 1 << 0, 1 << 21
"""Of a scene's render modes: its sequencer is shown, if it has strips; it has views."""
_MOST_VIEWS: Final = 64
_SUFFIX: Final = re.compile("[A-Za-z0-9 ()_.-]{1,40}")


def survey(scene: str, files: str | Mapping[str, str], most_inputs: int = MOST_INPUTS) -> dict[str, Any]:
    """Read a scene, and look for the files that it needs. JSON for the parent: `broken` (why), or `facts`, `inputs`
    (names of files that are there, at most so many), `missing` (that are not), `outside` (as the scene names them) and
    `whole_paths` (whether a file that is there was named so).

    `scene` is a name among `files`: a directory, or names -> paths ("": not to be read yet). Libraries are read as
    well: what they need, the scene needs. The work is bounded; a warning names what was not looked at.
    """
    left = Left()
    needed = Needed(files, left)
    try:
        facts = _followed(scene, files, needed, left)
    except BrokenScene as error:
        return {"broken": str(error)}
    missing, outside, warnings = list(needed.missing), list(needed.outside), facts["warnings"]
    for path in outside[:_SHOWN]:
        warnings.append(f"{path} lies outside of the scene's folder: {_OUTSIDE}")
    if len(outside) > _SHOWN:
        warnings.append(f"so do {several(outside[_SHOWN:])}")
    if len(missing) > MOST_TOLD:
        warnings.append(f"not there either: {several(missing[MOST_TOLD:])}")
    inputs = [one for one in needed.there if one != scene]
    if len(inputs) > most_inputs > 0:
        left.skip(f"more than {most_inputs:,} files that the scene needs", *inputs[most_inputs:])
    warnings += [*needed.warnings(), *left.warnings()]
    named = {
        "missing": missing[:MOST_TOLD],
        "outside": outside[: most_inputs or MOST_TOLD],
        "whole_paths": needed.whole_paths,
    }
    shown: dict[str, Any] = _shown({"facts": facts, **named})
    return {**shown, "inputs": inputs[:most_inputs]}


def _shown(value: Any) -> Any:
    """The same without what is no text: names in bytes of no encoding."""
    if isinstance(value, dict):
        return {name: _shown(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_shown(one) for one in value]
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) and not value.isascii() else value


_OUTSIDE: Final = (
    "machines get it with --pack, or with --folder DIR for a folder that holds both and, in Blender, "
    "File > External Data > Make Paths Relative"
)


def _followed(scene: str, files: str | Mapping[str, str], needed: Needed, left: Left) -> dict[str, Any]:
    """The facts of a scene; what it and its libraries name is looked for."""
    facts: dict[str, Any] = {}
    todo, seen = [scene], {scene}
    while todo:
        name = todo.pop()
        path = posixpath.join(files, name) if isinstance(files, str) else files.get(name, "")
        if facts and not path:
            continue
        try:
            blend = opened(path, KINDS, name, left)
            with understood():
                named = list(named_files(blend, name))
                facts = facts or _facts(blend, named)
        except BrokenScene as error:
            told = f"its library {name} is broken: {error}" if facts else str(error)
            raise BrokenScene(told) from error
        for library in needed.look(name, named):
            if library in seen:
                continue
            if len(seen) > needed_files.MOST_LIBRARIES:
                left.skip(f"more than {needed_files.MOST_LIBRARIES} libraries", library)
                continue
            seen.add(library)
            todo.append(library)
    return facts


def read(path: str, name: str = "") -> dict[str, Any]:
    """The facts of one file: size, version, scenes (the active one first), external files as it names them, warnings.
    `BrokenScene` for whatever is wrong with its content."""
    left = Left()
    blend = opened(path, KINDS, name, left)
    with understood():
        facts = _facts(blend, list(named_files(blend, name)))
    facts["warnings"] += left.warnings()
    return facts


def _facts(blend: Blend, named: list[Named]) -> dict[str, Any]:
    facts: dict[str, Any] = {"size": blend.size, "version": blend.version}
    if blend.dna is None:
        warnings = ["what it holds can't be read here: it is too new"] if blend.too_new else []
        return {**facts, "scenes": [], "external": [], "external_count": 0, "unbaked": [], "warnings": warnings}
    dna = blend.dna
    active = [dna.get(block, "*curscene") for block in blend.all("FileGlobal")]
    found = sorted((one for one in blend.all("Scene") if one.code == "SC"), key=lambda one: one.address not in active)
    scenes = [_scene(blend, block) for block in found[:MOST_SCENES]]
    external = list(dict.fromkeys((one.kind, one.path, one.many) for one in named if one.needed))
    sees = not found or dna.get(found[0], "*camera") or _shows_strips(blend, found[0])
    warnings = [] if sees else [f"its scene {scenes[0]['name']} has no camera"]
    if len(found) > MOST_SCENES:
        warnings.append(f"only {MOST_SCENES} of its {len(found)} scenes are listed")
    told = [{"kind": kind, "path": path, "many": many} for kind, path, many in external[:MOST_TOLD]]
    parts = {"external": told, "external_count": len(external), "unbaked": scenes[0]["unbaked"] if scenes else []}
    return {**facts, "scenes": scenes, **parts, "warnings": warnings}


def _shows_strips(blend: Blend, scene: Block) -> bool:
    """Whether the frames of a scene are those of its sequencer, which needs no camera."""
    dna = blend.dna
    assert dna is not None
    strips = any(one.owner == scene.owner for one in blend.all("Sequence"))
    return strips and bool(dna.first(scene, ("r", "scemode")) & _SEQUENCER)


def _scene(blend: Blend, block: Block) -> dict[str, Any]:
    dna = blend.dna
    assert dna is not None
    whole = {"start": "sfra", "end": "efra", "step": "frame_step", "width": "xsch", "height": "ysch", "percent": "size"}
    base, rate = dna.get(block, "r", "frs_sec_base"), dna.get(block, "r", "frs_sec")
    return {
        "name": dna.get(block, "id", "name")[2:],
        **{fact: dna.get(block, "r", field) for fact, field in whole.items()},
        "fps": round(rate / base, 3) if 1e-3 < base < 1e6 else float(rate),
        **dict(zip(("fps_num", "fps_den"), _exact(rate, base).as_integer_ratio(), strict=True)),
        "engine": dna.get(block, "r", "engine"),
        "format": _FORMATS.get(dna.get(block, "r", "im_format", "imtype"), ""),
        "cameras": scene_parts.cameras(blend, block),
        "view_layers": scene_parts.view_layers(blend, block),
        "unbaked": scene_parts.unbaked(blend, block),
        **({"device": device} if (device := device_of(blend, block)) else {}),
        **({"view": view} if (view := _first_view(blend, block)) else {}),
    }


def _exact(rate: int, base: float) -> Fraction:
    """Frames a second. The base is a number of seven digits, such as 1.001: 30 of these are 30000/1001."""
    if rate <= 0 or not 1e-3 < base < 1e6:
        return Fraction(max(rate, 1))
    return rate / Fraction(f"{base:.7g}")


def _first_view(blend: Blend, block: Block) -> str:
    """The suffix of the first view of a stereo scene whose frames are a file for each view; "" for others."""
    dna = blend.dna
    assert dna is not None
    if not dna.first(block, ("r", "scemode")) & _MULTIVIEW or dna.first(block, ("r", "im_format", "views_format")):
        return ""
    both_eyes = dna.first(block, ("r", "views_format")) == 0
    suffixes: list[str] = []
    view = blend.at(dna.get(block, "r", "views", "*first"), "SceneRenderView")
    while view is not None and len(suffixes) < _MOST_VIEWS:
        name, is_off = dna.get(view, "name"), dna.get(view, "viewflag") & 1
        if not is_off and (not both_eyes or name in ("left", "right")):
            suffixes.append(str(dna.get(view, "suffix")))
        view = blend.at(dna.get(view, "*next"), "SceneRenderView")
    return suffixes[0] if len(suffixes) > 1 and _SUFFIX.fullmatch(suffixes[0]) else ""
