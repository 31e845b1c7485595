"""Starts the launcher: run as a directory (`python -I …/launcher`), it is no package yet, so it becomes one first."""

import importlib.util
import os
import sys
from typing import Final

NAME: Final = "renderonline_launcher"


def become_package() -> None:
    """Make the modules that lie beside this file importable under a name that nothing else has."""
    directory = os.path.dirname(os.path.abspath(__file__))
    # Blender has modules of its own called like some of these.
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != directory]
    beginning = os.path.join(directory, "__init__.py")
    spec = importlib.util.spec_from_file_location(NAME, beginning, submodule_search_locations=[directory])
    if spec is None or spec.loader is None:
        raise ImportError(f"{beginning} can't be imported")
    sys.modules[NAME] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


if __name__ == "__main__":
    become_package()
    # Blender the program has its own words in front of ours.
    words = sys.argv[sys.argv.index("--") + 1 :] if "bpy" in sys.modules else sys.argv[1:]
    importlib.import_module(f"{NAME}.command").run(words)
