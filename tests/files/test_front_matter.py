import pytest

from hf_pe.errors import UsageError
from hf_pe.files.front_matter import lines_by_key, read_front_matter, split_front_matter, write_front_matter

SCALARS = "language: no   # Norwegian\narxiv: 2305.14310\nversion: 1.10\nbuild: 010\ntime: 12:30:45\nquoted: 'yes'\n"


def test_scalars_are_the_strings_that_were_written():
    values = read_front_matter(SCALARS)
    assert values == {
        "language": "no", "arxiv": "2305.14310", "version": "1.10", "build": "010", "time": "12:30:45", "quoted": "yes",
    }  # fmt: skip
    assert write_front_matter(values) == SCALARS.replace("   # Norwegian", "")


@pytest.mark.parametrize("card", ["---\na: 1\n---\ntext\n", "\n---  \na: 1\n...\ntext\n"])
def test_front_matter_ends_with_either_mark(card):
    assert split_front_matter(card) == ("a: 1\n", "text\n")


@pytest.mark.parametrize("card", ["text\n---\na: 1\n---\n", "---\nnever ended\n", ""])
def test_what_is_none(card):
    assert split_front_matter(card) == ("", card)


@pytest.mark.parametrize(
    "front", ["title: a: b\n", "- a\n- b\n", "word\n", "[" * 5000, "? [a]\n: b\n", "a: *b\n"], ids=range(6)
)
def test_front_matter_that_cannot_be_read(front):
    with pytest.raises(UsageError, match="front matter"):
        read_front_matter(front)


def test_aliases_are_not_expanded():
    """Nine levels of nine references each: written out they would be 387 million words."""
    lines = ["a0: &a0 word", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10))]
    assert len(read_front_matter("\n".join(lines))) == 10


def test_lines_stay_with_their_key():
    front = "# first\ntags:\n- on\n# about it\nlicense: mit  # mine\n"
    assert lines_by_key(front) == {
        "": "# first\n",
        "tags": "tags:\n- on\n# about it\n",
        "license": "license: mit  # mine\n",
    }
    assert lines_by_key("") == {"": ""}


@pytest.mark.parametrize("front", ["{a: 1, b: 2}\n", "a: 1\na: 2\n", "? a\n: 1\n"])
def test_keys_that_have_no_lines_of_their_own_are_refused(front):
    with pytest.raises(UsageError, match=r"line of their own|twice"):
        lines_by_key(front)
