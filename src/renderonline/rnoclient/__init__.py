"""RNOClient: the client library, the web page and the desktop program."""

from pathlib import Path
from typing import Final

WEB_PAGE: Final = Path(__file__).parent / "web" / "static"
"""The web page: static files without a build step, which RenderAPI serves at `/` when it is given this directory."""
