from pathlib import Path

from renderonline.sandbox import box
from renderonline.sandbox.box import Box, BoxKind, Found

FOUND = Found(BoxKind.BWRAP, program="bwrap")


def test_wide_mounts_come_before_what_lies_in_them(tmp_path: Path) -> None:
    nas, farm = str(tmp_path / "nas"), str(tmp_path / "nas" / "farm")
    Path(farm).mkdir(parents=True)
    hidden = (farm, str(tmp_path), f"{nas}/gone")
    argv = box.bubblewrap_words(FOUND, Box((f"{farm}/task", nas), (f"{farm}/out",), hidden), f"{farm}/out")
    order = [argv.index(path) for path in (nas, farm, f"{farm}/task", f"{farm}/out")]
    assert order == sorted(order)
    assert argv[argv.index(farm) - 1] == "--tmpfs"
    assert str(tmp_path) not in argv  # nothing that is mounted holds it
    assert f"{nas}/gone" not in argv  # it could not be made there


def test_the_network_is_shared_only_when_asked_for() -> None:
    assert "--share-net" not in box.bubblewrap_words(FOUND, Box(), "/")
    assert "--share-net" in box.bubblewrap_words(FOUND, Box(network=True), "/")


def test_exit_codes_of_signals_are_told_as_subprocess_does() -> None:
    assert [box.exit_code(code) for code in (0, 1, 128, 134, 137, 255, -9)] == [0, 1, 128, -6, -9, 255, -9]
