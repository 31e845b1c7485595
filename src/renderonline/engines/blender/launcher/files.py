"""The files that a loaded scene names: each is found among the files that were sent, or named in a warning.

Blender itself shows a colour of its own for missing pictures of a sequence, and prints nothing.
"""

import os
import re
import shutil
import stat
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from operator import setitem
from typing import Any, Final, NamedTuple

from . import MAX_FRAMES, several, warn
from .companions import all_strips
from .inputs import Inputs, pattern_of, split_name

MOST_TOLD: Final = 20
"""Missing files that are named; then their number."""
_MISSING: Final = (
    r"(?:.*\| )?(?:Warning: |WARNING |ERROR |Info: )?"
    r"(?:Unable to open '|\d+ libraries and \d+ linked|Cannot find lib |Unable to pack file, source path "
)
MOST_PIXELS: Final = 16_384
"""Along one side, of a picture that a strip shows."""
MISSING_MEDIA: Final = (217, 0, 191)
"""What Blender's sequencer shows for a missing picture."""
_IMPORTS: Final = "GeometryNodeImport"


class NamedFile(NamedTuple):
    """Where a scene names a file. `write` sets another path; `library`: what a relative path is seen from."""

    path: str
    library: Any
    write: Callable[[str], None]
    folder: bool = False
    sequence: bool = False
    needed: bool = True


def missing_at_first(bpy: Any) -> str:
    """A regular expression for what Blender says of libraries and fonts that it does not find: here they are looked for
    once more. What a library lacks can be asked for afterwards in newer Blenders."""
    lacks = r"|LIB: .* missing from )" if "is_missing" in bpy.types.ID.bl_rna.properties else ")"
    return _MISSING + lacks


def find_files(bpy: Any, root: str = "") -> None:
    """Point everything that the scene names at the files that were sent, below `root` (the folder of the scene if it
    is empty), and print a warning for each that is nowhere."""
    scene = os.path.dirname(bpy.data.filepath)
    inputs = Inputs(root if root and _inside(scene, root) else scene, scene)
    missing: dict[str, None] = {}
    # Libraries first: what they bring along is looked for next.
    for find in (_libraries, _everything):
        for place in find(bpy):
            if place.path and (problem := _settle(bpy, place, inputs)):
                missing[problem] = None
    _fill_strips(bpy)
    copy_bakes(bpy)
    missing |= dict.fromkeys((*_lost(bpy), *lacking_pictures(bpy)))
    for problem in list(missing)[:MOST_TOLD]:
        warn(problem)
    if len(missing) > MOST_TOLD:
        warn(f"{len(missing) - MOST_TOLD} more files are not there")


def _inside(path: str, root: str) -> bool:
    return os.path.abspath(path) == os.path.abspath(root) or path.startswith(os.path.abspath(root) + os.sep)


def _settle(bpy: Any, place: NamedFile, inputs: Inputs) -> str:
    """Give a place the file that was sent; what is wrong, when there is none."""
    is_server = place.path.startswith("\\\\")
    path = place.path if is_server else str(bpy.path.abspath(place.path, library=place.library))
    path = path.replace("\\", "/") if not is_server else path
    path = os.path.normpath(path) if path.startswith("/") else path
    there = _is_there(path, place)
    if there and inputs.holds(path):
        return ""
    found = inputs.find(path, folder=place.folder, sequence=place.sequence)
    if len(found) > 1:
        return f"{_shown(place)} is unclear: it may be {' or '.join(found[:3])}" if place.needed else ""
    if found:
        try:
            place.write(found[0])
        except (AttributeError, RuntimeError, TypeError) as error:
            return f"{_shown(place)} can't be given its file: {error}"
        return ""
    return "" if there or not place.needed else f"{_shown(place)} is not there: it was not sent with the scene"


def _shown(place: NamedFile) -> str:
    return re.sub(r"[\x00-\x1f\x7f]", "_", place.path)[-200:]


