"""A farm that paints, and visitors with a real browser who notice what a page must never do."""

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Page, Request, ViewportSize

from renderonline.rnoclient.sdk.connection import Login
from tests.support.farm import RealFarm

WIDE: Final[ViewportSize] = {"width": 1280, "height": 800}
PHONE: Final[ViewportSize] = {"width": 360, "height": 740}
PATIENCE_MS: Final = 120_000
"""What is waited for comes sooner by far, but computers that test are busy."""
CHROMIUM: Final = "/usr/bin/chromium"
FLAGS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-features=Translate,OptimizationHints",
)
SCREENSHOTS = Path(os.environ.get("RENDERONLINE_SCREENSHOTS", "screenshots"))


@dataclass
class PaintedFarm:
    """A farm whose machine paints frames."""

    real: RealFarm
    directory: Path
    cookies: list[Any] = field(default_factory=list)
    """Of a session of the administrator, once there is one."""

    @property
    def url(self) -> str:
        return self.real.url

    @property
    def login(self) -> Login:
        return self.real.login

    def scene(self, name: str = "lake.paint", text: str = "a lake\n") -> Path:
        """A scene file; a line `fail N` makes frame N fail, each `chatter` is a line of log."""
        path = self.directory / name
        path.write_text(text)
        return path

    def submit(self, name: str, frames: str, *, scene: str = "a lake\n", **more: Any) -> int:
        """Submit a task; its number."""
        task = self.real.client.submit(self.scene(text=scene), engine="painter", frames=frames, name=name, **more)
        return int(task["task_id"])

    def rendered(self, name: str, frames: str, *statuses: str, **more: Any) -> int:
        """Submit a task and wait until it has ended, or has one of the statuses."""
        task_id = self.submit(name, frames, **more)
        self.real.wait_for_status(task_id, *(statuses or ("succeeded",)))
        return task_id


@dataclass
class Watched:
    """What pages did that they must never do: errors, violations of the policy, requests to other hosts."""

    host: str
    expected: list[str] = field(default_factory=list)
    """Parts of console messages that a test provokes."""
    faults: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.faults.append(f"page error: {error}"))
        page.on("console", lambda message: self._said(message.type, message.text))
        page.on("request", self._asked)

    def _said(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"} and not any(part in text for part in self.expected):
            self.faults.append(f"console {kind}: {text}")

    def _asked(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme in {"http", "https"} and address.netloc != self.host:
            self.faults.append(f"request to {request.url}")


@dataclass
class Visitor:
    """Opens pages in contexts of their own, logged in unless a test wants otherwise."""

    farm: PaintedFarm
    browser: Browser
    watched: Watched
    exits: contextlib.ExitStack

    def context(self, **options: Any) -> BrowserContext:
        options = {"viewport": WIDE, "accept_downloads": True, "base_url": self.farm.url, **options}
        return self._kept(self.browser.new_context(**options))

    def profile(self, directory: Path) -> BrowserContext:
        """A browser of its own that keeps what it knows in `directory`: closed and started again it is the same."""
        kind = self.browser.browser_type
        return self._kept(
            kind.launch_persistent_context(
                directory, executable_path=CHROMIUM, args=FLAGS, viewport=WIDE, base_url=self.farm.url
            )
        )

    def _kept(self, context: BrowserContext) -> BrowserContext:
        context.set_default_timeout(PATIENCE_MS)
        self.exits.callback(context.close)
        return context

    def page(self, path: str = "/", *, login: Login | None = None, context: BrowserContext | None = None) -> Page:
        """A page that somebody (the administrator by default) sees after logging in."""
        context = context or self.context()
        if login is None and self.farm.cookies:
            context.add_cookies(self.farm.cookies)
        page = context.new_page()
        self.watched.watch(page)
        page.goto(path)
        page.get_by_label("E-mail").or_(page.locator("header.top")).first.wait_for()
        if page.get_by_label("E-mail").count():
            log_in(page, login or self.farm.login)
            if login is None:
                self.farm.cookies = list(context.cookies())
        return page


def log_in(page: Page, login: Login) -> None:
    page.get_by_label("E-mail").fill(login.email)
    page.get_by_label("Token").fill(login.token)
    page.get_by_role("button", name="Log in").click()
    page.locator("header.top").wait_for()
