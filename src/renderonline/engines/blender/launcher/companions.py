"""What a scene writes besides its frames: it comes home below the output directory, at names that the scene gave.

A path in the scene's own folder keeps its place there (`//passes/` becomes `passes/`), an absolute one loses its root,
and nothing leads out. Two outputs never share a file: the second one gets the folder of its node's name.

Freestyle's SVG files are written by an add-on of Blender's own, which a Blender without settings has switched off. The
scene's sound is mixed down to one file beside the frames, from which films get it: by the attempt that renders the
task's first frame, before its frames, for the time that the task's frames last.
"""

import importlib.util
import os
import re
from collections.abc import Iterator
from typing import Any, Final

from . import Failed, one_line, say, warn

MOST_FILES: Final = 20_000
"""Files below the output directory of which the new ones are looked for."""
MOST_FOLDERS: Final = 8
"""Of an absolute path, counted from its end."""
RENDER_LAYERS: Final = "CompositorNodeRLayers"
FILE_OUTPUT: Final = "CompositorNodeOutputFile"
_HASH: Final = "\ue000"
"""Stands for `#` while Blender fills in the variables of a path."""
_UNFIT: Final = re.compile(r'[\x00-\x1f\x7f<>:"|?*]')
"""Letters that not every system keeps in a file's name."""
_SAME_FILES: Final = {"OPEN_EXR_MULTILAYER": "OPEN_EXR", "TARGA_RAW": "TARGA"}

Stamp = tuple[int, int, int]
"""Modification time (ns), size and inode."""


