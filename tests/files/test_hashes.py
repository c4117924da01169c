import os

import pytest
import torch

from hf_pe.files import hashes


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Hashes of all files are remembered, in a cache of this test's own."""
    monkeypatch.setattr(hashes, "LARGE", 1)
    monkeypatch.setattr(hashes, "cache_file", lambda: tmp_path / "cache" / "hashes.json")
    return tmp_path / "cache" / "hashes.json"


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    os.utime(file, (1e9, 1e9))
    return file


def unread(path):
    pytest.fail(f"{path} was read")


def test_a_large_file_is_read_once(cache, file, monkeypatch):
    first = hashes.cached_sha256(file)
    assert first == hashes.sha256(file)
    monkeypatch.setattr(hashes, "sha256", unread)
    assert hashes.cached_sha256(file) == first


def test_a_file_that_changed_is_read_again(cache, file):
    first = hashes.cached_sha256(file)
    file.write_bytes(b"WEIGHTS")
    os.utime(file, (1e9 + 1, 1e9 + 1))
    assert hashes.cached_sha256(file) == hashes.sha256(file) != first
    file.write_bytes(b"weightz")
    os.utime(file, (1e9 + 1, 1e9 + 1))  # as rsync and cp -p set it: size and time are the same
    assert hashes.cached_sha256(file) == hashes.sha256(file)


def test_what_was_written_a_moment_ago_is_not_remembered(cache, file):
    file.write_bytes(b"fresh")
    hashes.cached_sha256(file)
    assert not cache.exists()


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"x": 1}'])
def test_a_cache_that_cannot_be_read_is_no_cache(cache, file, content):
    cache.parent.mkdir()
    cache.write_text(content)
    assert hashes.cached_sha256(file) == hashes.sha256(file)


def test_a_cache_that_cannot_be_written_is_no_cache(cache, file):
    cache.parent.write_text("a file in the place of the folder")
    assert hashes.cached_sha256(file) == hashes.sha256(file)


def test_the_oldest_hashes_are_forgotten(cache, file, tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "CACHED_HASHES", 1)
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other")
    os.utime(other, (1e9, 1e9))
    hashes.cached_sha256(file)
    hashes.cached_sha256(other)
    assert "other" in cache.read_text() and "model" not in cache.read_text()


def test_tensors_count_by_name_type_shape_and_value():
    tensors = {"a": torch.arange(4.0), "b": torch.tensor(2, dtype=torch.bfloat16)}
    digest = hashes.tensors_sha256(tensors.items())
    assert hashes.tensors_sha256(reversed(tensors.items())) == digest
    others = [
        {"a": tensors["a"], "c": tensors["b"]},
        {**tensors, "a": tensors["a"].view(2, 2)},
        {**tensors, "a": tensors["a"].view(torch.int32)},
        {**tensors, "a": tensors["a"].flip(0)},
    ]
    assert all(hashes.tensors_sha256(other.items()) != digest for other in others)
