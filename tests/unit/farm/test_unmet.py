"""What no machine can take, and the line that helps."""

import pytest

from renderonline.farm.needs import Ability, BoxKind, Needs, unmet

CYCLES = frozenset({("blender", "CYCLES")})
PLAIN = Ability(1, (("blender", "5.0.1"),), memory_mib=16_000, sandbox=BoxKind.LANDLOCK, renderers=CYCLES)
CARDS = Ability(2, (("blender", "4.2"),), tags=frozenset({"gpu"}), memory_mib=8_000, gpus=1, renderers=CYCLES)
OLD = Ability(4, (("pbrt", "4"),), linked=False)
POOLED = Ability(3, (("povray", "3.7"),), pool="film")


@pytest.mark.parametrize(
    ("engine", "needs", "told"),
    [
        ("blender", Needs(), ""),
        ("blender", Needs(tags=("gpu",), gpus=1, memory_mib=8_000), ""),
        ("mitsuba", Needs(), "No machine has the engine mitsuba. Install its program on one; to see what is"),
        (
            "blender",
            Needs(tags=("gpu", "lake")),
            "has the tag lake. Give it to one: renderonline machine set NAME --tags",
        ),
        ("blender", Needs(pool="film"), "is in the pool film. Put one in: renderonline machine set NAME --pool film"),
        ("povray", Needs(), "is free of a pool. Name a pool when you submit, or free one"),
        ("blender", Needs(engine_version="5.1"), "is of version 5.1 or newer. Update it on one."),
        ("pbrt", Needs(linked=True), "is linked, as it must be for this. Let one join: renderonline machine invite."),
        ("blender", Needs(renderer="OCTANE"), "can render with OCTANE. Install its add-on on one."),
        ("blender", Needs(gpus=1, gpu_memory_mib=9_000), "has the graphics cards that it needs; the most is 1."),
        ("blender", Needs(sandbox="bwrap"), "has the box bwrap or a better one."),
        ("blender", Needs(memory_mib=16_001), "has 16001 MiB of memory; the most is 16000. Submit it with less."),
        ("blender", Needs(gpus=2), "has the graphics cards that it needs; the most is 1. Ask for fewer."),
        ("blender", Needs(gpus=1, memory_mib=9_000), "No machine with blender has all that it needs."),
    ],
)
def test_what_no_machine_has_is_told_with_the_line_that_helps(engine: str, needs: Needs, told: str) -> None:
    found = unmet((PLAIN, CARDS, POOLED, OLD), engine, needs)
    assert found == told or (told and told in found)


def test_engine_that_we_can_install_is_told_so() -> None:
    assert unmet((POOLED,), "blender", Needs()).endswith("renderonline engine install blender.")


def test_farm_without_any_card_is_told_how_to_do_without() -> None:
    assert unmet((PLAIN,), "blender", Needs(gpus=1)).endswith("without --gpus, and for Blender with --arg device=cpu")
