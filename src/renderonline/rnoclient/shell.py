"""The desktop program: the farm's page in a window with native dialogs, a tray icon, and messages when tasks end."""

import contextlib
import ctypes
import json
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from PySide6.QtCore import QByteArray, QEvent, QSettings, QStandardPaths, QTimer, QUrl
from PySide6.QtGui import QCloseEvent, QDesktopServices, QIcon, QPixmap
from PySide6.QtNetwork import QNetworkCookie, QSslCertificate
from PySide6.QtWebEngineCore import (
    QWebEngineCertificateError,
    QWebEngineDownloadRequest,
    QWebEngineNewWindowRequest,
    QWebEnginePage,
    QWebEngineProfile,
)
from PySide6.QtWebEngineWidgets import QWebEngineView
from PySide6.QtWidgets import QApplication, QFileDialog, QMainWindow, QMenu, QMessageBox, QSystemTrayIcon, QWidget

from renderonline.farm.errors import NotAuthenticated, NotAvailable, RenderOnlineError
from renderonline.rnoclient import WEB_PAGE
from renderonline.rnoclient.sdk import Client, Login
from renderonline.rnoclient.sdk.connection import ENDED, RESYNC, Connection, Task, stream

NAME: Final = "RenderOnline"
PATIENCE_S: Final = 60.0
RESUME_S: Final = 120.0
"""Seconds without a byte after which the user is asked whether a download goes on."""
RETRY_MS: Final = 1000
LATEST: Final = 500
"""How many of the user's newest tasks are checked for ends that came while the connection was down."""
WORDS: Final = {"succeeded": "is finished", "failed": "has failed", "canceled": "was canceled"}
LISTEN_MS: Final = 100
SIZE: Final = (1280, 860)
SHOWN_MS: Final = 10_000
_REFERENCES: Final = 1 << 30


def run(login: Login) -> int:
    """Show the window until it is closed; the exit code. Raises the error with which RenderAPI refuses the login."""
    _keep_booleans()
    app = QApplication.instance() or QApplication(["renderonline-desktop"])
    assert isinstance(app, QApplication)
    app.setApplicationName(NAME)
    app.setOrganizationName(NAME)
    app.setWindowIcon(_icon())
    app.setQuitOnLastWindowClosed(False)  # it may be hidden while a question is answered
    leaving = threading.Event()

    def leave(*_: object) -> None:
        leaving.set()
        app.exit(0)

    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGTERM, leave)
    ticks = QTimer()
    ticks.timeout.connect(lambda: None)  # Python sees signals only while Python code runs
    ticks.start(LISTEN_MS)
    try:
        session = _enter(login)
    except NotAvailable:
        if leaving.is_set():
            return 0
        raise
    window = Window(login, session)
    ticks.timeout.connect(window.show_messages)
    window.show()
    code = 0 if leaving.is_set() else app.exec()
    ticks.stop()
    window.end()
    return code


class PageSession(NamedTuple):
    """A session of the web page: the RenderAPI that opened it, the cookie that names it, and the certificate (DER) that
    the login trusts there; None over plain HTTP."""

    address: str
    cookie: QNetworkCookie
    certificate: bytes | None


def _enter(login: Login) -> PageSession:
    """Open a session; ask whether to try again while the farm does not answer."""
    buttons = QMessageBox.StandardButton
    while True:
        try:
            return log_in(login)
        except NotAvailable as error:
            if QMessageBox.warning(None, NAME, error.message, buttons.Retry | buttons.Cancel) != buttons.Retry:
                raise


def log_in(login: Login) -> PageSession:
    """Open a session with this login. Raises the error that RenderAPI answers."""
    connection = Connection(login)
    body = json.dumps({"email": login.email, "token": login.token}).encode()
    headers = {"content-type": "application/json", "x-renderonline": "desktop"}  # as the page does
    reply = connection.ask("POST", "/session", body=body, headers=headers)
    found = SimpleCookie(reply.headers.get("set-cookie", ""))
    if not found:
        raise NotAuthenticated("What answered at this address is no RenderAPI of this version.")
    morsel = next(iter(found.values()))
    cookie = QNetworkCookie(morsel.key.encode(), morsel.value.encode())
    cookie.setHttpOnly(True)
    cookie.setPath("/")
    cookie.setSecure(bool(morsel["secure"]))
    cookie.setSameSitePolicy(QNetworkCookie.SameSite.Strict)
    return PageSession(connection.address, cookie, connection.certificate())


