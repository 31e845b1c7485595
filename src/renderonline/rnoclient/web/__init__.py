"""The web page: static files without a build step, which RenderAPI serves at `/` when it is given this directory."""

from pathlib import Path
from typing import Final

DIRECTORY: Final = Path(__file__).parent / "static"
