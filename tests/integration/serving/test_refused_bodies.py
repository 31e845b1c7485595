"""Large bodies of those who may not send them: a real client hears why, and the body stays where it is.

Case 5 of the notes on transfers: at most 64 KiB are read, counted by the kernel.
"""

import contextlib
import http.client
import selectors
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from renderonline.serving.deadlines import UNASKED_BYTES
from tests.support.farm import RealFarm
from tests.support.hostile import ENGINE, answer, connect, count, head, offset, port, taken, tree, unchanged, upload

SIZE = 2 * 10**9
BLOCK = bytes(1 << 20)
MOST = UNASKED_BYTES + 1
"""The kernel counts the connection's beginning as a byte."""
WRONG = {"email": "x@x", "token": "wrong"}
KINDS = ("form", "upload", "result")


@pytest.fixture(name="farm", scope="module")
def _farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFarm]:
    with RealFarm(tmp_path_factory.mktemp("farm")) as running:
        running.client.admin.add_engine(ENGINE)
        yield running


@pytest.fixture(name="refused", params=KINDS)
def _refused(request: pytest.FixtureRequest, farm: RealFarm) -> Iterator[tuple[str, str, dict[str, str], int]]:
    """Method, path, headers and the status of what is refused; nothing of it is left."""
    before, tasks = tree(farm), count(farm)
    number = upload(farm, SIZE)
    yield {
        "form": ("POST", "/renderapi/v1/enqueue", {**WRONG, "Content-Type": "multipart/form-data; boundary=B"}, 401),
        "upload": ("PATCH", f"/renderapi/v2/uploads/{number}/files/0", {**WRONG, "Upload-Offset": "0"}, 401),
        "result": ("PUT", "/renderapi/v2/attempts/5/outputs/a.png", {"Authorization": "Attempt wrong"}, 404),
    }[request.param]
    assert offset(farm, number) == 0
    farm.client.connection.call("DELETE", f"/uploads/{number}")
    unchanged(farm, before, tasks)


Refused = tuple[str, str, dict[str, str], int]


def lines(headers: dict[str, str]) -> list[str]:
    return [f"{name}: {value}" for name, value in headers.items()]


def fill(connection: socket.socket) -> None:
    """Send until nothing more goes."""
    with contextlib.suppress(BlockingIOError):
        while connection.send(BLOCK):
            pass


def settled(connection: socket.socket) -> int:
    """How much RenderAPI has read when the network has come to rest."""
    before, now = -1, taken(connection)
    while before != now:
        before, now = now, taken(connection)
    return now


def test_client_that_only_sends_is_read_no_further_and_finds_its_answer(farm: RealFarm, refused: Refused) -> None:
    method, path, headers, status = refused
    with connect(farm) as connection, selectors.DefaultSelector() as answered:
        connection.sendall(head(farm, SIZE, *lines({"token": "", **headers}), path=path, method=method))
        connection.setblocking(False)
        answered.register(connection, selectors.EVENT_READ)
        fill(connection)
        assert answered.select(20)
        fill(connection)
        assert settled(connection) <= MOST
        connection.settimeout(30)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall(memoryview(BLOCK * 50))
        assert answer(connection)[0] == status


def test_client_that_listens_after_an_error_hears_why(farm: RealFarm, refused: Refused) -> None:
    method, path, headers, status = refused
    connection = http.client.HTTPConnection("127.0.0.1", port(farm), timeout=30)
    with contextlib.closing(connection):
        blocks = (BLOCK for _ in range(2000))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.request(method, path, blocks, {**headers, "Content-Length": str(SIZE)})
        response = connection.getresponse()
        assert (response.status, response.headers["Connection"]) == (status, "close")
        assert response.read()


@pytest.mark.parametrize("asks", [True, False])
def test_curl_is_told_at_once(farm: RealFarm, refused: Refused, tmp_path: Path, *, asks: bool) -> None:
    method, path, headers, status = refused
    with (tmp_path / "big.bin").open("wb") as file:
        file.truncate(SIZE)
    words = ["curl", "-sS", "-o", tmp_path / "answer", "-w", "%{http_code} %{size_upload}", "-m", "30", "-X", method]
    if path.endswith("enqueue"):
        headers = WRONG
        words += ["-F", f"file=@{tmp_path}/big.bin"]
    else:
        words += ["-T", tmp_path / "big.bin"]
    for line in lines({**headers, "Expect": "100-continue" if asks else ""}):
        words += ["-H", line]
    told = subprocess.run([*words, f"{farm.url}{path}"], capture_output=True, text=True, check=False)
    code, sent = told.stdout.split()
    assert code == str(status), told.stderr
    assert not asks or sent == "0"
    assert (tmp_path / "answer").stat().st_size


def test_known_client_that_only_sends_is_told_what_was_wrong(farm: RealFarm) -> None:
    number = upload(farm, SIZE)
    with connect(farm) as connection:
        path = f"/renderapi/v2/uploads/{number}/files/0"
        connection.sendall(head(farm, len(BLOCK) * 12, "Upload-Offset: 5", path=path, method="PATCH") + BLOCK * 12)
        assert answer(connection)[0] == 409
    farm.client.connection.call("DELETE", f"/uploads/{number}")


def test_small_body_of_a_stranger_does_not_cost_the_connection(farm: RealFarm) -> None:
    with connect(farm) as connection:
        for _ in range(3):
            connection.sendall(head(farm, 5, *lines(WRONG), path="/renderapi/v1/dequeue") + b"12345")
            assert answer(connection)[0] == 401


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nX: ", b"?\r\n"])
def test_what_is_no_request_is_read_no_further_and_told_so(farm: RealFarm, start: bytes) -> None:
    with connect(farm) as connection:
        connection.sendall(start)
        connection.setblocking(False)
        fill(connection)
        assert settled(connection) <= MOST
        connection.settimeout(30)
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status in (400, 431)
        assert response.read()
