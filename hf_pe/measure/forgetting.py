"""Compares what a result has lost on a general text with what it has lost on the user's evaluation rows.

Training on one kind of text can cost what a model knew of others. A loss is measured alike on both texts:

    perplexity             ln(perplexity after / perplexity before), nats per token
    agreement or cosine    1 - agreement, or 1 - cosine, with the original

and `excess` is the loss on the general text minus that on the evaluation rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hf_pe.measure.bootstrap import Rows, intervals
from hf_pe.nearness_records import Estimate, Forgetting
from hf_pe.tasks import EvalResult


@dataclass(frozen=True)
class Losses:
    """Holds how to compute what a result has lost on the rows of one text.

    Attributes:
        measure: see the module.
        count: number of rows.
        loss: returns the loss on some of the rows.
    """

    measure: Literal["perplexity", "agreement", "cosine"]
    count: int
    loss: Callable[[Rows], float]


def losses(before: EvalResult | None, after: EvalResult | None, compared: EvalResult | None) -> Losses | None:
    """Return the losses on one text by the first measure that was computed.

    Args:
        before: evaluation of the original; None if the user's own function evaluates.
        after: evaluation of the result on the same rows.
        compared: comparison of both, see `hf_pe.measure.nearness`; None if they cannot be compared.
    """
    if before is not None and after is not None and "perplexity" in before.scores():
        return Losses(
            "perplexity",
            before.count,
            lambda rows: float(np.log(after.scores(rows)["perplexity"] / before.scores(rows)["perplexity"])),
        )
    if compared is None:
        return None
    measure: Literal["agreement", "cosine"] = "agreement" if "agreement" in compared.scores() else "cosine"
    return Losses(measure, compared.count, lambda rows: 1 - compared.scores(rows)[measure])


def forgetting(
    evaluation: Losses | None, general: Losses | None, *, resamples: int = 500, seed: int = 0
) -> Forgetting | None:
    """Return the losses on both texts and their difference, with 95 % intervals; None without a shared measure.

    The rows of the two texts are drawn independently of each other; both models have the same rows.

    Args:
        evaluation: losses on the evaluation rows.
        general: losses on the general text.
        resamples: number of bootstrap samples.
        seed: of the samples.
    """
    if evaluation is None or general is None or evaluation.measure != general.measure:
        return None

    def figures(own_rows: Rows, general_rows: Rows) -> dict[str, float]:
        loss = general.loss(general_rows)
        return {"general": loss, "excess": loss - evaluation.loss(own_rows)}

    rows = [np.arange(evaluation.count), np.arange(general.count)]
    values, ranges = figures(*rows), intervals(figures, rows, resamples, np.random.default_rng(seed))
    estimates = {n: Estimate(value=values[n], low=ranges[n][0], high=ranges[n][1]) for n in values}
    return Forgetting(measure=general.measure, evaluation=values["general"] - values["excess"], **estimates)