class Companions:
    """The files that a scene writes into `directory`; "" leaves them where the scene says."""

    def __init__(self, bpy: Any, scene: Any, directory: str) -> None:
        self._bpy = bpy
        self._scene = scene
        self._directory = directory
        self._folder = os.path.dirname(bpy.data.filepath)
        self._variables = takes_variables(scene.render)
        self._trees: set[int] = set()
        self._used: set[tuple[str, str]] = set()
        self._seen: dict[str, Stamp | None] = {}
        self._made: set[str] = set()
        self.scenes = tuple(_rendered(scene))
        """The scenes of which something is rendered, the main one first."""

    @property
    def views(self) -> list[str]:
        """The views of a stereo scene whose frame is a file for each; none otherwise."""
        render = self._scene.render
        if not render.use_multiview or render.image_settings.views_format != "INDIVIDUAL":
            return []
        views = render.stereo_views if render.views_format == "STEREO_3D" else render.views
        return [view.name for view in views if view.use]

    def expect(self, *paths: str) -> None:
        """Remember what is there before these files, and others below the output directory, are written."""
        others = (path for path in _below(self._directory) if path not in self._seen)
        self._seen.update({path: _stamp(path) for path in (*paths, *others)})

    def written(self, *expected: str) -> set[str]:
        """The files that are new or changed since: those expected, and all below the output directory. One that was new
        before is not looked at again. Their stamps tell, never a clock: that of a network disk may differ."""
        new: set[str] = set()
        others = (path for path in _below(self._directory) if path not in self._made)
        for path in (*expected, *others):
            stamp = _stamp(path)
            if stamp is not None and stamp != self._seen.get(path):
                new.add(path)
                self._seen[path] = stamp
        self._made |= new
        return new

    def take_home(self) -> None:
        """Point the scenes' File Output nodes below the output directory."""
        if not self._directory:
            return
        render = self._scene.render
        frames = os.path.basename(render.filepath)
        self._used.add(_key(frames, render.image_settings.file_format))
        for scene in self.scenes:
            if scene.render.use_compositing and (tree := _compositing(scene)) is not None:
                self._take_tree(tree, scene)

    def _take_tree(self, tree: Any, scene: Any) -> None:
        self._trees.add(tree.as_pointer())
        for node in tree.nodes:
            if node.mute:
                continue
            inner = getattr(node, "node_tree", None)
            if node.bl_idname == FILE_OUTPUT:
                # Blender has had items since 5.0.
                take = self._take_items if hasattr(node, "file_output_items") else self._take_slots
                take(node, scene)
            elif inner is not None:
                if inner.as_pointer() in self._trees:  # used twice it would write the same files twice
                    node.node_tree = inner = inner.copy()
                self._take_tree(inner, scene)

    def _take_items(self, node: Any, scene: Any) -> None:
        items, name = list(node.file_output_items), node.file_name
        for item in items:
            if {"/", "\\"} & set(item.name):
                item.name = below(item.name, "") or "image"
        target = self.home(os.path.join(node.directory, name), scene, node, keep_end=True)
        is_one_file = node.format.media_type == "MULTI_LAYER_IMAGE"
        # Blender adds the number by itself, but not in a scene that another one's sequencer shows.
        if is_one_file and "#" not in target:
            target += "####"
        for item in items if not is_one_file and "#" not in os.path.basename(target) else ():
            if "#" not in item.name:
                item.name += "####"
        if is_one_file:
            keys = [_key(target, node.format.file_format)]
        else:
            formats = [item.format if item.override_node_format else node.format for item in items]
            keys = [_key(target + item.name, form.file_format) for item, form in zip(items, formats, strict=True)]
        target = self._free(target, keys, node)
        folder, last = os.path.split(os.path.join(self._directory, target))
        node.directory, node.file_name = self._escaped(f"{folder}/"), self._escaped(last)

    def _take_slots(self, node: Any, scene: Any) -> None:
        slots = list(node.file_slots)
        if node.format.file_format == "OPEN_EXR_MULTILAYER":
            base = self.home(node.base_path, scene, node, keep_end=True)
            base = self._free(base, [_key(base, "OPEN_EXR")], node)
        else:
            base = self.home(node.base_path, scene, node)
            keys = []
            for slot in slots:
                slot.path = below(slot.path, "") + ("/" if slot.path.endswith("/") else "")
                form = node.format if slot.use_node_format else slot.format
                keys.append(_key(os.path.join(base, slot.path), form.file_format))
            base = self._free(base, keys, node, whole=False)
        node.base_path = self._escaped(os.path.join(self._directory, base))

    def _free(self, target: str, keys: list[tuple[str, str]], node: Any, *, whole: bool = True) -> str:
        """Where the files of the keys can go without being another's: `target`, or in a folder named for the node.
        `whole`: the target ends in a file's name."""
        folder, last = os.path.split(target) if whole else (target, "")
        moved, number = "", 1
        while (taken := {(os.path.join(moved.casefold(), name), form) for name, form in keys}) & self._used:
            called = below(node.name.replace("/", "-"), "") or "File Output"
            moved, number = called + (f" {number}" if number > 1 else ""), number + 1
        if len(set(keys)) < len(keys):
            warn(f"Several inputs of the node {node.name!r} write the same file: the last one's is there.")
        self._used |= taken
        if not moved:
            return target
        warn(f"The node {node.name!r} would write over other files of this scene: its files are in {moved}/.")
        return os.path.join(moved, folder, last)

    def home(self, path: str, scene: Any, node: Any, *, keep_end: bool = False) -> str:
        """A path of a node, relative to the output directory. `keep_end`: it ends in a file's name, perhaps ""."""
        path = self._filled(path.replace("{node_name}", node.name), scene)
        known = self._directory if path.startswith(f"{self._directory}/") else self._folder  # of a tree that was copied
        home = below(path, known)
        return f"{home}/" if keep_end and home and path.replace("\\", "/").endswith("/") else home

    def _filled(self, path: str, scene: Any) -> str:
        """The path with the values of its variables (since Blender 5.0: `{blend_name}`)."""
        render = scene.render
        if "{" not in path or not self._variables:
            return path
        kept = render.filepath, render.use_file_extension
        try:
            render.filepath, render.use_file_extension = path.replace("#", _HASH) + _HASH, False
            filled = str(render.frame_path(frame=0))
        except (RuntimeError, TypeError, ValueError) as error:
            raise Failed(f"the path {path} of a File Output node can't be understood: {error}") from None
        finally:
            render.filepath, render.use_file_extension = kept
        return filled.rpartition(_HASH)[0].replace(_HASH, "#") or path

    def _escaped(self, path: str) -> str:
        return escaped(path) if self._variables else path


