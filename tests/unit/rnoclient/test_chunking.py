"""Cutting files, and keeping in mind how they were cut."""

import os
import random
import struct
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from renderonline.rnoclient.scenes import CachedChunker
from renderonline.rnoclient.sdk.connection import FileCache
from renderonline.rnoclient.sdk.uploading import default_options
from renderonline.storage import manifests
from renderonline.storage.manifests import manifest_of
from renderonline.storage.staging import LARGEST_CHUNK, SENT_CHUNK

OLD = 1_700_000_000


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read."""
    read: list[Path] = []
    real = manifests.manifest_of

    def counted(path: Path) -> bytes:
        read.append(path)
        return real(path)

    monkeypatch.setattr(manifests, "manifest_of", counted)
    return read


def chunks_are_of(records: bytes, content: bytes) -> bool:
    at = 0
    for digest, length in SENT_CHUNK.iter_unpack(records):
        if not 0 < length <= LARGEST_CHUNK or blake3(content[at : at + length]).digest() != digest:
            return False
        at += length
    return at == len(content)


def test_unchanged_file_is_not_read_again(tmp_path: Path, cut: list[Path]) -> None:
    scene = tmp_path / "a.blend"
    scene.write_bytes(random.Random(1).randbytes(3_000_000))
    os.utime(scene, (OLD, OLD))
    first = CachedChunker(FileCache(tmp_path / "notes"))(scene)
    assert chunks_are_of(first, scene.read_bytes())
    assert CachedChunker(FileCache(tmp_path / "notes"))(scene) == first
    assert len(cut) == 1
    assert CachedChunker(FileCache(tmp_path / "notes"))(scene, afresh=True) == first
    os.utime(scene, (OLD + 1, OLD + 1))
    CachedChunker(FileCache(tmp_path / "notes"))(scene)
    assert len(cut) == 3


def test_file_that_was_saved_just_now_is_read_again(tmp_path: Path, cut: list[Path]) -> None:
    scene = tmp_path / "a.blend"
    scene.write_bytes(b"scene")
    for _ in range(2):
        CachedChunker(FileCache(tmp_path / "notes"))(scene)
    assert len(cut) == 2


def test_notes_that_nobody_needs_any_more_go(tmp_path: Path) -> None:
    notes = FileCache(tmp_path / "notes", keep_s=100)
    notes.write("old", b"old")
    os.utime(tmp_path / "notes" / "old", (OLD, OLD))
    notes.write("new", b"new")
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["new"]
    assert (notes.read("new"), notes.read("old"), FileCache().read("new")) == (b"new", b"", b"")
    (tmp_path / "file").write_text("x")
    FileCache(tmp_path / "file" / "below").write("a", b"a")  # a place where nothing can be kept is no fault


@settings(max_examples=25)
@given(st.integers(0, 3_000_000), st.integers(0, 2**32))
def test_chunks_add_up_to_the_file(tmp_path_factory: pytest.TempPathFactory, size: int, seed: int) -> None:
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(random.Random(seed).randbytes(size))
    assert chunks_are_of(manifest_of(path), path.read_bytes())


def blend(address: int, payloads: list[bytes]) -> bytes:
    """A .blend as Blender 5 lays it out: each large block behind a small one that has an address."""
    found = b"BLENDER17-01v0500"
    for payload in payloads:
        for code, data in ((b"ME", struct.pack("<Q", address) * 20), (b"DATA", payload)):
            found += struct.pack("<4siQqq", code, 0, address, len(data), 1) + data
            address += 4096
    return found + struct.pack("<4siQqq", b"ENDB", 0, 0, 0, 0)


def test_other_addresses_change_next_to_nothing_of_a_blend(tmp_path: Path) -> None:
    payloads = [random.Random(one).randbytes(700_000) for one in range(20)]
    new: list[int] = []
    for called, header in (("shot.blend", b""), ("shot.bin", b"x")):
        path = tmp_path / called
        path.write_bytes(header + blend(2**40, payloads))
        known = {digest for digest, _ in SENT_CHUNK.iter_unpack(manifest_of(path))}
        path.write_bytes(header + blend(2**41, payloads))
        after = manifest_of(path)
        assert chunks_are_of(after, path.read_bytes())
        new.append(sum(length for digest, length in SENT_CHUNK.iter_unpack(after) if digest not in known))
    assert new[0] < 20_000
    assert new[1] > 2_000_000


@given(st.binary(max_size=300), st.sampled_from([b"BLENDER17-01v0500", b"BLENDER-v405", b"BLENDER_V279", b"BLENDER"]))
def test_blend_that_lies_about_its_blocks_is_cut_all_the_same(
    tmp_path_factory: pytest.TempPathFactory, rest: bytes, head: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "lies.blend"
    path.write_bytes(head + rest + bytes(100_000))
    assert chunks_are_of(manifest_of(path), path.read_bytes())


def test_client_cuts_files_by_itself_where_the_program_is_installed() -> None:
    assert isinstance(default_options().chunker, CachedChunker)