def watch_ends(login: Login, report: Callable[[str], None]) -> None:
    """Call `report`, without end, when a task of this user ends. For a thread of its own, which does not touch Qt."""
    while True:
        with contextlib.suppress(RenderOnlineError), Client(login, patience_s=PATIENCE_S) as client:
            for task in _ended_tasks(client):
                warned = ", with warnings" if task.get("warnings") else ""
                report(f"{task['name']} {WORDS[task['status']]}{warned}.")
        time.sleep(1.0)


def _ended_tasks(client: Client) -> Iterator[Task]:
    """Yield the user's tasks as they end. Ends that were missed while the connection was down are found by comparing
    the lists before and after."""
    me = int(client.me()["user_id"])
    open_tasks: set[int] = set()
    for event in stream(client.connection):
        if event.type == RESYNC:
            ours = list(client.tasks(limit=LATEST))
            yield from (task for task in ours if task["task_id"] in open_tasks and task["status"] in ENDED)
            open_tasks = {task["task_id"] for task in ours if task["status"] not in ENDED}
        elif event.type == "task" and event.data["status"] in ENDED:
            task = client.task(event.data["task_id"])
            if task["user_id"] == me:
                yield task
                open_tasks.discard(task["task_id"])


def _keep_booleans() -> None:
    """PySide returns True and False without counting the references; before Python 3.12, where they became immortal,
    the count would reach zero at some time and end the program."""
    if sys.version_info < (3, 12):
        for value in (True, False):
            counter = ctypes.c_ssize_t.from_address(id(value))
            counter.value += _REFERENCES


def _icon() -> QIcon:
    picture = QPixmap()
    picture.loadFromData(QByteArray((WEB_PAGE / "favicon.svg").read_bytes()))
    return QIcon(picture)


class _Page(QWebEnginePage):
    """The farm's page; what belongs to another address is opened by the system's browser."""

    def __init__(
        self, profile: QWebEngineProfile, parent: QWidget, certificate: bytes | None, origins: Sequence[str]
    ) -> None:
        super().__init__(profile, parent)
        self._window, self._certificate, self._origins = parent, certificate, origins
        self.newWindowRequested.connect(self._leave)
        self.certificateError.connect(self._judge)

    def acceptNavigationRequest(  # noqa: N802 - Qt's name
        self,
        url: QUrl | str,
        kind: QWebEnginePage.NavigationType,
        is_main: bool,  # noqa: FBT001 - Qt's signature
        /,
    ) -> bool:
        address = QUrl(url)
        if not is_main or address.scheme() in ("blob", "about") or _origin(address.toString()) in self._origins:
            return True
        _open_outside(address)
        return False

    def _leave(self, request: QWebEngineNewWindowRequest) -> None:
        _open_outside(request.requestedUrl())

    def _judge(self, error: QWebEngineCertificateError) -> None:
        """Accept a certificate that the login trusts although this system does not."""
        chain: list[QSslCertificate] = error.certificateChain()
        if chain and chain[0].toDer().data() == self._certificate:
            error.acceptCertificate()
        else:
            error.rejectCertificate()


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".casefold()


def _open_outside(url: QUrl) -> None:
    if url.scheme() in ("http", "https", "mailto"):
        print(f"Opened in the browser: {url.toString()}", flush=True)
        QDesktopServices.openUrl(url)


