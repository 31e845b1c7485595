from renderonline.farm.needs import BoxKind


def test_kinds_are_ordered_from_the_weakest_to_the_strongest() -> None:
    assert sorted(["bwrap", "none", "landlock"], key=BoxKind) == ["none", "landlock", "bwrap"]
    assert BoxKind.BWRAP > BoxKind.LANDLOCK >= BoxKind.LANDLOCK > BoxKind.NONE
    assert not BoxKind.NONE >= BoxKind.BWRAP
    assert BoxKind.NONE < BoxKind.BWRAP <= BoxKind.BWRAP
