"""A scene decides about files of its folder alone, unless a person asks for more with `--pack`."""

from pathlib import Path

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