class Window(QMainWindow):
    """The page, its downloads, the tray icon and messages. Call `end` before the application ends."""

    def __init__(self, login: Login, session: PageSession) -> None:
        super().__init__()
        self._messages: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=watch_ends, args=(login, self._messages.put), name="events", daemon=True).start()
        self._downloads: set[Download] = set()
        self._profile = QWebEngineProfile(self)  # off the record: each start has a session of its own
        self._profile.cookieStore().setCookie(session.cookie, QUrl(session.address))
        self._profile.downloadRequested.connect(self._save)
        self._view = QWebEngineView(self)
        origins = [_origin(url) for url in login.url.split(",")]
        self._page = _Page(self._profile, self, session.certificate, origins)
        self._view.setPage(self._page)
        self._page.titleChanged.connect(self.setWindowTitle)
        self.setCentralWidget(self._view)
        self._tray = self._make_tray()
        menu = self.menuBar().addMenu("&Farm")
        menu.addAction("&Reload", "F5", self._view.reload)
        menu.addAction("&Quit", "Ctrl+Q", self.close)
        self._settings = QSettings(QSettings.Format.IniFormat, QSettings.Scope.UserScope, NAME, "desktop")
        self.resize(*SIZE)
        geometry: Any = self._settings.value("geometry")
        if isinstance(geometry, QByteArray):
            self.restoreGeometry(geometry)
        self._view.load(QUrl(f"{session.address}/"))

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 - Qt's name
        """End the program; ask first while a download runs."""
        box = QMessageBox.StandardButton
        question = "A download is not finished, and would begin again the next time. Quit?"
        if self._downloads and QMessageBox.question(self, NAME, question) != box.Yes:
            event.ignore()
            return
        event.accept()
        QApplication.exit(0)

    def end(self) -> None:
        """Delete page, view and profile, in the order that WebEngine needs."""
        self._settings.setValue("geometry", self.saveGeometry())
        self._tray.hide()
        self._view.setPage(None)  # type: ignore[arg-type]  # Qt takes a null
        for part in (self._page, self._view, self._profile):
            part.deleteLater()
        QApplication.processEvents()
        QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)

    def _make_tray(self) -> QSystemTrayIcon:
        """The tray icon, which appears as soon as the desktop has a tray."""
        tray = QSystemTrayIcon(self.windowIcon(), self)
        tray.setToolTip(NAME)
        menu = QMenu(self)
        shown = menu.addAction("")
        shown.triggered.connect(self._toggle)
        menu.aboutToShow.connect(lambda: shown.setText("&Hide the window" if self.isVisible() else "&Show the window"))
        menu.addAction("&Quit").triggered.connect(self.close)
        tray.setContextMenu(menu)
        tray.activated.connect(self._tray_clicked)
        tray.messageClicked.connect(self._come_up)
        tray.show()
        return tray

    def _tray_clicked(self, reason: QSystemTrayIcon.ActivationReason) -> None:
        if reason == QSystemTrayIcon.ActivationReason.Trigger:  # the others open the menu
            self._toggle()

    def _toggle(self) -> None:
        if self.isVisible():
            self.hide()
        else:
            self._come_up()

    def _come_up(self) -> None:
        self.showNormal()
        self.raise_()
        self.activateWindow()

    def _save(self, request: QWebEngineDownloadRequest) -> None:
        """Ask where to save a file, and have WebEngine write it there."""
        folder = QStandardPaths.writableLocation(QStandardPaths.StandardLocation.DownloadLocation)
        suggested = str(Path(folder) / request.suggestedFileName())
        name = QFileDialog.getSaveFileName(self, "Save", suggested)[0]
        if not name:
            request.cancel()
            return
        request.setDownloadDirectory(str(Path(name).parent))
        request.setDownloadFileName(Path(name).name)
        self._downloads.add(Download(self, request))
        request.accept()

    def ended(self, download: "Download") -> None:
        """A download is complete, or was given up."""
        self._downloads.discard(download)

    def show_messages(self) -> None:
        """Show the messages about tasks that ended."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.notify(self._messages.get_nowait())

    def show_progress(self, text: str) -> None:
        """Show a text for a while, in the window only."""
        self.statusBar().showMessage(text, SHOWN_MS)

    def notify(self, text: str) -> None:
        """Show a text that the user should see also while the window is hidden."""
        print(text, flush=True)
        self.show_progress(text)
        QApplication.alert(self)
        self._tray.showMessage(NAME, text, self.windowIcon())


class Download:
    """A file that WebEngine writes. A download that was cut goes on where it stopped; after `RESUME_S` without a byte
    the user is asked first."""

    def __init__(self, window: Window, request: QWebEngineDownloadRequest) -> None:
        self._window, self._request = window, request
        self._name = request.downloadFileName()
        self._heard = time.monotonic()
        request.receivedBytesChanged.connect(self._progressed)
        request.stateChanged.connect(self._changed)

    def _progressed(self) -> None:
        self._heard = time.monotonic()
        done, size = self._request.receivedBytes(), self._request.totalBytes()
        self._window.show_progress(f"{self._name}: {done * 100 // size if size > 0 else 0} %")

    def _changed(self, state: QWebEngineDownloadRequest.DownloadState) -> None:
        states = QWebEngineDownloadRequest.DownloadState
        if state == states.DownloadInterrupted:
            QTimer.singleShot(RETRY_MS, self._window, self._go_on)
        elif state == states.DownloadCompleted:
            self._window.notify(f"{self._name} is saved in {self._request.downloadDirectory()}.")
        if state in (states.DownloadCompleted, states.DownloadCancelled):
            self._window.ended(self)

    def _go_on(self) -> None:
        if time.monotonic() - self._heard > RESUME_S:
            text = f"{self._name}: {self._request.interruptReasonString()}"
            buttons = QMessageBox.StandardButton
            if QMessageBox.warning(self._window, NAME, text, buttons.Retry | buttons.Cancel) != buttons.Retry:
                self._request.cancel()
                return
            self._heard = time.monotonic()
        self._request.resume()
