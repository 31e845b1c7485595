"""The desktop program: the farm's web page in a window with native dialogs, a tray icon, and messages when tasks end.

Downloads and watching for ends run in threads without Qt (`Background`), whose messages the window reads from a queue.
"""

import ctypes
import queue
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from PySide6.QtCore import QByteArray, QEvent, QSettings, QStandardPaths, QTimer, QUrl
from PySide6.QtGui import QAction, QCloseEvent, QDesktopServices, QIcon, QPixmap
from PySide6.QtNetwork import QSslCertificate
from PySide6.QtWebEngineCore import (
    QWebEngineCertificateError,
    QWebEngineDownloadRequest,
    QWebEngineNewWindowRequest,
    QWebEnginePage,
    QWebEngineProfile,
)
from PySide6.QtWebEngineWidgets import QWebEngineView
from PySide6.QtWidgets import QApplication, QFileDialog, QMainWindow, QMenu, QMessageBox, QSystemTrayIcon, QWidget

from renderonline.farm.errors import RenderOnlineError
from renderonline.rnoclient import WEB_PAGE
from renderonline.rnoclient.login_dialog import LoginDialog, PageSession, forget, remember
from renderonline.rnoclient.sdk import Client, Login
from renderonline.rnoclient.sdk.connection import BASE, ENDED, RESYNC, Task, stream
from renderonline.rnoclient.sdk.downloading import fetch

PATIENCE_S: Final = 60.0
LATEST: Final = 500
"""How many of the user's newest tasks are checked for ends that came while the connection was down."""
WORDS: Final = {"succeeded": "is finished", "failed": "has failed", "canceled": "was canceled"}


@dataclass(frozen=True, slots=True)
class Notice:
    """A message for the user. `loud`: it is also shown while the window is hidden."""

    text: str
    loud: bool = False


@dataclass(frozen=True, slots=True)
class FailedDownload:
    """A download that ended before the file was complete; `again` resumes it."""

    text: str
    again: Callable[[], None]


class Background:
    """Downloads and watching for one login. The window reads `messages`."""

    def __init__(self, login: Login) -> None:
        self.messages: queue.SimpleQueue[Notice | FailedDownload] = queue.SimpleQueue()
        self._login = login
        self._closed = threading.Event()
        self._running = 0
        self._count = threading.Lock()

    @property
    def downloads(self) -> int:
        """The number of running downloads."""
        return self._running

    def close(self) -> None:
        """Stop the downloads; the parts stay, and a later download resumes them."""
        self._closed.set()

    def download(self, path: str, target: Path) -> None:
        """Fetch `path` of RenderAPI to `target`; a part that is there already is not sent again."""
        with self._count:
            self._running += 1
        threading.Thread(target=self._download, args=(path, target), name="download", daemon=True).start()

    def watch(self) -> None:
        """Report when a task of this user ends."""
        threading.Thread(target=self._watch, name="events", daemon=True).start()

    def _download(self, path: str, target: Path) -> None:
        shown = -1

        def progress(done: int, size: int) -> None:
            nonlocal shown
            if self._closed.is_set():
                raise KeyboardInterrupt
            percent = done * 100 // size if size > 0 else 0
            if percent != shown:
                shown = percent
                self.messages.put(Notice(f"{target.name}: {percent} %"))

        try:
            with Client(self._login, patience_s=PATIENCE_S) as client:
                fetch(client.connection, path, target, progress=progress)
            self.messages.put(Notice(f"{target.name} is saved in {target.parent}.", loud=True))
        except RenderOnlineError as error:
            self.messages.put(FailedDownload(f"{target.name}: {error.message}", lambda: self.download(path, target)))
        except KeyboardInterrupt:
            return
        finally:
            with self._count:
                self._running -= 1

    def _watch(self) -> None:
        while not self._closed.wait(1.0):
            try:
                with Client(self._login, patience_s=PATIENCE_S) as client:
                    me = int(client.me()["user_id"])
                    self._report_ends(client, me)
            except RenderOnlineError:
                continue

    def _report_ends(self, client: Client, me: int) -> None:
        """Ends that were missed while the connection was down are found by comparing the lists before and after."""
        open_tasks: set[int] = set()
        for event in stream(client.connection):
            if event.type == RESYNC:
                ours = list(client.tasks(limit=LATEST))
                for task in ours:
                    if task["task_id"] in open_tasks and task["status"] in ENDED:
                        self._report(task)
                open_tasks = {task["task_id"] for task in ours if task["status"] not in ENDED}
            elif event.type == "task" and event.data["status"] in ENDED:
                task = client.task(event.data["task_id"])
                if task["user_id"] == me:
                    self._report(task)
                    open_tasks.discard(task["task_id"])

    def _report(self, task: Task) -> None:
        warned = ", with warnings" if task.get("warnings") else ""
        self.messages.put(Notice(f"{task['name']} {WORDS[task['status']]}{warned}.", loud=True))


NAME: Final = "RenderOnline"
LISTEN_MS: Final = 100
SIZE: Final = (1280, 860)
SHOWN_MS: Final = 10_000
_REFERENCES: Final = 1 << 30


