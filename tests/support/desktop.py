"""The real desktop program on a screen of its own, with keys and a mouse, and a look into its page."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from websockets.asyncio.client import connect

from tests.support.farm import wait_until

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def screen() -> Iterator[str]:
    """A virtual screen; gives its name."""
    reading, writing = os.pipe()
    argv = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1400x1000x24", "-nolisten", "tcp"]
    with subprocess.Popen(argv, pass_fds=(writing,), stderr=subprocess.DEVNULL) as server:
        os.close(writing)
        try:
            with os.fdopen(reading) as told:
                yield f":{told.readline().strip()}"
        finally:
            server.terminate()


class Desktop:
    """`renderonline desktop`, running. `lines`: what it printed."""

    def __init__(self, display: str, home: Path, *words: str, **environment: str) -> None:
        (home / "Downloads").mkdir(parents=True, exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._inspector = f"127.0.0.1:{free.getsockname()[1]}"
        own = {
            "DISPLAY": display,
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_RUNTIME_DIR": str(home),
            "RENDERONLINE_CONFIG": str(home / "config"),
            "PYTHON_KEYRING_BACKEND": "tests.support.file_keyring.FileKeyring",
            "TEST_KEYRING": str(home / "keyring.json"),
            "PYTHONPATH": str(ROOT),
            "QTWEBENGINE_REMOTE_DEBUGGING": self._inspector,
            "QTWEBENGINE_DISABLE_SANDBOX": "1",
            "QTWEBENGINE_CHROMIUM_FLAGS": "--no-sandbox --disable-gpu --disable-background-networking",
            "QT_QPA_PLATFORM": "xcb",
            "PYTHONUNBUFFERED": "1",
        }
        self.display = display
        self.lines: list[str] = []
        argv = [sys.executable, "-m", "renderonline.cli", "desktop", *words]
        self.process = subprocess.Popen(
            argv,
            env={**os.environ, **own, **environment},
            cwd=home,  # where the dialogs begin: typing a path into them opens lists of completions
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def said(self, text: str) -> bool:
        """Whether it printed a line with this text."""
        return any(text in line for line in self.lines)

    def xdotool(self, *words: str) -> str:
        """Keys and mouse, or a question to the screen."""
        environment = {**os.environ, "DISPLAY": self.display}
        return subprocess.run(["xdotool", *words], env=environment, capture_output=True, text=True).stdout.strip()

    def window(self, title: str) -> str:
        """The window whose title has these words, as soon as it is there."""
        return str(wait_until(lambda: self.has_window(title), f"window {title}; the program said {self.lines}"))

    def has_window(self, title: str) -> str:
        """The window with this title, \"\" when there is none."""
        assert self.process.poll() is None, self.lines
        return self.xdotool("search", "--onlyvisible", "--name", title).partition("\n")[0]

    def type(self, window: str, *keys: str, text: str = "") -> None:
        """Type into a window: a text, then keys."""
        self.xdotool("windowfocus", "--sync", window)
        if text:
            self.xdotool("type", "--delay", "5", text)
        if keys:
            self.xdotool("key", "--delay", "20", *keys)

    def page(self, expression: str) -> Any:
        """What JavaScript gives in the page."""
        return asyncio.run(self._evaluate(expression))

    async def _evaluate(self, expression: str) -> Any:
        address = wait_until(self._page_address, f"page to look into; {self.lines}")
        async with connect(address, max_size=None, proxy=None) as inspector:
            asked = {"expression": expression, "returnByValue": True, "awaitPromise": True, "userGesture": True}
            await inspector.send(json.dumps({"id": 1, "method": "Runtime.evaluate", "params": asked}))
            while True:
                answer = json.loads(await asyncio.wait_for(inspector.recv(), 20))
                if answer.get("id") == 1 and "error" in answer:
                    return None  # the page goes elsewhere at this moment
                if answer.get("id") == 1:
                    assert "exceptionDetails" not in answer["result"], answer
                    return answer["result"]["result"].get("value")

    def _page_address(self) -> str:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{self._inspector}/json", timeout=10) as told:
            return next((one["webSocketDebuggerUrl"] for one in json.load(told) if one["type"] == "page"), "")
        return ""

    def shows(self, text: str) -> None:
        """Wait until the page shows these words."""
        wait_until(lambda: text in (self.page("document.body?.innerText") or ""), f"{text!r} on the page; {self.lines}")

    def press(self, selector: str, until: Callable[[], Any]) -> None:
        """Press Return on an element of the page, again while nothing comes of it: a busy screen loses keys."""
        where = f"document.querySelector({json.dumps(selector)})"
        wait_until(lambda: self.page(f"!!{where}"), f"{selector} on the page; {self.lines}")

        def pressed() -> bool:
            self.page(f"{where}?.focus()")
            self.type(self.window("RenderOnline"), "Return")
            with contextlib.suppress(AssertionError):
                return bool(wait_until(until, "effect", 3))
            return False

        wait_until(pressed, f"effect of {selector}; {self.lines}")

    def answer(self, title: str, text: str) -> None:
        """Type a text into a dialog and accept it, again while it stays: a busy screen loses keys."""
        dialog = self.window(title)

        def gone() -> bool:
            self.type(dialog, "ctrl+a")
            self.type(dialog, "Return", text=text)
            with contextlib.suppress(AssertionError):
                return bool(wait_until(lambda: self.has_window(title) != dialog, "end of the dialog", 3))
            return False

        wait_until(gone, f"end of the dialog {title}; {self.lines}")

    def quit(self) -> int:
        """End it as a system does at log-out; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)
