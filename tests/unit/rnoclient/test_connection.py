"""The SDK's connection: what it trusts, what it repeats, and how it tells errors."""

import hashlib
import json
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from renderonline.farm import errors
from renderonline.protocol.calls import UNREACHABLE
from renderonline.rnoclient.sdk.connection import Connection, Login
from tests.support.certificates import self_signed
from tests.support.connect_proxy import ConnectProxy
from tests.support.scripted_server import Answer, ScriptedServer, free_port, in_turn


def problem(status: int, code: str, detail: str = "Do this next.", **headers: str) -> Answer:
    body = json.dumps({"type": "about:blank", "title": "No", "status": status, "detail": detail, "code": code})
    return Answer(status, body.encode(), {"content-type": "application/problem+json", **headers})


def connect(server: ScriptedServer, **options: object) -> Connection:
    return Connection(Login(server.url, "ada@studio.org", "secret"), sleep=lambda _: None, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.InvalidRequest),
        (401, errors.NotAuthenticated),
        (403, errors.NotAllowed),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (413, errors.TooLarge),
        (415, errors.InvalidRequest),
        (422, errors.InvalidRequest),
        (429, errors.LimitReached),
        (500, errors.RenderOnlineError),
        (507, errors.NoSpace),
    ],
)
def test_problem_becomes_the_class_with_its_message_and_code(status: int, kind: type[errors.RenderOnlineError]) -> None:
    with ScriptedServer(lambda _: problem(status, "some_code")).running() as server:
        with pytest.raises(kind, match="Do this next") as caught:
            connect(server).call("GET", "/me")
        assert caught.value.reason_code == "some_code"


def test_identity_travels_in_the_two_headers() -> None:
    with ScriptedServer(in_turn(Answer())).running() as server:
        connect(server).call("GET", "/me")
        assert server.asked[0].path == "/renderapi/v2/me"
        assert server.asked[0].headers["email"] == "ada@studio.org"
        assert server.asked[0].headers["token"] == "secret"


def test_plain_http_goes_through_a_proxy_as_well_and_loopback_never(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(in_turn(Answer(), Answer())).running() as server:
        port = int(server.url.rpartition(":")[2])
        with ConnectProxy({f"farm.studio:{port}": ("127.0.0.1", port)}).running() as proxy:
            monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.port}")
            Connection(Login(f"http://farm.studio:{port}", "ada@studio.org", "secret")).call("GET", "/me")
            assert server.asked[0].headers["host"] == f"farm.studio:{port}"
            connect(server).call("GET", "/me")
            assert proxy.asked == [f"farm.studio:{port}"]


def test_token_is_not_shown_when_a_login_is_printed() -> None:
    assert "secret" not in repr(Login("http://farm", "ada@studio.org", "secret"))


def test_reading_is_repeated_while_renderapi_is_away() -> None:
    script = in_turn(
        problem(503, "not_available"), Answer(silent=True), Answer(502, b"<html>"), Answer(body=b'{"a": 1}')
    )
    with ScriptedServer(script).running() as server:
        assert connect(server).call("GET", "/me").json() == {"a": 1}
        assert len(server.asked) == 4


def test_answer_that_is_cut_within_its_headers_is_asked_for_again() -> None:
    answers = [b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n", b"HTTP/1.1 200 OK\r\n\r\n{}"]

    def answer(server: socket.socket) -> None:
        while answers:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answers.pop(0))

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, args=(server,), daemon=True).start()
        login = Login(f"http://127.0.0.1:{server.getsockname()[1]}")
        assert Connection(login, sleep=lambda _: None).call("GET", "/me").json() == {}


def test_retry_after_is_obeyed() -> None:
    waited: list[float] = []
    script = in_turn(problem(503, "not_available", **{"retry-after": "3"}), Answer())
    with ScriptedServer(script).running() as server:
        Connection(Login(server.url), sleep=waited.append).call("GET", "/me")
    assert waited[0] >= 3


def test_change_is_sent_only_once() -> None:
    with ScriptedServer(in_turn(Answer(silent=True))).running() as server:
        with pytest.raises(errors.NotAvailable):
            connect(server).call("POST", "/tasks/1/cancel")
        assert len(server.asked) == 1


def test_connection_is_kept_for_reading() -> None:
    with ScriptedServer(in_turn(Answer())).running() as server:
        connection = connect(server)
        connection.call("GET", "/me")
        (kept,) = connection._idle
        connection.call("GET", "/me")
        assert connection._idle == [kept]


def test_kept_connection_that_the_server_closed_is_replaced() -> None:
    with ScriptedServer(in_turn(Answer())).running() as server:
        connection = Connection(Login(server.url), patience_s=0)
        connection.call("GET", "/me")
        connection._idle[0].sock.shutdown(2)
        assert connection.call("GET", "/me").status == 200


def test_nobody_there_is_said_with_the_next_step() -> None:
    with pytest.raises(errors.NotAvailable, match=r"nothing listens there.*renderonline up") as caught:
        Connection(Login(f"http://127.0.0.1:{free_port()}"), patience_s=0).call("GET", "/me")
    assert caught.value.reason_code == UNREACHABLE


def test_another_kind_of_server_is_recognised() -> None:
    for answer in (Answer(404, b"<html>"), Answer(200, b"<html>", {"content-type": "text/html"})):
        with (
            ScriptedServer(in_turn(answer)).running() as server,
            pytest.raises(errors.NotAvailable, match="no RenderAPI"),
        ):
            Connection(Login(server.url), patience_s=0).call("GET", "/me").json()


