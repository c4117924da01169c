"""Pushes with one answer of the Hub made to fail, and what must hold afterwards. Tests and a benchmark run them."""

import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.utils import _http

from hf_pe.errors import UsageError
from hf_pe.hub import Publish, PushError, patience, push
from tests.hub.server import ENDPOINTS, TOKEN, Fault, Hub

REPO = "someone/small"
KINDS = ["500", "reset before", "reset after", "timeout", "401", "403", "429"]
AFTER = {"info": ("commit", "reset after"), "delete branch": ("commit", "403")}
"""Endpoints that are only called once another request has failed."""
CASES = [(e, kind) for e in ENDPOINTS for kind in KINDS if e not in AFTER or kind not in ("401", "403")]
LASTING = [(endpoint, kind) for endpoint in ("whoami", "preupload", "lfs upload", "commit") for kind in ("500", "401")]


@contextmanager
def impatient(seconds=0.6):
    """Online whatever the environment says, waits cut short, and timeouts of `seconds`."""
    sleep, timeout, offline = time.sleep, patience.TIMEOUT, huggingface_hub.constants.HF_HUB_OFFLINE
    _http.time.sleep = lambda _: sleep(0.001)
    patience.TIMEOUT, huggingface_hub.constants.HF_HUB_OFFLINE = seconds, False
    huggingface_hub.utils.close_session()
    try:
        yield
    finally:
        _http.time.sleep, patience.TIMEOUT, huggingface_hub.constants.HF_HUB_OFFLINE = sleep, timeout, offline
        huggingface_hub.utils.close_session()


def older(folder: Path, place: Path) -> Path:
    """The result as an older push left it: another card text and one more shard."""
    old = shutil.copytree(folder, place)
    (old / "notes.txt").write_text("older")
    return old


def scenario(endpoint: str, result: Path) -> tuple[Path, Publish]:
    """A push that calls `endpoint`."""
    if endpoint == "discussions":
        return result / "nf4", Publish(repo=REPO, create_pr=True)
    if endpoint in ("branch", "delete branch"):
        return result, Publish(repo=REPO)
    return result / "nf4", Publish(repo=REPO, tag="v2")


def attempt(result: Path, endpoint: str, kind: str, times: int = 1) -> tuple[str, str]:
    """Push onto a remote that holds another result, with a fault; returns what came of it and the message.

    Raises:
        AssertionError: neither success nor a clear error with the remote unchanged.
    """
    hub = Hub()
    with hub.serve() as url:
        api = HfApi(endpoint=url, token=TOKEN)
        push(result / "main", Publish(repo=REPO), api=api, verify=False)
        before = hub.snapshot()
        hub.reset()
        folder, settings = scenario(endpoint, result)
        fault = Fault(endpoint, kind, times)
        hub.faults = [fault, *([Fault(*AFTER[endpoint])] if endpoint in AFTER else [])]
        message = ""
        try:
            sent = push(folder, settings, api=api, verify=False)
        except (PushError, UsageError) as error:
            message = str(error)
        assert fault.times < times, f"the push never called {endpoint}"
        if not message:
            repo = hub.repos[REPO]
            files = repo.commits[sent[-1].commit][1]
            local = {
                p.relative_to(folder).as_posix()
                for p in (folder / "main" if endpoint == "branch" else folder).rglob("*")
            }
            assert {n for n in local if "/" not in n and (folder / n).is_file()} <= set(files)
            assert len(repo.pulls) == (1 if settings.create_pr else 0)
            return "success", ""
        assert len(message) > 20
        if hub.snapshot() == before:
            return "error, remote unchanged", message
        assert "Sent completely" in message, f"{endpoint}, {kind}: {message}; the remote changed"
        return "error, commit whole, tag missing", message
