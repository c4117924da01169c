"""What went wrong on the way to the Hub, said once: its libraries wrap one reason in several messages."""

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
    RepositoryNotFoundError: "there is no such repository, or it is private",
    RevisionNotFoundError: "it has no such branch, tag or commit",
    OfflineModeIsEnabled: "it is not among the files downloaded before, and HF_HUB_OFFLINE forbids the network",
    LocalEntryNotFoundError: "it is not among the files downloaded before, and the Hub cannot be reached",
    EntryNotFoundError: "the repository lacks a file that is needed",
    HFValidationError: "it is no valid name of a repository (NAME or USER/NAME)",
}
"""By the class of an error, those that are kinds of another before it."""


def hub_reason(error: BaseException) -> str:
    """Return in one clause why something could not be had from the Hub: the first known reason behind `error`."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for kind, reason in REASONS.items():
        if any(isinstance(each, kind) for each in chain):
            return reason
    answer = next((each for each in chain if isinstance(each, HfHubHTTPError)), error)
    return one_line(answer, 300).rstrip(". ")
