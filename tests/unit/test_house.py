"""What `scripts/house.py` counts, on a small tree."""

from pathlib import Path

import pytest

from scripts.house import House, WrongTable, figures, main

TREE = {
    "barn/__init__.py": "",
    "barn/hay.py": "class Bale:\n    class Straw:\n        pass\n",
    "barn/horse.py": "from barn import hay\nfrom barn.hay import Bale\n",
    "barn/rider.py": "def ride():\n    import barn.horse\n",
    "shop/__init__.py": "from shop.till import OPEN\n",
    "shop/hay.py": "from barn.rider import ride\nclass Bale:\n    pass\n",
    "shop/till.py": "OPEN = '…'\n",
    "shop/main.py": "from shop import OPEN, hay\n",
}
TABLE = {"main_floor": ["barn.*", "shop.till"], "floors": {"barn": 3}}


@pytest.fixture
def src(tmp_path: Path) -> Path:
    for name, text in TREE.items():
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "src"


def counted(src: Path, **table: object) -> dict[str, int]:
    return {figure.label: figure.value for figure in figures(House(src), {**TABLE, **table})}


def test_lines_and_characters_are_those_of_all_files(src: Path) -> None:
    found = counted(src)
    assert found["files"] == len(TREE)
    assert found["lines"] == sum(text.count("\n") for text in TREE.values())
    assert found["characters"] == sum(map(len, TREE.values()))
    assert found["longest file"] == 3


def test_names_of_modules_and_classes_are_used_once(src: Path) -> None:
    house = House(src)
    assert house.repeated_modules(["__init__"]) == ["hay: barn.hay, shop.hay"]
    assert house.repeated_modules(["__init__", "hay"]) == []
    assert house.repeated_classes([]) == ["Bale: barn.hay, shop.hay"]


def test_imports_are_found_at_any_depth_and_packages_by_what_is_theirs(src: Path) -> None:
    imports = House(src).imports
    assert imports["barn.horse"] == {"barn.hay"}
    assert imports["barn.rider"] == {"barn.horse"}
    assert imports["shop.main"] == {"shop.__init__", "shop.hay"}


def test_floors_are_the_longest_chain_inside_a_room(src: Path) -> None:
    house = House(src)
    assert house.longest_chain("barn") == ["barn.hay", "barn.horse", "barn.rider"]
    assert house.longest_chain("shop") == ["shop.till", "shop.__init__", "shop.main"]


def test_circle_of_imports_is_named(src: Path) -> None:
    (src / "barn/hay.py").write_text("import barn.rider\n")
    with pytest.raises(WrongTable, match=r"circle: .*barn\.hay"):
        House(src).longest_chain("barn")


def test_main_floor_is_what_fits_its_patterns_and_imports_no_wing(src: Path) -> None:
    found = counted(src)
    assert found["files of the main floor"] == 5
    assert found["lines of the main floor"] == 3 + 2 + 2 + 1
    assert found["wing imports"] == 0
    assert counted(src, main_floor=["shop.*"])["wing imports"] == 1


def test_pattern_that_fits_no_module_is_counted(src: Path) -> None:
    assert counted(src)["patterns that fit no module"] == 0
    assert counted(src, main_floor=["stable.*"])["patterns that fit no module"] == 1


@pytest.mark.parametrize("table", [{"floors": {"stable": 1}}, {"most_doors": 1}])
def test_key_or_room_that_means_nothing_is_an_error(src: Path, table: dict[str, object]) -> None:
    with pytest.raises(WrongTable, match=r"stable|most_doors"):
        counted(src, **table)


@pytest.mark.parametrize(("most", "code"), [(8, 0), (7, 1)])
def test_check_fails_when_a_limit_is_exceeded(
    src: Path, capsys: pytest.CaptureFixture[str], most: int, code: int
) -> None:
    (src.parent / "pyproject.toml").write_text(f"[tool.renderonline.house]\nmost_files = {most}\n")
    assert main([str(src.parent), "--check"]) == code
    assert ("EXCEEDED" in capsys.readouterr().out) is bool(code)
    assert main([str(src.parent)]) == 0
