"""Needs that no machine of the farm has, whatever becomes free: what is lacking, and the line that helps
(R9 Scheduling)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from renderonline.farm.needs import Ability, Needs

_INSTALLING: Final = {"blender": "Install it on one: renderonline engine install blender."}
_OTHERS: Final = "Install its program on one; what is found there says: renderonline engine list --here."
_SET: Final = "renderonline machine set NAME"


def unmet(abilities: Sequence[Ability], engine: str, needs: Needs) -> str:
    """Why none of these machines can ever take a chunk, and what to do; "" when one can. `engine` is case-folded."""
    if any(not one.lacks(engine, needs) for one in abilities):
        return ""
    having = [one for one in abilities if engine in dict(one.engines)]
    if not having:
        return f"No machine has the engine {engine}. {_INSTALLING.get(engine, _OTHERS)}"
    lacking = _labels(having, needs) or _sizes(having, engine, needs)
    return f"No machine with {engine} {lacking}" if lacking else f"Every machine with {engine} lacks something of it."


def _labels(having: Sequence[Ability], needs: Needs) -> str:
    """What an operator gives a machine, of which none has it."""
    for tag in needs.tags:
        if not any(tag in one.tags for one in having):
            return f"has the tag {tag}. Give it to one: {_SET} --tags {tag}"
    if any(one.pool == needs.pool for one in having):
        return ""
    if needs.pool:
        return f"is in the pool {needs.pool}. Put one in: {_SET} --pool {needs.pool}"
    return f'is free of a pool. Name a pool when you submit, or free one: {_SET} --pool "".'


def _sizes(having: Sequence[Ability], engine: str, needs: Needs) -> str:
    """What a machine is or has, of which none has enough; each is looked at alone."""
    memory_mib = max(one.memory_mib for one in having)

    def lacked(alone: Needs) -> bool:
        return all(one.lacks(engine, replace(alone, pool=one.pool)) for one in having)

    most = max(one.gpus for one in having)
    fewer = f"the graphics cards that it needs; the most is {most}. Ask for fewer."
    none = "a graphics card. Submit it without --gpus, and for Blender with --arg device=cpu"
    cards = Needs(gpus=needs.gpus, gpu_memory_mib=needs.gpu_memory_mib)
    told = {
        f"is of version {needs.engine_version} or newer. Update it on one.": Needs(needs.engine_version),
        f"can render with {needs.renderer}. Install its add-on on one.": Needs(renderer=needs.renderer),
        "is linked, as it must be for this. Let one join: renderonline machine invite.": Needs(linked=needs.linked),
        f"has the box {needs.sandbox} or a better one. On a machine this says how: renderonline node --check.": Needs(
            sandbox=needs.sandbox
        ),
        f"has {needs.memory_mib} MiB of memory; the most is {memory_mib}. Submit it with less.": Needs(
            memory_mib=needs.memory_mib
        ),
        f"has {fewer if most else none}": cards,
    }
    return next((text for text, alone in told.items() if lacked(alone)), "")
