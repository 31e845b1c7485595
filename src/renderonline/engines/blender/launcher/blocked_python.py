"""What of a scene does nothing here because its own Python is switched off."""

from collections.abc import Iterator
from typing import Any, Final

from .speech import several

ADVICE: Final = "Bake what they do into keyframes before you submit."


class Blocked:
    """Finds each thing once; drivers only show it after a frame."""

    def __init__(self, bpy: Any) -> None:
        self._bpy = bpy
        self._looked = False

    def found(self) -> Iterator[str]:
        """Sentences about what is off, after the first frame; nothing later."""
        if self._looked:
            return
        self._looked = True
        texts = [text.name for text in self._bpy.data.texts if text.use_module]
        if texts:
            yield f"Python is switched off on this farm; these scripts did not run: {several(texts)}. {ADVICE}"
        drivers = sorted({driver.expression for driver in self._drivers() if _is_blocked(driver)})
        if drivers:
            yield f"Python is switched off on this farm; these drivers stand still: {several(drivers)}. {ADVICE}"

    def _drivers(self) -> Iterator[Any]:
        data = self._bpy.data
        for collection in data.bl_rna.properties:
            if collection.type == "COLLECTION":
                for block in getattr(data, collection.identifier):
                    for owner in (block, getattr(block, "node_tree", None)):
                        animation = getattr(owner, "animation_data", None)
                        yield from (curve.driver for curve in (animation.drivers if animation else ()))


def _is_blocked(driver: Any) -> bool:
    return driver.type == "SCRIPTED" and not driver.is_simple_expression and not driver.is_valid