def takes_variables(render: Any) -> bool:
    """Whether this Blender fills in variables in braces (`{blend_name}`) where a path has them, as since Blender 5."""
    kept, render.filepath = render.filepath, "{{"
    try:
        return "{{" not in render.frame_path(frame=0)
    finally:
        render.filepath = kept


def escaped(path: str) -> str:
    """A path whose braces mean themselves, where others are variables."""
    return path.replace("{", "{{").replace("}", "}}")


def below(path: str, folder: str) -> str:
    """Where a scene's path comes home: relative, with `/`, without what leads out. `folder` is the scene's."""
    text = path.replace("\\", "/")
    inside = folder and text.startswith(folder.replace("\\", "/").rstrip("/") + "/")
    relative = text.startswith("//") or not (text.startswith("/") or re.match("[A-Za-z]:", text)) or inside
    text = text[len(folder.rstrip("/\\")) :] if inside else re.sub("^[A-Za-z]:", "", text)
    parts: list[str] = []
    for part in _UNFIT.sub("_", text).split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts if relative else parts[-MOST_FOLDERS:])


def _key(name: str, form: str) -> tuple[str, str]:
    """What two outputs that write the same file have in common. Without `#` the frame's number is at the end."""
    folder, last = os.path.split(name)
    last = re.sub("#+", "#", last if "#" in last else f"{last}#")
    return os.path.join(folder, last).casefold(), _SAME_FILES.get(form, form)


def _compositing(scene: Any) -> Any:
    """A scene's compositor tree, None when it has none that is used."""
    if hasattr(scene, "compositing_node_group"):
        return scene.compositing_node_group
    return scene.node_tree if scene.use_nodes else None


def has_camera(scene: Any) -> bool:
    """Whether Blender finds a camera for the scene, or may need none: what only composes pictures, or shows strips, is
    rendered without one."""
    cameras = scene.camera is not None or any(thing.type == "CAMERA" for thing in scene.objects)
    composes = scene.render.use_compositing and _compositing(scene) is not None
    return cameras or composes or bool(_strips(scene)) or any(marker.camera for marker in scene.timeline_markers)


def _strips(scene: Any) -> list[Any]:
    """The strips of a scene's sequencer that is used."""
    return all_strips(scene) if scene.render.use_sequencer else []


def layers_read(scene: Any) -> set[str]:
    """The view layers of the scene that its own compositor reads."""
    nodes = _nodes(_compositing(scene), set()) if scene.render.use_compositing else ()
    return {node.layer for node in nodes if node.bl_idname == RENDER_LAYERS and node.scene == scene}


def _rendered(scene: Any) -> Iterator[Any]:
    """The scene and those that its compositor and sequencer render."""
    waiting, seen = [scene], set()
    while waiting:
        shown = waiting.pop(0)
        if shown is None or shown.as_pointer() in seen:
            continue
        seen.add(shown.as_pointer())
        yield shown
        if shown.render.use_compositing:
            waiting += [node.scene for node in _nodes(_compositing(shown), set()) if node.bl_idname == RENDER_LAYERS]
        waiting += [strip.scene for strip in _strips(shown) if strip.type == "SCENE" and not strip.mute]


def _nodes(tree: Any, seen: set[int]) -> Iterator[Any]:
    if tree is None or tree.as_pointer() in seen:
        return
    seen.add(tree.as_pointer())
    for node in tree.nodes:
        if not node.mute:
            yield node
            yield from _nodes(getattr(node, "node_tree", None), seen)


