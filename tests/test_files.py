"""What lies in a file is whole at any time."""

from pathlib import Path

import pytest

from hf_pe.files import write_whole


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
