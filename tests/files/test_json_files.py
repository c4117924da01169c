import pytest

from hf_pe.errors import UsageError
from hf_pe.files.json_files import read_json, read_json_if_any, read_object, read_object_if_any


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


@pytest.mark.parametrize(
    "content", [b'{"a": ', b"", b'{"a": "\xff"}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", None]
)
def test_what_another_reader_will_complain_of_is_read_as_nothing(content, tmp_path):
    file = tmp_path / "some.json"
    if content is not None:
        file.write_bytes(content)
    assert read_json_if_any(file) is read_object_if_any(file) is None


def test_a_file_that_may_be_missing_is_read_where_it_is_there(tmp_path):
    (tmp_path / "object.json").write_bytes(b'\xef\xbb\xbf{"a": "\\udc80"}')
    (tmp_path / "list.json").write_text("[1]")
    assert read_object_if_any(tmp_path / "object.json") == {"a": "\udc80"}
    assert (read_json_if_any(tmp_path / "list.json"), read_object_if_any(tmp_path / "list.json")) == ([1], None)


def test_files_that_cannot_be_opened_and_giants_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"cannot be read \(No such file or directory\)\. Make it\."):
        read_json(tmp_path / "none.json", "Make it.")
    with pytest.raises(UsageError, match="cannot be read"):
        read_json(tmp_path)
    (tmp_path / "large.json").write_text('{"a": 1}')
    assert read_object(tmp_path / "large.json") == {"a": 1}
    monkeypatch.setattr("hf_pe.files.json_files.LARGEST_BYTES", 5)
    with pytest.raises(UsageError, match="too large"):
        read_json(tmp_path / "large.json")
