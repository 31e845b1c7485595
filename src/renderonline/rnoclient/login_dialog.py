"""Logging in to a farm: the login in the system's keyring, the dialog that asks for it, and the session of the page."""

import json
from concurrent.futures import Future
from dataclasses import asdict, fields
from http.cookies import SimpleCookie
from threading import Thread
from typing import Final, NamedTuple

import keyring
from keyring.errors import KeyringError
from PySide6.QtCore import QEventLoop, QTimer
from PySide6.QtNetwork import QNetworkCookie
from PySide6.QtWidgets import QCheckBox, QDialog, QDialogButtonBox, QFormLayout, QLabel, QLineEdit

from renderonline.farm.errors import InvalidRequest, NotAuthenticated, NotAvailable, RenderOnlineError
from renderonline.rnoclient.sdk import Login
from renderonline.rnoclient.sdk.connection import Connection

_SERVICE, _ENTRY = "renderonline", "desktop"
_FIELDS = tuple(field.name for field in fields(Login))
LOOK_MS: Final = 50
SPACE: Final = 20
"""Pixels around the dialog's fields."""
SHOW_MS: Final = 700
"""A farm that answers sooner to a login that is known is entered without a dialog."""


def remembered() -> Login | None:
    """Return the login of the last start; None when there is none, or no keyring that can be opened."""
    try:
        found = json.loads(keyring.get_password(_SERVICE, _ENTRY) or "null")
        return Login(**{name: found[name] for name in _FIELDS if found.get(name)})
    except (KeyringError, ValueError, TypeError, AttributeError, InvalidRequest):
        return None


def remember(login: Login) -> bool:
    """Store a login in the keyring; return False when this system has none that accepts it."""
    try:
        keyring.set_password(_SERVICE, _ENTRY, json.dumps(asdict(login)))
    except KeyringError:
        return False
    return True


def forget() -> None:
    """Remove the login from the keyring."""
    try:
        keyring.delete_password(_SERVICE, _ENTRY)
    except KeyringError:
        return


class PageSession(NamedTuple):
    """A session of the web page: the RenderAPI that opened it, the cookie that names it, and the certificate (DER) that
    the login trusts there; None over plain HTTP."""

    address: str
    cookie: QNetworkCookie
    certificate: bytes | None


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


class LoginDialog(QDialog):
    """Asks for the farm's address, e-mail and token until they open a session; `login` and `keep` hold the answer."""

    def __init__(self, login: Login, name: str) -> None:
        super().__init__()
        self.login = login
        self._asked: Future[PageSession] | None = None
        self.setWindowTitle(f"{name}: log in")
        self.setMinimumWidth(460)
        form = QFormLayout(self)
        form.setContentsMargins(SPACE, SPACE, SPACE, SPACE)
        form.setVerticalSpacing(SPACE // 2)
        self._url, self._email, self._token = QLineEdit(login.url), QLineEdit(login.email), QLineEdit(login.token)
        self._url.setPlaceholderText("https://farm.example:5000")
        self._token.setEchoMode(QLineEdit.EchoMode.Password)
        self.keep = QCheckBox("Remember in this computer's keyring")
        self.keep.setChecked(True)
        for label, field in (("&Farm", self._url), ("&E-mail", self._email), ("&Token", self._token)):
            form.addRow(label, field)
        form.addRow("", self.keep)
        self._message = QLabel()
        self._message.setWordWrap(True)
        form.addRow(self._message)
        kinds = QDialogButtonBox.StandardButton
        buttons = QDialogButtonBox(kinds.Ok | kinds.Cancel)
        self._ok = buttons.button(kinds.Ok)
        self._ok.setText("Log in")
        buttons.accepted.connect(self._ask)
        buttons.rejected.connect(self.reject)
        form.addRow(buttons)
        self._looking = QTimer(self)  # also lets Python see signals
        self._looking.timeout.connect(self._look)
        self._looking.start(LOOK_MS)

    def session(self) -> PageSession | None:
        """Ask until a farm has been entered; None when the user gave up. A complete login is tried at once."""
        waiting = QEventLoop()
        self.finished.connect(waiting.quit)
        if self.login.url and self.login.token:
            self._ask()
            QTimer.singleShot(SHOW_MS, self, self._show_waiting)
        else:
            self._say("")
            self.show()
        waiting.exec()
        self._looking.stop()
        return self._asked.result() if self._asked is not None and self.result() == self.DialogCode.Accepted else None

    def _ask(self) -> None:
        """Begin to log in, in a thread: an address that does not answer must not stop the dialog."""
        url, email, token = (field.text().strip() for field in (self._url, self._email, self._token))
        url = url.rstrip("/") if "://" in url else f"https://{url.rstrip('/')}"
        if (url, email, token) != (self.login.url, self.login.email, self.login.token):
            try:
                self.login = Login(url, email, token)
            except InvalidRequest as error:
                self._say(error.message)
                return
        self._asked = asked = Future[PageSession]()
        Thread(target=_settle, args=(asked, self.login), name="login", daemon=True).start()
        self._say(f"Asking {url} …")

    def _show_waiting(self) -> None:
        if self._asked is not None and not self._asked.done():
            self.show()

    def _look(self) -> None:
        if self._asked is None or not self._asked.done():
            return
        error = self._asked.exception()
        if error is None:
            self.accept()
            return
        self._asked = None
        refusal = error.message if isinstance(error, RenderOnlineError) else str(error)
        print(refusal, flush=True)
        self._say(refusal)
        self._ok.setText("Try again" if isinstance(error, NotAvailable) else "Log in")
        self.show()
        if isinstance(error, NotAuthenticated):
            self._token.setFocus()
            self._token.selectAll()

    def _say(self, text: str) -> None:
        """Show a text; while a farm is asked nothing can be changed."""
        self._message.setText(text)
        self._message.setVisible(bool(text))
        for part in (self._url, self._email, self._token, self.keep, self._ok):
            part.setEnabled(self._asked is None)
        if self._asked is None:
            empty = [field for field in (self._url, self._email, self._token) if not field.text()]
            (empty[0] if empty else self._ok).setFocus()
        self.adjustSize()


def _settle(asked: Future[PageSession], login: Login) -> None:
    try:
        asked.set_result(log_in(login))
    except Exception as error:  # noqa: BLE001 - shown in the dialog
        asked.set_exception(error)
