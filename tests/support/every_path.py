"""A scene with every kind of path that a .blend can hold, and the files behind them; run in Blender (3.4 to 5.x), as
`python every_path.py DIRECTORY` or `blender -b -P every_path.py -- DIRECTORY`. Prints what Blender itself lists."""

import os
import shutil
import struct
import sys
import zlib
from typing import Any

import bpy

OUT = os.path.abspath(sys.argv[-1])


def put(name: str, data: bytes = b"x") -> str:
    """A file below the directory; its place."""
    path = os.path.join(OUT, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    return path


def png(name: str) -> str:
    """A small green picture; its place."""
    raw = b"".join(b"\0" + bytes((0, 200, 0)) * 8 for _ in range(8))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    return put(name, b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))


def thing(name: str) -> Any:
    """An object with one face."""
    mesh = bpy.data.meshes.new(name)
    mesh.from_pydata([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)], [], [(0, 1, 2, 3)])
    made = bpy.data.objects.new(name, mesh)
    bpy.context.scene.collection.objects.link(made)
    return made


def modifier(name: str, kind: str) -> Any:
    return thing(name).modifiers.new(name, kind)


def pictures() -> None:
    """Images, also in sequence, in tiles and for two eyes; a clip."""

    def load(name: str, **more: object) -> Any:
        image = bpy.data.images.load(os.path.join(OUT, name))
        for attribute, value in {"filepath": f"//{name}", "use_fake_user": True, **more}.items():
            setattr(image, attribute, value)
        return image

    for name in ("tex/plain.png", "stereo/e_L.png", "stereo/e_R.png", "udim/u.1001.png", "udim/u.1002.png"):
        png(name)
    for number in (1, 2, 3):
        png(f"seq/s_{number:03}.png")
        png(f"clip/c_{number:04}.png")
    load("tex/plain.png")
    load("seq/s_001.png", source="SEQUENCE")
    load("udim/u.1001.png", source="TILED").filepath = "//udim/u.<UDIM>.png"
    bpy.context.scene.render.use_multiview = True
    stereo = load("stereo/e_L.png", use_multiview=True, views_format="INDIVIDUAL")
    stereo.reload()
    stereo.pixels[:4]
    clip = bpy.data.movieclips.load(os.path.join(OUT, "clip/c_0001.png"))
    clip.filepath, clip.use_fake_user = "//clip/c_0001.png", True


def strips() -> None:
    """Strips with several pictures, with two eyes, in another strip; a film; a sound."""
    editor = bpy.context.scene.sequence_editor_create()
    made = editor.strips if hasattr(editor, "strips") else editor.sequences
    for name in ("f1", "f2", "f3", "v_L", "v_R", "in"):
        png(f"foot/{name}.png")
    several = made.new_image("several", os.path.join(OUT, "foot/f1.png"), 1, 1)
    several.elements.append("f2.png")
    several.elements.append("f3.png")
    stereo = made.new_image("stereo", os.path.join(OUT, "foot/v_L.png"), 2, 1)
    stereo.use_multiview, stereo.views_format = True, "INDIVIDUAL"
    meta = made.new_meta("meta", 3, 1)
    inner = meta.strips if hasattr(meta, "strips") else meta.sequences
    within = inner.new_image("in", os.path.join(OUT, "foot/in.png"), 1, 1)
    for strip in (several, stereo, within):
        strip.directory = "//foot/"
    made.new_movie("film", put("foot/clip.mp4"), 4, 1).filepath = "//foot/clip.mp4"
    made.new_sound("sound", put("foot/sound.wav"), 5, 1).sound.filepath = "//foot/sound.wav"


