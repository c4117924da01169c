"""Define the records of how near a result is to its original, and of what it has forgotten."""

from typing import Literal

from pydantic import Field

from hf_pe.plans import Frozen

CLEAR_LOSS = 0.05
"""How much more has to be lost on the general text than on the evaluation rows to be called forgetting: nats per token,
or cosine, or fraction of equal predictions."""


class Estimate(Frozen):
    """A figure over a sample of rows, with its 95 % interval by the bootstrap over these rows."""

    value: float
    low: float
    high: float


class Nearness(Frozen):
    """How near the outputs of a result are to those of its original on the rows of one text."""

    text: Literal["evaluation", "general"]
    rows: int
    predictions: int = Field(description="compared tokens with a label, classes of rows, or embeddings")
    values: dict[str, Estimate] = Field(
        description="means over the predictions: kl, KL(original, result) in nats; agreement, the fraction with the "
        "same most likely class; cosine, of embeddings"
    )


class Forgetting(Frozen):
    """The loss on the general text beside that on the evaluation rows, by the same measure."""

    measure: Literal["perplexity", "agreement", "cosine"] = Field(
        description="a loss is ln(perplexity after / perplexity before), or 1 - agreement, or 1 - cosine"
    )
    evaluation: float = Field(description="loss on the evaluation rows")
    general: Estimate = Field(description="loss on the general text")
    excess: Estimate = Field(description="loss on the general text minus that on the evaluation rows")

    @property
    def is_clear(self) -> bool:
        """Return whether the general text lost something, and clearly more than the evaluation rows."""
        return self.general.low > 0 and self.excess.low > CLEAR_LOSS