def test_redirect_is_not_followed() -> None:
    away = Answer(302, b"", {"location": "http://evil.example/"})
    with (
        ScriptedServer(in_turn(away)).running() as server,
        pytest.raises(errors.NotAvailable, match="evil"),
    ):
        Connection(Login(server.url), patience_s=0).call("GET", "/me")


@pytest.mark.parametrize("url", ["", "ftp://farm", "http://", "http://farm:port", "http://farm:0", "http://farm?x=1"])
def test_bad_address_is_refused(url: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="no address"):
        Connection(Login(url))


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("farm:5000", "http://farm:5000"),
        ("https://farm/", "https://farm"),
        ("https://farm/renders/", "https://farm/renders"),
        ("http://farm:5000/renderapi/v2/", "http://farm:5000"),
        ("http://user:password@farm", "http://farm"),
    ],
)
def test_address_is_tidied(url: str, wanted: str) -> None:
    assert Connection(Login(url)).url == wanted


def test_tls_trusts_the_named_authority_or_the_named_certificate_only(tmp_path: Path) -> None:
    files, _ = self_signed(tmp_path)
    chain = files.fullchain_pem_path
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(chain.read_text())).hexdigest()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, files.priv_pem_path)
    colons = ":".join(digest[i : i + 2] for i in range(0, 64, 2)).upper()
    with ScriptedServer(in_turn(Answer()), context).running() as server:
        for login in (
            Login(server.url, "a", "b", ca_file=str(chain)),
            Login(server.url, "a", "b", fingerprint=f"sha256:{colons}"),
        ):
            connection = Connection(login, patience_s=0)
            assert connection.call("GET", "/me").status == 200
            assert connection.call("GET", "/me").status == 200
        known = len(server.asked)
        for login, message in (
            (Login(server.url, "a", "b"), "not trusted.*--fingerprint"),
            (Login(server.url, "a", "b", fingerprint=f"sha256:{'0' * 64}"), "another certificate"),
        ):
            with pytest.raises(errors.NotAvailable, match=message):
                Connection(login, patience_s=0).call("GET", "/me")
        assert len(server.asked) == known, "nothing may be sent to whom we don't trust"


@pytest.mark.parametrize("fingerprint", ["", "sha256:", "sha256:xyz", "0" * 63])
def test_wrong_fingerprint_is_refused_before_anything_is_sent(fingerprint: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="64 hexadecimal"):
        Connection(Login("https://farm", fingerprint=fingerprint))


def standby() -> Answer:
    return problem(503, "standby", "This RenderAPI stands by.")


def of_both(first: ScriptedServer, second: str) -> Connection:
    return Connection(Login(f"{first.url},{second}", "ada@studio.org", "secret"), sleep=lambda _: None)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_renderapi_that_dispatches_is_found_and_remembered(method: str) -> None:
    with (
        ScriptedServer(lambda _: standby()).running() as first,
        ScriptedServer(in_turn(Answer())).running() as second,
    ):
        connection = of_both(first, second.url)
        for _ in range(3):
            assert connection.call(method, "/tasks/1/pause").json() == {}
        assert (len(first.asked), len(second.asked)) == (1, 3)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_renderapi_where_nothing_listens_is_passed_over(method: str) -> None:
    with ScriptedServer(in_turn(Answer())).running() as second:
        connection = Connection(Login(f"http://127.0.0.1:{free_port()},{second.url}"), patience_s=0)
        assert connection.call(method, "/me").json() == {}


def test_change_that_may_have_been_made_is_not_sent_to_another_renderapi() -> None:
    silent = ScriptedServer(in_turn(Answer(silent=True)))
    with silent.running() as first, ScriptedServer(in_turn(Answer())).running() as second:
        with pytest.raises(errors.NotAvailable):
            of_both(first, second.url).call("POST", "/tasks/1/pause")
        assert second.asked == []


def test_reading_goes_on_at_another_renderapi_without_waiting() -> None:
    silent = ScriptedServer(in_turn(Answer(silent=True)))
    with silent.running() as first, ScriptedServer(in_turn(Answer())).running() as second:
        connection = Connection(Login(f"{first.url},{second.url}"), patience_s=0)
        assert connection.call("GET", "/me").json() == {}


def test_what_is_refused_is_not_asked_elsewhere() -> None:
    refusing = ScriptedServer(lambda _: problem(403, "not_allowed"))
    with refusing.running() as first, ScriptedServer(in_turn(Answer())).running() as second:
        with pytest.raises(errors.NotAllowed):
            of_both(first, second.url).call("GET", "/me")
        assert second.asked == []


ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
from renderonline.rnoclient.sdk import Client, Login, UploadOptions
from renderonline.rnoclient.sdk.uploading import default_options
assert default_options().chunker is None  # files are sent whole
with Client(Login(sys.argv[2], "ada@studio.org", "secret")) as farm:
    assert farm.me() == {"email": "ada@studio.org"}
packages = {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names - {"__main__", "renderonline"}
print("packages:", *sorted(packages))
"""


def test_sdk_works_without_any_installed_package() -> None:
    """As in Blender, whose Python has none: `-S` leaves out site-packages, `-I` what the environment names."""
    source = str(Path(errors.__file__).parents[2])
    with ScriptedServer(lambda _: Answer(body=b'{"email": "ada@studio.org"}')).running() as server:
        command = [sys.executable, "-I", "-S", "-c", ALONE, source, server.url]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout.split()) == (0, ["packages:"]), result.stderr
