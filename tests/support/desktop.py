"""The real desktop program on a screen of its own, with keys and a mouse, and a look into its page."""

import asyncio
import contextlib
import ctypes
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
CLIENT_MESSAGE = 33
WINDOW = "– RenderOnline$"
"""The window with the page."""
QUESTION = "^RenderOnline$"
"""A dialog that asks something."""


@contextlib.contextmanager
def screen() -> Iterator[str]:
    """A virtual screen; gives its name."""
    reading, writing = os.pipe()
    argv = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1400x1000x24", "-nolisten", "tcp", "-noreset"]
    with subprocess.Popen(argv, pass_fds=(writing,), stderr=subprocess.DEVNULL) as server:
        os.close(writing)
        try:
            with os.fdopen(reading) as told:
                yield f":{told.readline().strip()}"
        finally:
            server.terminate()


@contextlib.contextmanager
def tray(display: str) -> Iterator[None]:
    """A panel with a system tray in a corner of the screen."""
    argv = ["trayer", "--edge", "top", "--align", "right", "--widthtype", "request", "--height", "24"]
    with subprocess.Popen(argv, env={**os.environ, "DISPLAY": display}, stderr=subprocess.DEVNULL) as panel:
        try:
            yield
        finally:
            panel.terminate()


@contextlib.contextmanager
def file_manager(display: str, file: Path) -> Iterator[None]:
    """A window from which `file` can be dragged."""
    argv = [sys.executable, "-m", "tests.support.drag_source", str(file)]
    own = {"DISPLAY": display, "QT_QPA_PLATFORM": "xcb", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, env={**os.environ, **own}) as source:
        try:
            yield
        finally:
            source.kill()


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
            "PYTHONPATH": str(ROOT),
            "QTWEBENGINE_REMOTE_DEBUGGING": self._inspector,
            "QTWEBENGINE_DISABLE_SANDBOX": "1",
            "QTWEBENGINE_CHROMIUM_FLAGS": "--no-sandbox --disable-gpu --disable-background-networking",
            "QT_QPA_PLATFORM": "xcb",
            "PYTHONUNBUFFERED": "1",
        }
        self.display = display
        self.lines: list[str] = []
        argv = [sys.executable, "-m", "renderonline.cli.main", "desktop", *words]
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
        """The window with this title (a regular expression), \"\" when there is none."""
        assert self.process.poll() is None, self.lines
        return self.xdotool("search", "--onlyvisible", "--name", title).partition("\n")[0]

    def small_windows(self) -> list[str]:
        """The tray icon, its menu, its message."""
        assert self.process.poll() is None, self.lines
        seen = self.xdotool("search", "--onlyvisible", "--class", "^RenderOnline$").split()
        return [window for window in seen if self.xdotool("getwindowname", window) == "RenderOnline"]

    def close(self, window: str) -> None:
        """Ask a window to close, as the cross in its frame does."""
        x11 = ctypes.CDLL("libX11.so.6")
        x11.XOpenDisplay.restype = ctypes.c_void_p
        screen = ctypes.c_void_p(x11.XOpenDisplay(self.display.encode()))
        atoms = [x11.XInternAtom(screen, name, 0) for name in (b"WM_PROTOCOLS", b"WM_DELETE_WINDOW")]
        event = (ctypes.c_long * 24)(
            CLIENT_MESSAGE, 0, 0, 0, int(window), atoms[0], 32, atoms[1]
        )  # XClientMessageEvent
        x11.XSendEvent(screen, ctypes.c_ulong(int(window)), 0, ctypes.c_long(0), event)
        x11.XCloseDisplay(screen)

    def click(self, window: str, button: int = 1) -> None:
        """Click into a window, near its left upper corner."""
        self.xdotool("mousemove", "--window", window, "10", "10", "click", str(button))

    def choose(self, icon: str, key: str, until: Callable[[], Any]) -> None:
        """Choose from the tray icon's menu by a key, again while nothing comes of it."""

        def chosen() -> bool:
            with contextlib.suppress(AssertionError):
                if self.small_windows() == [icon]:
                    self.click(icon, 3)
                wait_until(lambda: self.small_windows() != [icon], "menu", 3)
                self.xdotool("key", key)
                wait_until(until, "effect", 3)
            return bool(until())

        wait_until(chosen, f"effect of {key}; {self.lines}")

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
            self.type(self.window(WINDOW), "Return")
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

    def quit(self, by: signal.Signals = signal.SIGTERM) -> int:
        """End it as a system does at log-out; its exit code."""
        self.process.send_signal(by)
        return self.process.wait(30)
