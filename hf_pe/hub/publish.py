"""Push a result: check everything first, send one atomic commit per branch, and compare the remote afterwards."""

from pathlib import Path

from huggingface_hub import HfApi

from hf_pe.errors import PushError, UsageError
from hf_pe.hub.outgoing import prepare
from hf_pe.hub.remote import Remote, load_back
from hf_pe.hub.settings import Publish, Sent, check_names, in_full


def push(folder: str | Path, settings: Publish, *, api: HfApi | None = None, verify: bool = True) -> list[Sent]:
    """Check a result, then send it in one commit per branch, card and weights together.

    Files that the remote has already are not sent again, also after a broken connection. Weight files of an older push
    that would be loaded instead of the new ones are removed in the same commit. On an existing card only the marked
    blocks are replaced.

    Args:
        folder: Folder of a result, or of a result with its variants.
        settings: Settings of the push.
        api: Client of the Hub; by default `HfApi()` with the token of this machine.
        verify: Whether to verify that the result reloads; False only for a folder that was saved, and thereby verified,
            just before.

    Returns:
        What was sent to each branch.

    Raises:
        UsageError: See `prepare`; or the token is missing or has no write access, or the tag exists.
        PushError: The Hub failed in several tries, or the remote changed meanwhile.
    """
    check_names(settings)
    remote = Remote(api or HfApi(), settings)
    if "/" not in settings.repo:
        settings = remote.settings = in_full(settings, remote.user())
    outgoing = prepare(folder, settings, verify=verify)
    remote.open()
    for result in outgoing:
        remote.check_card(result)
    sent: list[Sent] = []
    try:
        sent += (remote.send(result) for result in outgoing)
        if settings.tag and not settings.create_pr:
            remote.tag(sent[-1])
    except (PushError, UsageError) as error:
        if sent:
            arrived = ", ".join(f"{s.branch} (commit {s.commit[:8]})" for s in sent)
            raise PushError(f"{error}\nSent completely: {arrived}. Push again to send the rest.") from error
        raise
    if settings.load_back:
        for result, sent_branch in zip(outgoing, sent, strict=True):
            load_back(remote, result, sent_branch)
    return sent


def check_access(settings: Publish, api: HfApi | None = None) -> None:
    """Check names, token and repository before hours of work, so that the push after it will not be refused.

    Raises:
        UsageError: A name is not allowed, the token is not valid, the repository is public though the settings do not
            say so, or the tag exists.
        PushError: The Hub does not answer.
    """
    check_names(settings)
    remote = Remote(api or HfApi(), settings)
    user = remote.user()
    remote.settings = in_full(settings, user)
    remote.require_fit()