def caches() -> None:
    """Caches of meshes, oceans, fluids and simulations; layers; volumes."""
    modifier("mesh cache", "MESH_CACHE").filepath = "//mesh/a.mdd"
    put("mesh/a.mdd")
    fluid = modifier("fluid", "FLUID")
    fluid.fluid_type = "DOMAIN"
    fluid.domain_settings.cache_directory = "//fluid"
    put("fluid/data/fluid_data_0001.vdb")
    put("fluid/config/config_0001.uni")
    modifier("cloth", "CLOTH").point_cache.use_disk_cache = True
    put("blendcache_all/636C_000001_00.bphys")
    external = modifier("external", "CLOTH").point_cache
    external.use_external, external.filepath = True, "//external/"
    put("external/a_000001_00.bphys")
    for name in ("abc/a.abc", "abc/layer.abc", "usd/u_0001.usd", "usd/u_0002.usd", "vdb/s_1.vdb", "vdb/s_2.vdb"):
        put(name)
    bpy.ops.cachefile.open(filepath=os.path.join(OUT, "abc/a.abc"))
    cache = bpy.data.cache_files[-1]
    cache.filepath, cache.use_fake_user = "//abc/a.abc", True
    cache.layers.new("//abc/layer.abc")
    bpy.ops.cachefile.open(filepath=os.path.join(OUT, "usd/u_0001.usd"))
    cache = next(one for one in bpy.data.cache_files if one.filepath.endswith(".usd"))
    cache.filepath, cache.use_fake_user, cache.is_sequence = "//usd/u_0001.usd", True, True
    volume = bpy.data.volumes.new("volume")
    volume.filepath, volume.is_sequence, volume.use_fake_user = "//vdb/s_1.vdb", True, True


def nodes() -> None:
    """Light profiles, shaders, texts, fonts; what geometry nodes import and have baked."""
    material = bpy.data.materials.new("material")
    material.use_nodes = material.use_fake_user = True
    for kind, name in (("ShaderNodeTexIES", "ies/l.ies"), ("ShaderNodeScript", "osl/s.osl")):
        node = material.node_tree.nodes.new(kind)
        node.mode, node.filepath = "EXTERNAL", f"//{name}"
        put(name)
    text = bpy.data.texts.load(put("txt/t.py"), internal=False)
    text.filepath, text.use_fake_user = "//txt/t.py", True
    if bpy.app.version < (4, 5):
        return
    made = modifier("import", "NODES")
    made.node_group = tree = bpy.data.node_groups.new("import", "GeometryNodeTree")
    tree.nodes.new("GeometryNodeImportOBJ").inputs[0].default_value = "//imp/a.obj"
    string, ply = tree.nodes.new("FunctionNodeInputString"), tree.nodes.new("GeometryNodeImportPLY")
    string.string = "//imp/b.ply"
    tree.links.new(string.outputs[0], ply.inputs[0])
    tree.interface.new_socket("Path", in_out="INPUT", socket_type="NodeSocketString")
    made[tree.interface.items_tree[0].identifier] = "//imp/c.stl"
    group, stl = tree.nodes.new("NodeGroupInput"), tree.nodes.new("GeometryNodeImportSTL")
    tree.links.new(group.outputs[0], stl.inputs[0])
    baked = modifier("bake", "NODES")
    baked.node_group = tree = bpy.data.node_groups.new("bake", "GeometryNodeTree")
    tree.nodes.new("GeometryNodeBake")
    baked.bake_target, baked.bake_directory = "DISK", "//bakes/all"
    for name in ("imp/a.obj", "imp/b.ply", "imp/c.stl", "bakes/all/1/meta/0001.json", "bakes/all/1/blobs/0001.blob"):
        put(name)


def library(scene: str) -> None:
    """A library with a texture of its own."""
    bpy.ops.wm.save_as_mainfile(filepath=scene)
    os.makedirs(os.path.join(OUT, "lib"))
    shutil.copy(os.path.join(OUT, "tex/plain.png"), os.path.join(OUT, "lib/grain.png"))
    image = bpy.data.images.load(os.path.join(OUT, "lib/grain.png"))
    place, material = os.path.join(OUT, "lib/chairs.blend"), bpy.data.materials["material"]
    bpy.data.libraries.write(place, {image}, path_remap="RELATIVE_ALL", fake_user=True)
    bpy.data.images.remove(image)
    with bpy.data.libraries.load(place, link=True, relative=True) as (_, wanted):
        wanted.images = ["grain.png"]
    material.node_tree.nodes.new("ShaderNodeTexImage").image = wanted.images[0]


bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.context.scene.camera = thing("camera")
bpy.ops.wm.save_as_mainfile(filepath=os.path.join(OUT, "all.blend"))
for part in (pictures, strips, caches, nodes):
    part()
library(os.path.join(OUT, "all.blend"))
bpy.ops.wm.save_as_mainfile(filepath=os.path.join(OUT, "all.blend"))
for path in bpy.utils.blend_paths(absolute=True):
    if path:
        print("LISTED", os.path.relpath(path, OUT))
sys.stdout.flush()
os._exit(0)