def _is_there(path: str, place: NamedFile) -> bool:
    if place.folder:
        return os.path.isdir(path)
    if os.path.isfile(path):
        return True
    folder, base = os.path.split(path)
    if not place.sequence and "<U" not in base:
        return False
    fits = re.compile(pattern_of(base)).fullmatch
    try:
        return any(fits(name) for name in os.listdir(folder))
    except OSError:
        return False


def _named(owner: Any, library: Any, name: str = "filepath", **how: bool) -> NamedFile:
    """The file that a property of `owner` names."""
    return NamedFile(getattr(owner, name), library, partial(setattr, owner, name), **how)


def _libraries(bpy: Any) -> Iterator[NamedFile]:
    """Libraries, and those that they bring along once they are found."""

    def point(name: str) -> Callable[[str], None]:
        def write(path: str) -> None:
            library = bpy.data.libraries[name]
            library.filepath = path
            library.reload()

        return write

    seen: set[str] = set()
    while new := [library.name for library in bpy.data.libraries if library.name not in seen]:
        for name in new:
            seen.add(name)
            library = bpy.data.libraries.get(name)
            if library is None or getattr(library, "packed_file", None) or getattr(library, "is_archive", False):
                continue
            yield NamedFile(library.filepath, getattr(library, "parent", None), point(name))


def _lost(bpy: Any) -> Iterator[str]:
    """What a library that was found does not have (any more)."""
    for library in bpy.data.libraries:
        if os.path.isfile(bpy.path.abspath(library.filepath, library=getattr(library, "parent", None))):
            names = sorted({block.name for block in library.users_id if getattr(block, "is_missing", False)})
            if names:
                are = "are" if names[1:] else "is"
                yield f"{several(names)} of {os.path.basename(library.filepath)} {are} not there"


def _everything(bpy: Any) -> Iterator[NamedFile]:
    yield from _datablocks(bpy)
    for scene in bpy.data.scenes:
        yield from _strips(scene)
        world = scene.rigidbody_world
        if world is not None:
            yield from _point_cache(bpy, world, scene)
    for thing in bpy.data.objects:
        yield from _modifiers(bpy, thing)
        for system in thing.particle_systems:
            yield from _point_cache(bpy, system, thing)
    for tree, owner in trees(bpy):
        yield from _nodes(tree, owner)


def _datablocks(bpy: Any) -> Iterator[NamedFile]:
    for image in bpy.data.images:
        if image.source in ("FILE", "SEQUENCE", "MOVIE", "TILED") and not image.packed_files:
            yield _named(image, image.library, sequence=image.source == "SEQUENCE")
    for clip in bpy.data.movieclips:
        yield _named(clip, clip.library, sequence=clip.source == "SEQUENCE")
    for kind in ("sounds", "fonts", "volumes"):
        for block in getattr(bpy.data, kind):
            if block.packed_file is None and block.filepath != "<builtin>":
                yield _named(block, block.library, sequence=getattr(block, "is_sequence", False))
    yield from _caches_and_texts(bpy)


def _caches_and_texts(bpy: Any) -> Iterator[NamedFile]:
    for cache in bpy.data.cache_files:
        yield _named(cache, cache.library, sequence=cache.is_sequence)
        for layer in getattr(cache, "layers", ()):
            yield _named(layer, cache.library)
    for text in bpy.data.texts:
        yield _named(text, text.library, needed=False)
    for camera in bpy.data.cameras:
        if getattr(camera, "custom_mode", "") == "EXTERNAL" and camera.type == "CUSTOM":
            yield _named(camera, camera.library, "custom_filepath")


def _strips(scene: Any) -> Iterator[NamedFile]:
    for strip in all_strips(scene):
        if strip.type == "MOVIE":
            yield _named(strip, scene.library, needed=not strip.mute)
        elif strip.type == "IMAGE":
            # Before the first is found: with it the folder of all of them changes.
            paths = [os.path.join(strip.directory, element.filename) for element in strip.elements]
            for element, path in zip(strip.elements, paths, strict=True):
                yield NamedFile(path, scene.library, _picture(strip, element), needed=not strip.mute)


