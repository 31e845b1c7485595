"""Settings: file < environment < flags, in any letter case, or a message that names what is wrong."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from renderonline.farm.errors import InvalidRequest
from renderonline.serving.settings import merge, read_file


@dataclass(frozen=True)
class Pem:
    fullchain_pem_path: Path
    priv_pem_path: Path


@dataclass(frozen=True)
class Program:
    engine_id: str
    executable_path: str


@dataclass(frozen=True)
class Sample:
    name: str
    port: int = 5001
    rate: float = 1.5
    loud: bool = False
    data_directory: Path = Path("/data")
    certificate: Pem | None = None
    tags: tuple[str, ...] = ()
    programs: tuple[Program, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def made(
    file: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
    flags: dict[str, Any] | None = None,
) -> Sample:
    return merge(
        Sample, file={"Name": "x", **(file or {})}, environment=environment or {}, prefix="RO_", flags=flags or {}
    )


def test_later_sources_win() -> None:
    assert made().port == 5001
    assert made({"Port": 1}).port == 1
    assert made({"Port": 1}, {"RO_PORT": "2"}).port == 2
    assert made({"Port": 1}, {"RO_PORT": "2"}, {"port": 3}).port == 3
    assert made({"Port": 1}, {"RO_PORT": "2"}, {"port": None}).port == 2


@pytest.mark.parametrize("key", ["DataDirectory", "datadirectory", "DATA_DIRECTORY", "data_directory", "dataDirectory"])
def test_keys_are_found_in_any_form(key: str) -> None:
    assert made({key: "/x"}).data_directory == Path("/x")


def test_values_are_converted() -> None:
    sample = made(
        {
            "Port": "5001",
            "Rate": 2,
            "Loud": "yes",
            "Certificate": {"FullchainPemPath": "/a", "PrivPemPath": "/b"},
            "Tags": ["gpu", "fast"],
            "Programs": [{"EngineId": "blender", "ExecutablePath": "/b"}],
            "Facts": {"a": [1]},
        }
    )
    assert (sample.port, sample.rate, sample.loud) == (5001, 2.0, True)
    assert sample.certificate == Pem(Path("/a"), Path("/b"))
    assert sample.tags == ("gpu", "fast")
    assert sample.programs == (Program("blender", "/b"),)
    assert sample.facts == {"a": [1]}


def test_environment_holds_lists_and_objects() -> None:
    environment = {
        "RO_TAGS": "gpu, fast",
        "RO_CERTIFICATE": '{"FullchainPemPath": "/a", "PrivPemPath": "/b"}',
        "RO_PROGRAMS": '[{"EngineId": "blender", "ExecutablePath": "/b"}]',
        "RO_UNRELATED": "x",
        "OTHER": "x",
    }
    sample = made(environment=environment)
    assert sample.tags == ("gpu", "fast")
    assert sample.certificate == Pem(Path("/a"), Path("/b"))
    assert sample.programs == (Program("blender", "/b"),)


def test_null_certificate_is_none() -> None:
    assert made({"Certificate": None}).certificate is None


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ({"Port": "x"}, "setting Port must be a whole number"),
        ({"Port": None}, "setting Port must be a whole number"),
        ({"Port": 1.5}, "setting Port must be a whole number"),
        ({"Port": [1]}, "setting Port must be a whole number"),
        ({"Rate": "fast"}, "setting Rate must be a number"),
        ({"Loud": "perhaps"}, "setting Loud must be true or false"),
        ({"Tags": 5}, "setting Tags must be a list"),
        ({"Certificate": {"FullchainPemPath": "/a"}}, "priv_pem_path"),
        ({"Certificate": "nonsense"}, "setting Certificate must be JSON"),
        ({"Certificate": [1]}, "setting Certificate must be an object"),
    ],
)
def test_wrong_values_are_named(file: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        made(file)


def test_environment_and_flags_are_named_as_the_source() -> None:
    with pytest.raises(InvalidRequest, match="environment variable RO_ PORT"):
        made(environment={"RO_PORT": "x"})
    with pytest.raises(InvalidRequest, match="no setting color"):
        made(flags={"color": "red"})


def test_missing_settings_are_named() -> None:
    with pytest.raises(InvalidRequest, match="missing: name"):
        merge(Sample, file={}, environment={}, prefix="RO_", flags={})


def test_unknown_key_of_the_file_is_warned_of() -> None:
    with capture_logs() as logs:
        made({"Colour": "red"})
    assert [entry["setting"] for entry in logs] == ["Colour"]


def test_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"Port": "5000"}', encoding="utf-8-sig")
    assert read_file(tmp_path / "a.json") == {"Port": "5000"}


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe"])
def test_file_that_is_no_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"a\.json"):
        read_file(tmp_path / "a.json")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"none\.json can't be read"):
        read_file(tmp_path / "none.json")
