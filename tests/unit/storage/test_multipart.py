"""Reading multipart bodies of friends and foes."""

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.farm.errors import InvalidRequest, TooLarge
from renderonline.storage.multipart import Field, FileBegins, FileData, FileEnds, MultipartReader

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
    """The parts as (kind, name, content), fed in pieces of `size` bytes."""
    reader = MultipartReader(content_type)
    parts: list[tuple[str, str, bytes]] = []
    ended = 0
    for start in range(0, len(data), size):
        for event in reader.feed(data[start : start + size]):
            match event:
                case Field(name, value):
                    parts.append(("field", name, value))
                case FileBegins(name):
                    parts.append(("file", name, b""))
                case FileData(piece):
                    kind, name, content = parts[-1]
                    parts[-1] = (kind, name, content + bytes(piece))
                case FileEnds():
                    ended += 1
    reader.finish()
    assert ended == sum(kind == "file" for kind, _, _ in parts)
    return parts


GOOD = body(('name="request"', b"{}"), ('name="file"; filename="a.blend"', b"\r\n--Bx\r\n--\0scene"))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_pieces_of_any_size_give_the_same_parts(size: int) -> None:
    assert read(GOOD, size) == [("field", "request", b"{}"), ("file", "a.blend", b"\r\n--Bx\r\n--\0scene")]


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
        MultipartReader(content_type)


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
