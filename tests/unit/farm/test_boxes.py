from renderonline.farm.needs import BoxKind


def test_kinds_are_ordered_from_the_weakest_to_the_strongest() -> None:
    assert sorted(BoxKind, key=lambda kind: kind.rank) == ["none", "landlock", "bwrap"]