def _stamp(path: str) -> Stamp | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _below(directory: str) -> Iterator[str]:
    """The files below a directory, not through links and at most `MOST_FILES`."""
    left = MOST_FILES
    for folder, _, names in os.walk(directory) if directory else ():
        for name in names[:left]:
            yield os.path.join(folder, name)
        left -= len(names)
        if left <= 0:
            return


SOUND: Final = "sound.flac"
FIRST: Final = "RENDERONLINE_BLENDER_FIRST"
LAST: Final = "RENDERONLINE_BLENDER_LAST"
"""Variables with the first and the last frame of the whole task."""


def write_sound(bpy: Any, scene: Any, directory: str, first: int) -> None:
    """Mix the scene's sound down into `directory`, if it has any and `first` is the task's first frame."""
    try:
        begin, end = int(os.environ.get(FIRST, "")), int(os.environ.get(LAST, ""))
    except ValueError:  # no farm asks for it
        return
    if not directory or first != begin or not has_sound(scene):
        return
    path, own = os.path.join(directory, SOUND), (scene.frame_start, scene.frame_end)
    try:
        os.makedirs(directory, exist_ok=True)
        # The end first, where it is moved away from the start: Blender keeps them in order.
        scene.frame_end = max(end, scene.frame_end)
        scene.frame_start, scene.frame_end = begin, end
        with bpy.context.temp_override(scene=scene):
            bpy.ops.sound.mixdown(filepath=path, container="FLAC", codec="FLAC", format="S16")
    except (RuntimeError, TypeError, AttributeError, OSError) as error:
        warn(f"The scene's sound could not be mixed: {one_line(error)}")
        return
    finally:
        scene.frame_end = max(own[1], scene.frame_end)
        scene.frame_start, scene.frame_end = own
    say(f"Saved: '{path}'")


def has_sound(scene: Any, seen: frozenset[str] = frozenset()) -> bool:
    """Whether anything of a scene, or of the scenes in its strips, is to be heard."""
    if any(item.type == "SPEAKER" and item.data.sound and not item.data.muted for item in scene.objects):
        return True
    for strip in all_strips(scene):
        if strip.mute:
            continue
        if strip.type == "SOUND":
            return True
        other = getattr(strip, "scene", None) if strip.type == "SCENE" else None
        if other is not None and other.name not in seen and has_sound(other, seen | {scene.name}):
            return True
    return False


def all_strips(scene: Any) -> list[Any]:
    """The strips of a scene's sequencer, also those inside of meta strips."""
    editor = scene.sequence_editor
    if editor is None:
        return []
    return list(editor.strips_all if hasattr(editor, "strips_all") else editor.sequences_all)  # until Blender 4.3


ADD_ON: Final = "render_freestyle_svg"
"""Comes with every Blender before 4.2."""


def export_svg(bpy: Any, scene: Any) -> None:
    """Switch the add-on on when the scene wants SVG files; a warning where this Blender does not have it."""
    properties = getattr(scene, "bl_system_properties_get", lambda: scene)()  # of add-ons, since Blender 5.0
    wanted = properties.get("svg_export") if properties is not None else None
    if not (scene.render.use_freestyle and wanted and wanted.get("use_svg_export")):
        return
    if importlib.util.find_spec(ADD_ON) is not None:
        bpy.ops.preferences.addon_enable(module=ADD_ON)
    else:
        warn("The scene exports Freestyle's lines as SVG: this Blender lacks the add-on, so no SVG file is written.")


def settle_svg(path: str, frame: int) -> None:
    """Give the SVG file of a frame, whose picture is at `path`, the frame's name: the add-on puts the number behind the
    whole name."""
    written = f"{path}{frame:04d}.svg"
    if os.path.isfile(written):
        os.replace(written, os.path.splitext(path)[0] + ".svg")
