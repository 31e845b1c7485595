"""Forms of friends and foes."""

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from renderonline.farm.errors import InvalidRequest, LimitReached, RenderOnlineError, TooLarge
from renderonline.serving.bodies import DISCARD_BYTES, Form

TYPE = "multipart/form-data; boundary=B"


def body(*parts: tuple[str, bytes], end: bytes = b"--B--\r\n") -> bytes:
    """Parts of (the disposition's parameters, content)."""
    return (
        b"".join(
            b"--B\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + content + b"\r\n"
            for head, content in parts
        )
        + end
    )


def read(data: bytes, size: int = 2**20, content_type: str = TYPE) -> list[tuple[str, str, bytes]]:
    """The requests and the files as (kind, name, content), fed in pieces of `size` bytes. Only the first file's content
    is kept."""
    form, stored = Form(content_type, limit=2**40), bytearray()
    for start in range(0, len(data), size):
        if form.take(memoryview(data)[start : start + size]) and len(form.file_names) == 1:
            form.store(stored.extend)
            form.go_on()
    form.finish()
    files = [("file", name, b"" if place else bytes(stored)) for place, name in enumerate(form.file_names)]
    return [("field", "request", value) for value in form.requests] + files


GOOD = body(('name="request"', b"{}"), ('name="file"; filename="a.blend"', b"\r\n--Bx\r\n--\0scene"))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_pieces_of_any_size_give_the_same_parts(size: int) -> None:
    assert read(GOOD, size) == [("field", "request", b"{}"), ("file", "a.blend", b"\r\n--Bx\r\n--\0scene")]


