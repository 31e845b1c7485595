from renderonline.sandbox import bubblewrap
from renderonline.sandbox.box import Box, BoxKind, Found

FOUND = Found(BoxKind.BWRAP, program="bwrap")


def test_wide_mounts_come_before_what_lies_in_them() -> None:
    box = Box(read=("/nas/farm/task", "/nas"), write=("/nas/farm/out",), hidden=("/nas/farm", "/elsewhere"))
    argv = bubblewrap.words(FOUND, box, "/nas/farm/out")
    order = [argv.index(path) for path in ("/nas", "/nas/farm", "/nas/farm/task", "/nas/farm/out")]
    assert order == sorted(order)
    assert argv[argv.index("/nas/farm") - 1] == "--tmpfs"
    assert "/elsewhere" not in argv  # nothing that is mounted holds it


def test_the_network_is_shared_only_when_asked_for() -> None:
    assert "--share-net" not in bubblewrap.words(FOUND, Box(), "/")
    assert "--share-net" in bubblewrap.words(FOUND, Box(network=True), "/")


def test_exit_codes_of_signals_are_told_as_subprocess_does() -> None:
    assert [bubblewrap.exit_code(code) for code in (0, 1, 128, 134, 137, 255, -9)] == [0, 1, 128, -6, -9, 255, -9]