def _picture(strip: Any, element: Any) -> Callable[[str], None]:
    """Pictures of a strip lie in one folder; one that lies elsewhere is named from there."""

    def write(path: str) -> None:
        folder = os.path.dirname(path)
        if strip.elements[0] == element or not os.path.isabs(strip.directory):
            strip.directory = folder + os.sep
        element.filename = os.path.relpath(path, strip.directory)

    return write


def _modifiers(bpy: Any, thing: Any) -> Iterator[NamedFile]:
    for modifier in thing.modifiers:
        if modifier.type == "MESH_CACHE":
            yield _named(modifier, thing.library)
        elif modifier.type == "OCEAN":
            yield _named(modifier, thing.library, folder=True, needed=modifier.is_cached)
        elif modifier.type == "FLUID" and modifier.fluid_type == "DOMAIN":
            domain = modifier.domain_settings
            baked = any(getattr(domain, f"has_cache_baked_{kind}", False) for kind in ("data", "mesh", "particles"))
            yield _named(domain, thing.library, "cache_directory", folder=True, needed=baked)
        elif modifier.type == "MULTIRES" and modifier.is_external:
            yield _named(modifier, thing.library)
        elif modifier.type in ("CLOTH", "SOFT_BODY"):
            yield from _point_cache(bpy, modifier, thing)
        elif modifier.type == "DYNAMIC_PAINT" and modifier.canvas_settings is not None:
            for surface in modifier.canvas_settings.canvas_surfaces:
                yield from _point_cache(bpy, surface, thing)
        elif modifier.type == "NODES":
            yield from _geometry_nodes(modifier, thing)


def _point_cache(bpy: Any, owner: Any, thing: Any) -> Iterator[NamedFile]:
    cache = owner.point_cache
    if cache is not None and cache.use_external:
        yield _named(cache, thing.library, folder=True)
    elif cache is not None and cache.use_disk_cache and cache.is_baked:
        blend = thing.library.filepath if thing.library else bpy.data.filepath
        path = f"//blendcache_{os.path.splitext(os.path.basename(blend))[0]}"
        yield NamedFile(path, thing.library, lambda _path: None, folder=True)


def _geometry_nodes(modifier: Any, thing: Any) -> Iterator[NamedFile]:
    for name in ("bake_directory", "simulation_bake_directory"):  # the second one until Blender 4.0
        if hasattr(modifier, name):
            yield _named(modifier, thing.library, name, folder=True, needed=False)
    for bake in getattr(modifier, "bakes", ()):
        if getattr(bake, "use_custom_path", False) and getattr(bake, "bake_target", "DISK") != "PACKED":
            yield _named(bake, thing.library, "directory", folder=True, needed=False)
    for key in list(modifier.keys()):
        value = modifier[key]
        if isinstance(value, str) and re.match(r"//|/|[A-Za-z]:[\\/]|\\\\", value):
            yield NamedFile(value, thing.library, partial(setitem, modifier, key), needed=False)


def _nodes(tree: Any, owner: Any) -> Iterator[NamedFile]:
    for node in tree.nodes:
        if node.bl_idname in ("ShaderNodeTexIES", "ShaderNodeScript") and node.mode == "EXTERNAL":
            yield _named(node, owner.library)
        elif node.bl_idname == "FunctionNodeInputString":
            yield _named(node, owner.library, "string", needed=False)
        elif node.bl_idname.startswith(_IMPORTS):
            for socket in node.inputs:
                if not socket.is_linked and isinstance(getattr(socket, "default_value", None), str):
                    yield _named(socket, owner.library, "default_value")


def _fill_strips(bpy: Any) -> None:
    """Show Blender's colour where a picture of a strip is missing. Blender itself takes the size that stands beside the
    picture's name; strips that a script made have whatever was in memory there, and Blender crashes or shows that."""
    for scene in bpy.data.scenes:
        for strip in all_strips(scene):
            if strip.type != "IMAGE":
                continue
            folder = str(bpy.path.abspath(strip.directory, library=scene.library))
            for element in strip.elements:
                if not os.path.isfile(os.path.join(folder, element.filename)):
                    strip.directory = os.path.join(os.path.abspath(folder), "")
                    element.filename = os.path.relpath(_stand_in(strip.elements[0]), strip.directory)


