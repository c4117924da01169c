"""Explains errors of the Hub in one clause, since its libraries wrap one reason in several messages."""

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_pe.errors import one_line

REASONS: dict[type[BaseException], str] = {
    GatedRepoError: "its owner grants access on request; ask for it on its page, then log in",
    RepositoryNotFoundError: "the repository does not exist, or it is private",
    RevisionNotFoundError: "it has no such branch, tag or commit",
    OfflineModeIsEnabled: "it is not among the files downloaded before, and HF_HUB_OFFLINE forbids the network",
    LocalEntryNotFoundError: "it is not among the files downloaded before, and the Hub cannot be reached",
    EntryNotFoundError: "the repository lacks a file that is needed",
    HFValidationError: "it is no valid name of a repository (NAME or USER/NAME)",
}
"""The reason by the class of an error; a subclass comes before its base class."""


def hub_reason(error: BaseException) -> str:
    """Return in one clause why the Hub could not be read: the first known reason in the chain of `error`."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for kind, reason in REASONS.items():
        if any(isinstance(link, kind) for link in chain):
            return reason
    http_error = next((link for link in chain if isinstance(link, HfHubHTTPError)), error)
    return one_line(http_error, 300).rstrip(". ")
