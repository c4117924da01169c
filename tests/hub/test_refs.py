import shutil
import subprocess

import pytest

from hf_pe.errors import UsageError
from hf_pe.hub.refs import require_ref

GOOD = ["main", "v1.0", "small/int8", "a_b-c", "x@y", "größe", "refs/pr/1", "a.locked"]
BAD = [
    "", "bad name", "a..b", ".hidden", "a/.b", "a.lock", "a.lock/b", "-x", "/a", "a/", "a//b", "a.", "@", "a@{b",
    "a~1", "a^", "a:b", "a?", "a*", "a[b", "a\\b", "a\nb", "a\x7f",
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD + BAD)
def test_names_are_those_that_git_takes(name):
    if name in GOOD:
        require_ref(name, "publish.branch")
    else:
        with pytest.raises(UsageError, match=r"publish.branch: git allows no branch or tag called '"):
            require_ref(name, "publish.branch")
    if shutil.which("git"):
        answer = subprocess.run(["git", "check-ref-format", f"refs/heads/{name}"]).returncode
        assert (answer == 0) == (name in [*GOOD, "-x", "@"]), "the two that only a branch cannot be called"
