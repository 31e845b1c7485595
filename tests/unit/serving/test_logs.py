"""Logs: one form for what we say and what libraries say."""

import json
import subprocess
import sys

import pytest

from renderonline.farm.errors import InvalidRequest
from renderonline.serving.settings import configure_logs

PROGRAM = """
import logging, structlog
from renderonline.serving.settings import configure_logs
configure_logs(json_lines={json_lines}, level="info")
log = structlog.get_logger("ours")
log.debug("not shown")
log.info("machine has joined", machine=7)
logging.getLogger("theirs").warning("disk is %s", "slow")
logging.getLogger("uvicorn.error").info("not shown")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("went wrong")
"""


def lines(json_lines: bool) -> list[str]:
    program = [sys.executable, "-c", PROGRAM.format(json_lines=json_lines)]
    return subprocess.run(program, check=True, capture_output=True, text=True, timeout=60).stderr.splitlines()


def test_json_lines_hold_everything() -> None:
    first, second, third = (json.loads(line) for line in lines(True))
    assert (first["event"], first["machine"], first["level"], first["logger"]) == (
        "machine has joined",
        7,
        "info",
        "ours",
    )
    assert (second["event"], second["level"], second["logger"]) == ("disk is slow", "warning", "theirs")
    assert third["exception"][0]["exc_type"] == "ZeroDivisionError"
    assert first["timestamp"].endswith("Z")


def test_lines_for_people_hold_the_same() -> None:
    text = "\n".join(lines(False))
    assert "machine has joined" in text
    assert "machine=7" in text
    assert "disk is slow" in text
    assert "ZeroDivisionError" in text
    assert "not shown" not in text


def test_unknown_level_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="Log level loud"):
        configure_logs(json_lines=False, level="loud")
