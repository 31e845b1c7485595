"""RenderAPI that asks existing nodes more often than the real one, so that tests of them don't wait for its polls.

As a program: `python tests/support/quick_renderapi.py api …` takes the words of `renderonline`.
"""

import sys
from unittest import mock

from renderonline.cli.main import main
from renderonline.renderapi import existing

QUICKER = 5
INTERVALS = ("BUSY_S", "IDLE_S", "AGAIN_S", "REFUSAL_S")

if __name__ == "__main__":
    with mock.patch.multiple(existing, **{name: getattr(existing, name) / QUICKER for name in INTERVALS}):
        sys.exit(main())
