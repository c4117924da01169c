import pytest

from hf_pe.errors import UsageError
from hf_pe.json_files import read_json, read_object


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b" 2}', r"not valid JSON \(line 2, column 6: Expecting ':' delimiter\)"),
        (b"", r"not valid JSON \(line 1, column 1"),
        (b'{"a": "\xff"}', r"not UTF-8 text \(byte 8\)"),
        (b"[1, 2]", "expected an object .* got a list"),
        (b"null", "got null"),
        (b"[" * 100_000, "not JSON that can be read"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON that can be read"),
    ],
)
def test_what_is_damaged_is_named_with_the_place_and_the_way_out(content, message, tmp_path):
    (tmp_path / "some.json").write_bytes(content)
    with pytest.raises(UsageError, match=message) as refused:
        read_object(tmp_path / "some.json")
    assert str(tmp_path / "some.json") in str(refused.value) and "download the folder again" in str(refused.value)


def test_files_that_cannot_be_opened_and_giants_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"cannot be read \(No such file or directory\)\. Make it\."):
        read_json(tmp_path / "none.json", "Make it.")
    with pytest.raises(UsageError, match="cannot be read"):
        read_json(tmp_path)
    (tmp_path / "large.json").write_text('{"a": 1}')
    assert read_object(tmp_path / "large.json") == {"a": 1}
    monkeypatch.setattr("hf_pe.json_files.LARGEST_BYTES", 5)
    with pytest.raises(UsageError, match="too large"):
        read_json(tmp_path / "large.json")
