"""What lies in a file is whole at any time."""

import contextlib
import resource
from pathlib import Path

import datasets
import pandas as pd
import pytest
import torch
from datasets.arrow_writer import ArrowWriter
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from hf_pe.files.atomic import failed_write, files_below, is_hidden, is_unfinished, write_whole


def test_a_text_that_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "README.md"
    write_whole(file, "by hand\n")

    def full(path: Path, text: str, encoding: str) -> None:
        with path.open("w", encoding=encoding) as begun:
            begun.write(text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, "generated\n")
    assert file.read_text("utf-8") == "by hand\n"
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_written_takes_the_place_of_what_was_there(tmp_path):
    file = tmp_path / "report.json"
    for text in ("{}\n", '{"größe": 1}\n'):
        write_whole(file, text)
        assert file.read_text("utf-8") == text


def test_files_with_names_near_that_of_the_file_are_not_touched(tmp_path):
    (tmp_path / "README.md.new").write_text("mine")
    write_whole(tmp_path / "README.md", "generated")
    assert (tmp_path / "README.md.new").read_text() == "mine"
    assert not any(is_unfinished(path) for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("skips", "expected"),
    [
        (lambda inside: False, [".cache/x", ".git", "__pycache__/x.pyc", "a/.cache/x", "a/b", "link", "z"]),
        (lambda inside: is_hidden(inside.name), ["a/b", "link", "z"]),
        (lambda inside: is_hidden(inside.name, [".git"]), [".git", "a/b", "link", "z"]),
        (lambda inside: str(inside) == ".cache", [".git", "__pycache__/x.pyc", "a/.cache/x", "a/b", "link", "z"]),
    ],
)
def test_a_walk_leaves_out_what_its_rule_says_and_follows_no_link(skips, expected, tmp_path):
    for name in (".cache/x", ".git", "__pycache__/x.pyc", "a/.cache/x", "a/b", "z"):
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).touch()
    (tmp_path / "outside" / "x").mkdir(parents=True)
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "outside")
    paths = files_below(tmp_path / "folder", skips)
    assert [path.relative_to(tmp_path / "folder").as_posix() for path in paths] == expected


@contextlib.contextmanager
def files_end_after(count):
    """As on a full disk: nothing can be written beyond `count` bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_arrow(path: Path) -> None:
    with ArrowWriter(path=str(path), features=datasets.Features({"a": datasets.Value("int64")})) as writer:
        for number in range(10_000):
            writer.write({"a": number})
        writer.finalize()


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("x" * 100_000),
        lambda path: save_file({"a": torch.zeros(10_000)}, path),
        lambda path: torch.save({"a": torch.zeros(10_000)}, path),
        lambda path: Tokenizer(WordLevel({str(n): n for n in range(5000)}, "0")).save(str(path)),
        lambda path: pd.DataFrame({"a": range(100_000)}).to_parquet(path),
        write_arrow,
    ],
    ids=["text", "safetensors", "torch", "tokenizers", "parquet", "arrow"],
)
def test_whatever_cannot_be_written_is_recognised(tmp_path, write):
    with pytest.raises(Exception) as failed, files_end_after(4096):  # noqa: PT011  each library has its own
        write(tmp_path / "file")
    assert failed_write(failed.value)


@pytest.mark.parametrize("error", [ValueError("4 MB"), KeyError("space"), OSError("no number")])
def test_other_errors_are_not_failed_writes(error):
    assert failed_write(error) is None