def request(pieces: list[bytes]) -> Request:
    """A request whose body arrives in these pieces."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Message:
        return messages.pop(0)

    return Request({"type": "http", "headers": []}, receive)


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_short_form_is_read_to_its_end(size: int) -> None:
    two = body(('name="request"', b"{}"), ('name="f"; filename="a"', b"first"), ('name="g"; filename="b"', b"second"))
    for data, names, content in ((GOOD, ["a.blend"], b"\r\n--Bx\r\n--\0scene"), (two, ["a", "b"], b"first")):
        form = Form(TYPE, limit=2**40)
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        assert await form.read_short(request(pieces), len(data)) == content
        assert (form.request, form.file_names) == (b"{}", names)
    with pytest.raises(InvalidRequest) as refused:
        await Form(TYPE, limit=2**40).read_short(request([GOOD[:-4]]), len(GOOD) - 4)
    assert refused.value.reason_code == "broken_multipart"
    with pytest.raises(InvalidRequest) as refused:
        await Form(TYPE, limit=2**40).read_short(request([GOOD[:-4]]), len(GOOD))
    assert refused.value.reason_code == "incomplete_body"


@given(st.binary(max_size=300), st.integers(1, 60))
def test_any_content_comes_out_as_it_went_in(content: bytes, size: int) -> None:
    if b"\r\n--B" not in content and not content.startswith(b"--B"):
        assert read(body(('name="f"; filename="a"', content)), size) == [("file", "a", content)]


@given(st.binary(max_size=500))
def test_noise_is_refused_or_read_but_never_surprises(noise: bytes) -> None:
    for data in (noise, b"--B\r\n" + noise, GOOD[:60] + noise):
        with contextlib.suppress(InvalidRequest, TooLarge):
            read(data)


@pytest.mark.parametrize(
    "content_type",
    [
        'multipart/form-data; boundary="B"',
        "multipart/form-data;boundary=B;charset=utf-8",
        "Multipart/Form-Data; boundary=B",
    ],
)
def test_boundary_may_be_written_in_any_way(content_type: str) -> None:
    assert len(read(GOOD, content_type=content_type)) == 2


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "B" * 71,
    ],
)
def test_other_content_types_are_refused(content_type: str) -> None:
    with pytest.raises(InvalidRequest):
        Form(content_type, limit=2**40)


@pytest.mark.parametrize("cut", [3, 4, 8, 20, len(GOOD) - 6])
def test_missing_end_is_noticed(cut: int) -> None:
    with pytest.raises(InvalidRequest):
        read(GOOD[:-cut])


def test_wrong_boundary_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        read(GOOD.replace(b"--B", b"--Z"))


@pytest.mark.parametrize("size", [*range(1, 12), 50, 10_000])
@pytest.mark.parametrize("junk", [b"junk" * 1000, b"--B--\r\n", b"\r\n\r\n-", b"\r\n--B--\r\n" * 2])
def test_junk_after_the_end_is_refused(size: int, junk: bytes) -> None:
    for good in (GOOD, GOOD[:-2], body(("name=x; --B--=--B--", b"--B--")), body(("name=x", b"")), b"--B--"):
        assert len(read(good + b" \r\n\r\n", size)) in (0, 1, 2)
        with pytest.raises(InvalidRequest):
            read(good + junk, size)


@pytest.mark.parametrize(
    "headers",
    [
        b"X-A: b\r\n" * 9,
        b"X-A: b\r\n" * 10_000,
        b"X-Big: " + b"a" * 5_000 + b"\r\n",
        b"X-Big: " + b"a" * 1_000_000 + b"\r\n",
    ],
)
def test_too_many_or_too_long_part_headers_are_refused(headers: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read(b'--B\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n' + headers + b"\r\nx\r\n--B--\r\n")


def test_big_field_is_refused() -> None:
    with pytest.raises(TooLarge):
        read(body(('name="request"', b"x" * 65_537)))


def test_many_fields_are_refused() -> None:
    with pytest.raises(TooLarge):
        read(body(*[('name="x"', b"")] * 100))


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ('name="f"; filename="a b.blend"', "a b.blend"),
        ("name=f; filename=a.blend", "a.blend"),
        ("filename=\"x\"; filename*=UTF-8''%C3%BC.blend; name=f", "ü.blend"),
        ("name=f; filename*=UTF-8''..%2f..%2fp", "../../p"),
        (f'name=f; filename="=?utf-8?B?{base64.b64encode("ü.blend".encode()).decode()}?="', "ü.blend"),
        ('name=f; filename="=?utf-8?B?%%%?="', "=?utf-8?B?%%%?="),
        ('name=f; filename="a\\"b.blend"', 'a"b.blend'),
        ('name=f; filename="C:\\Users\\x.blend"', "C:\\Users\\x.blend"),
    ],
)
def test_file_names_are_read_as_browsers_and_dotnet_write_them(parameters: str, name: str) -> None:
    assert read(body((parameters, b"x"))) == [("file", name, b"x")]


def test_part_with_an_empty_file_name_is_a_field() -> None:
    assert read(body(('name="request"; filename=""', b"{}"))) == [("field", "request", b"{}")]


ASKED = ('name="request"', b"{}")
FILE = ('name="file"; filename="a.blend"', bytes(range(256)) * 20)


def received(data: bytes, size: int, refusal: RenderOnlineError | None = None) -> tuple[Form, bytes]:
    """A form that comes in pieces of `size` bytes, and what was stored of its file."""
    form, stored = Form(TYPE, limit=2**40), bytearray()
    for start in range(0, len(data), size):
        if form.take(memoryview(data)[start : start + size]) and len(form.file_names) == 1:
            assert not stored
            if refusal is None:
                form.store(stored.extend)
            else:
                form.refuse(refusal)
            assert not form.go_on()
    form.finish()
    return form, bytes(stored)


@pytest.mark.parametrize("size", [1, 13, 100, 2**20])
@pytest.mark.parametrize("parts", [(ASKED, FILE), (FILE, ASKED), (ASKED, FILE, ("name=more", b"?"))])
def test_form_stores_its_file_however_it_is_cut(parts: tuple[tuple[str, bytes], ...], size: int) -> None:
    form, stored = received(body(*parts), size)
    assert (form.request, form.file_names, stored, form.is_refused) == (b"{}", ["a.blend"], FILE[1], False)


@pytest.mark.parametrize("size", [1, 13, 100, 2**20])
def test_form_with_two_files_is_refused_and_stores_only_the_first(size: int) -> None:
    form, stored = received(body(FILE, ASKED, ('filename="b.blend"', b"other")), size)
    assert (form.is_refused, form.parts, stored) == (True, (1, 2), FILE[1])


@pytest.mark.parametrize("size", [13, 2**20])
def test_refused_form_is_read_on_and_nothing_is_stored(size: int) -> None:
    form, stored = received(body(ASKED, FILE, ASKED), size, LimitReached("full"))
    assert (form.is_refused, form.request, stored) == (True, b"{}, {}", b"")


def test_refused_form_is_not_read_for_ever() -> None:
    form, piece, read = Form(TYPE, limit=2**40), bytes(2**20), 0
    assert form.take(memoryview(body(ASKED, FILE, end=b"")[:-2]))
    form.refuse(LimitReached("full"))
    assert not form.go_on()
    while not form.take(memoryview(piece)):
        read += len(piece)
    assert read <= DISCARD_BYTES


def test_too_large_form_is_stopped() -> None:
    form = Form(TYPE, limit=3000)
    with pytest.raises(TooLarge):
        form.take(memoryview(body(ASKED, FILE)))
