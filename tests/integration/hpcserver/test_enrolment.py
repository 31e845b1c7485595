"""Joining a farm: codes, secrets, and certificates that are pinned by their fingerprint."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from renderonline.farm.errors import InvalidRequest, NotAuthenticated, NotAvailable
from renderonline.hpcserver import joining
from renderonline.protocol.calls import Trust
from renderonline.sandbox.privacy import write_private
from tests.support.pinned_certificates import Certificate


class Farm:
    """What a server was asked, and what it answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.answer: tuple[int, bytes] = (200, b'{"machine_id": 1001, "secret": "s3cret"}')
        self.url = ""


@contextmanager
def serving(certificate: Certificate | None = None) -> Iterator[Farm]:
    farm = Farm()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            farm.asked.append((self.path, json.loads(self.rfile.read(length))))
            self.send_response(farm.answer[0])
            self.send_header("Content-Length", str(len(farm.answer[1])))
            self.end_headers()
            self.wfile.write(farm.answer[1])

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(HTTPServer):
        def handle_error(self, *_: object) -> None:
            pass

    with Quiet(("127.0.0.1", 0), Handler) as server:
        if certificate is not None:
            server.socket = certificate.server_context().wrap_socket(server.socket, server_side=True)
        farm.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield farm
        server.shutdown()
        thread.join()


def test_of_several_renderapis_the_one_that_dispatches_takes_the_machine(tmp_path: Path) -> None:
    with serving() as standby, serving() as farm:
        standby.answer = (503, b'{"detail": "This RenderAPI stands by.", "code": "standby"}')
        both = f"{standby.url}/,{farm.url}"
        identity = joining.enrol(tmp_path, both, code="AB-CD", name="box")
        assert identity.url == both.replace("/,", ",")
        assert [turn.url for turn, _ in zip(identity.turns(), range(3), strict=False)] == [
            standby.url, farm.url, standby.url
        ]  # fmt: skip
        assert joining.identity_at(tmp_path, both) == identity


def test_address_that_is_added_later_is_kept_and_a_strange_farm_is_not_told_the_secret(tmp_path: Path) -> None:
    with serving() as farm:
        joining.enrol(tmp_path, farm.url, code="AB-CD", name="box")
        again = joining.identity_at(tmp_path, f"{farm.url},http://127.0.0.1:1")
        assert again is not None
        assert again.url == f"{farm.url},http://127.0.0.1:1"
        assert joining.identity_at(tmp_path, "http://127.0.0.1:1") is not None
        assert joining.identity_at(tmp_path, "http://127.0.0.1:2") is None


def test_code_becomes_a_secret_that_only_this_user_can_read(tmp_path: Path) -> None:
    with serving() as farm:
        identity = joining.enrol(tmp_path, farm.url + "/", code="ABCD-EFGH", name="m")
    assert farm.asked == [("/renderapi/v2/machines/enroll", {"code": "ABCD-EFGH", "name": "m"})]
    assert (identity.machine_id, identity.secret, identity.tls()) == (1001, "s3cret", None)
    assert identity.link_url == farm.url.replace("http", "ws") + "/renderapi/v2/link"
    assert (tmp_path / "machine.json").stat().st_mode & 0o777 == 0o600
    assert joining.identity_at(tmp_path, farm.url) == identity
    assert joining.identity_at(tmp_path, "http://127.0.0.1:1") is None


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((401, b'{"detail": "This code was used already."}'), NotAuthenticated),
        ((429, b'{"detail": "Too many tries."}'), NotAvailable),
        ((200, b"<html>a router</html>"), NotAvailable),
        ((200, b'{"machine_id": "x"}'), NotAvailable),
        ((302, b"{}"), NotAvailable),
    ],
)
def test_refusals_are_told_and_nothing_is_stored(
    tmp_path: Path, answer: tuple[int, bytes], error: type[Exception]
) -> None:
    with serving() as farm:
        farm.answer = answer
        with pytest.raises(error):
            joining.enrol(tmp_path, farm.url, code="c", name="m")
    assert list(tmp_path.iterdir()) == []


def test_nobody_there_is_told() -> None:
    with pytest.raises(NotAvailable, match="nothing listens there"):
        joining.enrol(Path("/nowhere"), "http://127.0.0.1:1", code="c", name="m")


def test_unknown_certificate_is_refused_without_a_fingerprint(tmp_path: Path) -> None:
    with serving(Certificate(tmp_path)) as farm, pytest.raises(NotAvailable, match="--fingerprint"):
        joining.enrol(tmp_path / "home", farm.url, code="c", name="m")
    assert farm.asked == []


def test_wrong_fingerprint_sends_no_code(tmp_path: Path) -> None:
    other = Certificate(tmp_path, "other")
    with serving(Certificate(tmp_path)) as farm, pytest.raises(NotAvailable, match="fingerprint is sha256:"):
        joining.enrol(tmp_path / "home", farm.url, code="c", name="m", fingerprint=other.fingerprint)
    assert farm.asked == []


def test_pinned_certificate_is_trusted_and_no_other_one(tmp_path: Path) -> None:
    certificate, other = Certificate(tmp_path), Certificate(tmp_path, "other")
    spelled = certificate.fingerprint.removeprefix("sha256:").upper()
    pairs = ":".join(spelled[at : at + 2] for at in range(0, 64, 2))
    with serving(certificate) as farm:
        identity = joining.enrol(tmp_path / "home", farm.url, code="c", name="m", fingerprint=pairs)
    assert farm.asked
    kept = joining.identity_at(tmp_path / "home", farm.url)
    assert kept == identity
    context = identity.tls()
    assert context is not None
    assert context.verify_mode == ssl.CERT_REQUIRED
    identity.trust().check(farm.url, certificate.der)
    for peer in (other.der, b"", None):
        with pytest.raises(NotAvailable):
            identity.trust().check(farm.url, peer)


@pytest.mark.parametrize("url", ["farm:5000", "ftp://farm", "http://", "http://u:p@farm", "https://farm?x=1", ""])
def test_addresses_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="address"):
        joining.base(url)


@pytest.mark.parametrize("fingerprint", ["", "sha256:", "sha1:" + "0" * 40, "z" * 64, "0" * 63])
def test_fingerprints_that_are_none_are_refused(fingerprint: str) -> None:
    with pytest.raises(InvalidRequest, match="fingerprint"):
        Trust.of(fingerprint=fingerprint)


def test_broken_identity_file_says_what_to_do(tmp_path: Path) -> None:
    write_private(tmp_path / "machine.json", "{")
    with pytest.raises(InvalidRequest, match="join again"):
        joining.identity_at(tmp_path, "http://127.0.0.1:1")
