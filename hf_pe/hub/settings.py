"""What users say about a push, and what a push reports."""

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id
from pydantic import Field

from hf_pe.errors import UsageError
from hf_pe.hub.refs import require_ref
from hf_pe.plans import Frozen
from hf_pe.report import MAIN


class Publish(Frozen):
    """Where a result goes on the Hub, and how."""

    repo: str = Field(description="NAME or USER/NAME")
    private: bool = Field(
        True, description="of a repo that is made; False is also needed for one that is public already"
    )
    branch: str = Field(MAIN, description="that the main result is pushed to")
    tag: str | None = Field(None, description="set on what was pushed")
    create_pr: bool = Field(False, description="open a pull request in place of a commit")
    message: str | None = Field(None, description="of the commit")
    template: str | None = Field(None, description="the user's own Jinja file for the card")
    allow: tuple[str, ...] = Field((), description="texts that the scan for secrets shall let pass")
    load_back: bool = Field(False, description="afterwards download it and load it in a fresh process")
    trust_remote_code: bool = Field(False, description="run code that the result brings along, to see that it loads")


class Sent(Frozen):
    """What one branch got."""

    branch: str
    commit: str
    changed: tuple[str, ...] = Field(description="files that the commit adds or changes; empty: nothing was new")
    removed: tuple[str, ...] = ()
    pull_request: str | None = None


def check_names(settings: Publish) -> None:
    """Refuse names of a repository, a branch or a tag that the Hub or git does not allow.

    Raises:
        UsageError: one is not allowed.
    """
    try:
        validate_repo_id(settings.repo)
    except HFValidationError as error:
        raise UsageError(f"publish.repo: expected NAME or USER/NAME, got '{settings.repo}'. {error}") from error
    require_ref(settings.branch, "publish.branch")
    if settings.tag is not None:
        require_ref(settings.tag, "publish.tag")


def in_full(settings: Publish, user: str) -> Publish:
    """Return the settings with the repository as USER/NAME, as the card names it."""
    if "/" in settings.repo:
        return settings
    return settings.model_copy(update={"repo": f"{user}/{settings.repo}"})
