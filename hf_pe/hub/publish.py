"""The push: everything is checked first, one atomic commit a branch, and the remote is compared afterwards."""

from pathlib import Path

from huggingface_hub import HfApi

from hf_pe.errors import PushError, UsageError
from hf_pe.hub.outgoing import prepare
from hf_pe.hub.remote import Remote, load_back
from hf_pe.hub.settings import Publish, Sent, check_names, in_full


def push(folder: str | Path, settings: Publish, *, api: HfApi | None = None, verify: bool = True) -> list[Sent]:
    """Check a result, then send it: one commit a branch, card and weights together.

    Files that the remote has already are not sent again; after a broken connection only what is missing is. Weight
    files of an older push that would be loaded in place of the new ones are removed in the same commit. On a remote
    card only the marked blocks are exchanged.

    Args:
        folder: a result, or a folder of them (with variants).
        settings: where to, and how.
        api: the Hub client; default: `HfApi()` with the token of this machine.
        prove: False only for a folder that was saved, and so proved, just now.

    Raises:
        UsageError: see `prepare`; or the token is missing or may not write there; or the tag is taken.
        PushError: the Hub did not answer as it should in several tries, or the remote changed meanwhile.
    """
    check_names(settings)
    remote = Remote(api or HfApi(), settings)
    if "/" not in settings.repo:
        settings = remote.settings = in_full(settings, remote.user())
    outgoing = prepare(folder, settings, verify=verify)
    remote.open()
    for each in outgoing:
        remote.check_card(each)
    sent: list[Sent] = []
    try:
        sent += (remote.send(each) for each in outgoing)
        if settings.tag and not settings.create_pr:
            remote.tag(sent[-1])
    except (PushError, UsageError) as error:
        if sent:
            arrived = ", ".join(f"{s.branch} (commit {s.commit[:8]})" for s in sent)
            raise PushError(f"{error}\nWhole and in place: {arrived}. Push again for the rest.") from error
        raise
    if settings.load_back:
        for each, done in zip(outgoing, sent, strict=True):
            load_back(remote, each, done)
    return sent


def check_access(settings: Publish, api: HfApi | None = None) -> None:
    """Check before hours of work what a push would refuse: the names, the token, and the repository where it exists.

    Raises:
        UsageError: a name is none or the token is not good, the repository is public without the user's word, or the
            tag is taken.
        PushError: the Hub does not answer.
    """
    check_names(settings)
    remote = Remote(api or HfApi(), settings)
    user = remote.user()
    remote.settings = in_full(settings, user)
    remote.require_fit()
