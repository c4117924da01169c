"""Define the settings of a push, and what it reports."""

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id
from pydantic import Field

from hf_pe.errors import UsageError
from hf_pe.hub.refs import require_ref
from hf_pe.plans import Frozen
from hf_pe.report import MAIN
from hf_pe.settings import Settings


class Publish(Settings):
    """Set where and how a result is pushed to the Hub."""

    repo: str = Field(description="NAME or USER/NAME of the repository")
    private: bool = Field(True, description="create a private repository; false is also needed to push to a public one")
    branch: str = Field(MAIN, description="branch that the main result is pushed to")
    tag: str | None = Field(None, description="tag to set on the pushed commit")
    create_pr: bool = Field(False, description="open a pull request instead of committing")
    message: str | None = Field(None, description="message of the commit")
    template: str | None = Field(None, description="Jinja file for the card")
    allow: tuple[str, ...] = Field((), description="texts that are no secrets, though the scan reports them")
    load_back: bool = Field(False, description="download the pushed model afterwards and load it in a fresh process")
    trust_remote_code: bool = Field(
        False, description="run custom code that comes with the result, to verify that it loads"
    )


class Sent(Frozen):
    """Report what was sent to one branch."""

    branch: str
    commit: str
    changed: tuple[str, ...] = Field(description="files that the commit adds or changes; empty: nothing was new")
    removed: tuple[str, ...] = ()
    pull_request: str | None = None


def check_names(settings: Publish) -> None:
    """Refuse names of a repository, a branch or a tag that the Hub or git does not allow.

    Raises:
        UsageError: A name is not allowed.
    """
    try:
        validate_repo_id(settings.repo)
    except HFValidationError as error:
        raise UsageError(f"publish.repo: expected NAME or USER/NAME, got '{settings.repo}'. {error}") from error
    require_ref(settings.branch, "publish.branch")
    if settings.tag is not None:
        require_ref(settings.tag, "publish.tag")


def in_full(settings: Publish, user: str) -> Publish:
    """Return the settings with the repository as USER/NAME."""
    if "/" in settings.repo:
        return settings
    return settings.model_copy(update={"repo": f"{user}/{settings.repo}"})