def run(login: Login | None, *, url: str = "", is_new: bool = False) -> int:
    """Show the window until it is closed; the exit code. Without a `login` (or when it is refused) one is asked for.

    `is_new`: the login is not in the keyring yet and no question is asked about it.
    """
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
    dialog = LoginDialog(login or Login(url), NAME)
    session = dialog.session()
    if session is None:
        return 0
    if dialog.keep.isChecked() and (is_new or dialog.login != login) and not remember(dialog.login):
        print("This system has no keyring: the login is not remembered.")
    window = Window(dialog.login, session)
    window.show()
    code = 0 if leaving.is_set() else app.exec()
    window.end()
    return code


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

    def chooseFiles(  # noqa: N802 - Qt's name
        self, mode: QWebEnginePage.FileSelectionMode, _old: Sequence[str], _types: Sequence[str]
    ) -> list[str]:
        modes = QWebEnginePage.FileSelectionMode
        if mode == modes.FileSelectUploadFolder:
            folder = QFileDialog.getExistingDirectory(self._window, "Choose a folder")
            return [folder] if folder else []
        if mode == modes.FileSelectOpenMultiple:
            return QFileDialog.getOpenFileNames(self._window, "Choose files")[0]
        name = QFileDialog.getOpenFileName(self._window, "Choose a file")[0]
        return [name] if name else []

    def _leave(self, request: QWebEngineNewWindowRequest) -> None:
        _open_outside(request.requestedUrl())

    def _judge(self, error: QWebEngineCertificateError) -> None:
        """The login may trust what this system does not: an authority of its own, or one certificate."""
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
    """The page, and what comes and goes beside it. `end` before the application ends."""

    def __init__(self, login: Login, session: PageSession) -> None:
        super().__init__()
        self._login = login
        self._origins = [_origin(url) for url in login.url.split(",")]
        self._background = Background(login)
        self._profile = QWebEngineProfile(self)  # off the record: the keyring is the only memory
        self._profile.cookieStore().setCookie(session.cookie, QUrl(session.address))
        self._profile.downloadRequested.connect(self._save)
        self._view = QWebEngineView(self)
        self._page = _Page(self._profile, self, session.certificate, self._origins)
        self._view.setPage(self._page)
        self._page.titleChanged.connect(self.setWindowTitle)
        self.setCentralWidget(self._view)
        self._tray = self._make_tray()
        self._add_menu()
        self._listening = QTimer(self)
        self._listening.timeout.connect(self._listen)
        self._listening.start(LISTEN_MS)  # also lets Python see signals
        self._settings = QSettings(QSettings.Format.IniFormat, QSettings.Scope.UserScope, NAME, "desktop")
        self.resize(*SIZE)
        geometry: Any = self._settings.value("geometry")
        if isinstance(geometry, QByteArray):
            self.restoreGeometry(geometry)
        self._background.watch()
        self._view.load(QUrl(f"{session.address}/"))

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 - Qt's name
        """Closing the window ends the program; a download that runs is asked about."""
        box = QMessageBox.StandardButton
        question = (
            "A download is not finished. It goes on where it stopped when you save to the same place again. Quit?"
        )
        if self._background.downloads and QMessageBox.question(self, NAME, question) != box.Yes:
            event.ignore()
            return
        event.accept()
        QApplication.exit(0)

    def end(self) -> None:
        """Take everything down in the order that WebEngine wants: page, view, profile."""
        self._settings.setValue("geometry", self.saveGeometry())
        self._background.close()
        self._listening.stop()
        self._tray.hide()
        self._view.setPage(None)  # type: ignore[arg-type]  # Qt takes a null
        for part in (self._page, self._view, self._profile):
            part.deleteLater()
        QApplication.processEvents()
        QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)

    def _make_tray(self) -> QSystemTrayIcon:
        """An icon that is seen as soon as the desktop has a tray."""
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

    def _add_menu(self) -> None:
        menu = self.menuBar().addMenu("&Farm")
        for label, keys, act in (
            ("&Reload", "F5", self._view.reload),
            ("&Forget this login", "", self._forget),
            ("&Quit", "Ctrl+Q", self.close),
        ):
            action = QAction(label, self)
            action.setShortcut(keys)
            action.triggered.connect(act)
            menu.addAction(action)

    def _forget(self) -> None:
        forget()
        self.close()

    def _save(self, request: QWebEngineDownloadRequest) -> None:
        """Ask where to, then fetch it ourselves: straight to the disk, and resumed after a cut."""
        folder = QStandardPaths.writableLocation(QStandardPaths.StandardLocation.DownloadLocation)
        suggested = str(Path(folder) / request.suggestedFileName())
        name = QFileDialog.getSaveFileName(self, "Save", suggested)[0]
        url = request.url()
        if not name:
            request.cancel()
        elif _origin(url.toString()) in self._origins and url.path().startswith(BASE):
            request.cancel()
            query = "&".join(part for part in url.query().split("&") if part and not part.startswith("ticket="))
            self._background.download(url.path(QUrl.ComponentFormattingOption.FullyEncoded).removeprefix(BASE)
                                + (f"?{query}" if query else ""), Path(name))  # fmt: skip
        else:  # what the page itself made
            request.setDownloadDirectory(str(Path(name).parent))
            request.setDownloadFileName(Path(name).name)
            request.accept()

    def _listen(self) -> None:
        """Show the messages of the background threads."""
        while True:
            try:
                message = self._background.messages.get_nowait()
            except queue.Empty:
                return
            self.statusBar().showMessage(message.text, SHOWN_MS)
            if isinstance(message, FailedDownload):
                self._offer_again(message)
            elif message.loud:
                self._notify(message)

    def _notify(self, message: Notice) -> None:
        print(message.text, flush=True)
        QApplication.alert(self)
        self._tray.showMessage(NAME, message.text, self.windowIcon())

    def _offer_again(self, failed: FailedDownload) -> None:
        box = QMessageBox.StandardButton
        if QMessageBox.warning(self, NAME, failed.text, box.Retry | box.Cancel) == box.Retry:
            failed.again()