def _stand_in(first: Any) -> str:
    """A picture of one colour, as large as the strip's first."""
    sides = (first.orig_width, first.orig_height)
    width, height = sides if all(0 < side <= MOST_PIXELS for side in sides) else (64, 64)
    path = os.path.join(tempfile.gettempdir(), f"missing-{width}x{height}.png")
    if not os.path.isfile(path):
        row = b"\0" + bytes(MISSING_MEDIA) * width

        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        head, packer = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), zlib.compressobj()
        rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
        with open(path, "wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def lacking_pictures(bpy: Any) -> Iterator[str]:
    """A sentence for each node that lacks pictures in the frames of a scene."""
    scenes = [(scene.frame_start, scene.frame_end) for scene in bpy.data.scenes]
    first, last = min(start for start, _ in scenes), max(end for _, end in scenes)
    for tree, owner in trees(bpy):
        for node in tree.nodes:
            image = getattr(node, "image", None)
            if image is not None and image.source == "SEQUENCE" and not image.packed_files:
                user = getattr(node, "image_user", node)
                if not hasattr(user, "frame_duration"):
                    continue
                path = str(bpy.path.abspath(image.filepath, library=image.library))
                found = list(_lacking(path, user, range(first, min(last, first + MAX_FRAMES) + 1)))
                if found:
                    yield f"{several(found, 3)} of {owner.name} {'are' if found[1:] else 'is'} not there"


def _lacking(path: str, user: Any, frames: range) -> Iterator[str]:
    """The pictures of a sequence that these frames would show (as Blender counts: frame, start and offset)."""
    folder, base = os.path.split(path)
    begin, mark, end = split_name(base)
    try:
        there = set(os.listdir(folder))
    except OSError:
        return
    if mark != "#" or not any(name.startswith(begin) for name in there):
        return  # a warning says already that nothing of it is there
    width, length = len(base) - len(begin) - len(end), user.frame_duration
    shown = dict[str, None]()
    for frame in frames if length > 0 else ():
        at = frame - user.frame_start + 1
        at = (at - 1) % length + 1 if user.use_cyclic else min(max(at, 1), length)
        shown[f"{begin}{at + user.frame_offset:0{width}}{end}"] = None
    yield from (name for name in shown if name not in there)


def trees(bpy: Any) -> Iterator[tuple[Any, Any]]:
    """All trees of nodes, each with the datablock to which it belongs."""
    for group in bpy.data.node_groups:
        yield group, group
    for kind in ("materials", "worlds", "lights", "linestyles", "textures", "scenes"):
        for block in getattr(bpy.data, kind):
            tree = getattr(block, "node_tree", None)
            if tree is not None:
                yield tree, block


MOST_BAKED_FILES: Final = 100_000
"""Files and folders of a directory that is copied: a scene may name any, such as the whole disk."""
_DESCRIPTIONS: Final = ".json"


def copy_bakes(bpy: Any) -> None:
    """Give every object that has bakes of geometry nodes on the disk a copy of them, in this run's temporary directory.

    Blender opens their descriptions for writing; an engine in a box may only read what the task was submitted with, and
    then Blender shows nothing and prints no error.
    The object itself becomes a copy too: Blender looked for its bakes while it loaded the scene, and never looks again.
    """
    copies: dict[str, str] = {}
    for thing in list(bpy.data.objects):
        # Read before the copy is made: a copied modifier has no directory any more.
        there = [(names, _bake_path(bpy, thing, owner, name)) for names, (owner, name) in _bake_paths(thing).items()]
        for _, path in there:
            if path not in copies:
                copies[path] = copied(path, bpy.app.tempdir)
        if not any(copies[path] for _, path in there):
            continue
        other = thing.copy()
        for (modifier, bake, name), path in there:
            owner = other.modifiers[modifier]
            setattr(owner if bake is None else owner.bakes[bake], name, copies[path] or path)
        thing.user_remap(other)
        if thing.users > thing.use_fake_user:
            warn(f"the bake of {thing.name} can't be read from a library: pack it (Bake Target: Packed)")


def unbaked(scene: Any) -> list[str]:
    """The simulations of a scene that nobody baked, but those of geometry nodes: they show no bake to Python."""
    found: dict[str, None] = {}
    for thing in scene.objects:
        found |= {f"{kind} of {thing.name}": None for kind, cold in _simulations(thing) if cold}
    world = scene.rigidbody_world
    if world is not None and world.collection is not None and _is_cold(world.point_cache):
        found["rigid bodies"] = None
    return list(found)


def _simulations(thing: Any) -> Iterator[tuple[str, bool]]:
    for modifier in thing.modifiers:
        if not modifier.show_render:
            continue
        if modifier.type in ("CLOTH", "SOFT_BODY"):
            yield modifier.type.lower().replace("_", " "), _is_cold(modifier.point_cache)
        elif modifier.type == "DYNAMIC_PAINT" and modifier.canvas_settings is not None:
            surfaces = modifier.canvas_settings.canvas_surfaces
            yield "dynamic paint", any(_is_cold(surface.point_cache) for surface in surfaces)
        elif modifier.type == "FLUID" and modifier.fluid_type == "DOMAIN":
            yield "fluid", not modifier.domain_settings.has_cache_baked_data
    for system in thing.particle_systems:
        if system.settings.type == "EMITTER" and system.settings.physics_type != "NO":
            yield "particles", _is_cold(system.point_cache)


def _is_cold(cache: Any) -> bool:
    return cache is not None and not (cache.is_baked or cache.use_external)


def _bake_paths(thing: Any) -> dict[tuple[int, int | None, str], tuple[Any, str]]:
    """What names a directory of bakes: the places of a modifier and of one of its bakes, and the property."""
    found: dict[tuple[int, int | None, str], tuple[Any, str]] = {}
    for number, modifier in enumerate(thing.modifiers):
        if modifier.type != "NODES":
            continue
        for place, owner in ((None, modifier), *enumerate(getattr(modifier, "bakes", ()))):
            # The second name until Blender 4.0.
            for name in ("bake_directory", "simulation_bake_directory", "directory"):
                if getattr(owner, name, ""):
                    found[number, place, name] = (owner, name)
    return found


def _bake_path(bpy: Any, thing: Any, owner: Any, name: str) -> str:
    return os.path.normpath(str(bpy.path.abspath(getattr(owner, name), library=thing.library)))


def copied(path: str, temporary: str) -> str:
    """A directory with the same files: descriptions are copied, the rest is linked to. "" where none are needed."""
    inside = list(islice(_entries(path), MOST_BAKED_FILES + 1))
    if len(inside) > MOST_BAKED_FILES:
        warn(f"the bakes in {path} can't be read: more than {MOST_BAKED_FILES} files and folders are in it")
        return ""
    if not any(entry.endswith(_DESCRIPTIONS) for entry in inside):
        return ""
    copy = tempfile.mkdtemp(prefix="bake-", dir=temporary)
    try:
        for entry in inside:
            target, mode = os.path.join(copy, os.path.relpath(entry, path)), os.lstat(entry).st_mode
            if stat.S_ISDIR(mode):
                os.makedirs(target)
            elif entry.endswith(_DESCRIPTIONS) and stat.S_ISREG(mode):
                shutil.copyfile(entry, target)
            else:
                os.symlink(entry, target)
    except OSError as error:
        warn(f"the bakes in {path} can't be read: {error}")
        return ""
    return copy


def _entries(path: str) -> Iterator[str]:
    """All that lies in a directory, folders before what is in them; links are not followed."""
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names):
            yield os.path.join(folder, name)
