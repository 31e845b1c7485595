"""A scene decides about files of its folder alone, unless a person asks for more with `--pack`."""

from pathlib import Path

from renderonline.engines.blender.blend_file import Left
from renderonline.engines.blender.needed_files import Needed
from renderonline.engines.blender.scene_facts import Named
from renderonline.rnoclient.scenes import needed_files
from tests.support.blend_files import Blend, File


def test_files_outside_are_sent_only_with_pack_and_never_what_nobody_means(tmp_path: Path) -> None:
    film, lib = tmp_path / "film", tmp_path / "lib"
    for place in (film / "tex/in.png", lib / "wood.png", lib / "oak.png", tmp_path / ".ssh/id_rsa"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    (lib / "link.png").symlink_to(tmp_path / ".ssh/id_rsa")
    named = [
        f"{film}/tex/in.png",
        "//../lib/wood.png",
        f"{lib}/oak.png",
        "//../.ssh/id_rsa",
        "/dev/zero",
        "/etc/passwd",
    ]
    scene = film / "a.blend"
    scene.write_bytes(Blend(files=[File(name) for name in (*named, f"{lib}/link.png")]).write())
    alone = needed_files(scene)
    assert (alone.inside, alone.outside, alone.whole_paths) == ([film / "tex/in.png"], {}, True)
    packed = needed_files(scene, pack=True)
    assert packed.inside == [film / "tex/in.png"]
    assert packed.outside == {f"_outside{lib}/{name}": lib / name for name in ("wood.png", "oak.png")}
    assert set(packed.refused) >= {f"{tmp_path}/.ssh/id_rsa", f"{lib}/link.png", "/etc/passwd"}


def test_a_link_beside_the_scene_sends_no_secret_of_its_user(tmp_path: Path) -> None:
    film, lib = tmp_path / "film", tmp_path / "lib"
    targets = {"key.png": tmp_path / ".ssh/id_rsa", "system.png": Path("/etc/passwd"), "oak.png": lib / "oak.png"}
    for place in (film / "in.png", targets["key.png"], targets["oak.png"]):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    for name, target in targets.items():
        (film / name).symlink_to(target)
    (film / "a.blend").write_bytes(Blend(files=[File(f"//{name}") for name in ("in.png", *targets)]).write())
    found = needed_files(film / "a.blend")
    assert sorted(path.name for path in found.inside) == ["in.png", "oak.png"]
    assert found.refused == {
        f"{film}/key.png": "it is hidden",
        f"{film}/system.png": "it belongs to the system",
    }


def test_links_in_a_circle_are_not_followed_round(tmp_path: Path) -> None:
    (tmp_path / "cache/a").mkdir(parents=True)
    (tmp_path / "cache/a/1.vdb").touch()
    for number in range(3):
        (tmp_path / f"cache/a/{number}").symlink_to(tmp_path / "cache")
    needed = Needed(str(tmp_path), Left())
    list(needed.look("a.blend", [Named("ocean", "//cache", "folder")]))
    assert list(needed.there) == ["cache/a/1.vdb"]
