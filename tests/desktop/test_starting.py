"""The real desktop program under Xvfb: how it starts, and that it ends cleanly whatever ends it."""

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import psutil
import pytest

from renderonline.sandbox.privacy import write_private
from tests.faults.proxy import Proxy
from tests.support.certificates import self_signed
from tests.support.desktop import QUESTION, WINDOW, Desktop
from tests.support.farm import RealFarm, wait_until

pytestmark = [pytest.mark.timeout(180)]


def start(farm: RealFarm, display: str, home: Path, url: str = "") -> Desktop:
    login = {"RENDERONLINE_EMAIL": farm.login.email, "RENDERONLINE_TOKEN": farm.login.token}
    return Desktop(display, home, "--url", url or farm.url, **login)


def test_login_of_the_command_line_opens_the_page(farm: RealFarm, display: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    login = {"url": farm.url, "email": farm.login.email, "token": farm.login.token}
    write_private(home / "config" / "client.json", json.dumps(login))
    with Desktop(display, home) as desktop:
        desktop.shows("New task")
        assert desktop.page("location.host") == farm.url.partition("//")[2]
        desktop.type(desktop.window(WINDOW), "ctrl+q")
        assert desktop.process.wait(30) == 0


@pytest.mark.parametrize(
    ("token", "word", "code"), [("", "renderonline login", 3), ("wrong", "don't belong to an active account", 3)]
)
def test_missing_or_wrong_login_is_an_error_of_the_command(
    farm: RealFarm, display: str, tmp_path: Path, token: str, word: str, code: int
) -> None:
    login = {"RENDERONLINE_EMAIL": farm.login.email, "RENDERONLINE_TOKEN": token}
    with Desktop(display, tmp_path / "home", "--url", farm.url, **login) as desktop:
        assert desktop.process.wait(30) == code
        wait_until(lambda: desktop.said(word), "refusal")


def test_farm_that_can_not_be_reached_is_tried_again(farm: RealFarm, display: str, tmp_path: Path) -> None:
    proxy = Proxy(int(farm.url.rpartition(":")[2]))
    proxy.refusing = True
    with start(farm, display, tmp_path / "home", proxy.url) as desktop:
        dialog = desktop.window(QUESTION)
        proxy.heal()
        desktop.type(dialog, "Return")
        desktop.shows("New task")
        assert desktop.quit() == 0
    proxy.close()


@pytest.mark.parametrize("trust", ["ca_file", "fingerprint"])
def test_farm_whose_certificate_only_the_login_trusts(display: str, tmp_path: Path, trust: str) -> None:
    files, _ = self_signed(tmp_path)
    certificate = ssl.PEM_cert_to_DER_cert(files.fullchain_pem_path.read_text())
    trusted = {"ca_file": str(files.fullchain_pem_path), "fingerprint": f"sha256:{sha256(certificate).hexdigest()}"}
    tls = ("--certificate", str(files.fullchain_pem_path), "--key", str(files.priv_pem_path))
    with RealFarm(tmp_path, flags=tls) as farm:
        login = {"url": farm.url, "email": farm.login.email, "token": farm.login.token, trust: trusted[trust]}
        write_private(tmp_path / "home" / "config" / "client.json", json.dumps(login))
        with Desktop(display, tmp_path / "home") as desktop:
            desktop.shows("New task")
            assert desktop.page("location.protocol") == "https:"
            assert desktop.quit() == 0


def test_two_starts_at_once_are_two_windows(farm: RealFarm, display: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with start(farm, display, home) as one, start(farm, display, home) as other:
        one.shows("New task")
        other.shows("New task")
        assert (one.quit(), other.quit()) == (0, 0)


ENDS: dict[str, Callable[[Desktop], object]] = {
    "closed": lambda desktop: desktop.close(desktop.window(WINDOW)),
    "terminated": lambda desktop: desktop.process.send_signal(signal.SIGTERM),
    "interrupted": lambda desktop: desktop.process.send_signal(signal.SIGINT),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_end_is_clean_and_leaves_no_process(
    farm: RealFarm, display: str, tmp_path: Path, end: Callable[[Desktop], object]
) -> None:
    with start(farm, display, tmp_path / "home") as desktop:
        desktop.shows("New task")
        family = psutil.Process(desktop.process.pid).children(recursive=True)
        assert family
        end(desktop)
        assert desktop.process.wait(30) == 0
        assert not psutil.wait_procs(family, timeout=30)[1]
        assert not [line for line in desktop.lines if "abort" in line.lower() or "Traceback" in line], desktop.lines


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_program_while_a_dialog_asks(
    farm: RealFarm, display: str, tmp_path: Path, by: signal.Signals
) -> None:
    with start(farm, display, tmp_path / "home", "http://127.0.0.1:9") as asking:
        asking.window(QUESTION)
        assert asking.quit(by) == 0


def test_signal_ends_the_program_while_a_file_is_chosen(farm: RealFarm, display: str, tmp_path: Path) -> None:
    with start(farm, display, tmp_path / "home") as desktop:
        desktop.shows("New task")
        desktop.page("history.pushState(null, '', '/submit'); dispatchEvent(new PopStateEvent('popstate'))")
        desktop.press("input[type=file]:not([webkitdirectory])", lambda: desktop.has_window("^Open$"))
        assert desktop.quit() == 0


def command(home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "renderonline.cli.main", "desktop"]
    clean = {name: value for name, value in os.environ.items() if name not in {"DISPLAY", "WAYLAND_DISPLAY"}}
    own = {"RENDERONLINE_CONFIG": str(home), **environment}
    return subprocess.run(argv, env={**clean, **own}, capture_output=True, text=True, timeout=60)


def test_missing_extra_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    (tmp_path / "PySide6.py").write_text("raise ModuleNotFoundError(\"No module named 'PySide6'\")\n")
    done = command(tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "pip install 'renderonline[desktop]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a screen")
def test_start_without_a_screen_says_so(tmp_path: Path) -> None:
    done = command(tmp_path)
    assert done.returncode == 1
    assert "There is no screen here" in done.stderr
