"""A teacher that is a file: outputs computed once, which later runs map into memory in place of a forward pass."""

from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from pydantic import Field

from hf_pe.distill.logit_source import LogitSource, WholeLogits
from hf_pe.distill.losses.logits import TopKLogits
from hf_pe.distill.losses.masked_mean import Signals
from hf_pe.distill.losses.registry import CACHED_SIGNALS, LOSSES
from hf_pe.distill.signals import SignalRequest
from hf_pe.distill.teachers.packed_logits import unpacked
from hf_pe.errors import UsageError
from hf_pe.plans import Frozen
from hf_pe.tasks import ROW, Batch, TaskData


class Cache(Frozen):
    """Where a teacher's answers are kept, and how many of them."""

    old_names: ClassVar = {"k": "top_k"}

    folder: str = Field("build/teacher", exclude=True, description="of the answers; of no matter to the result")
    top_k: int = Field(64, ge=1, description="likeliest classes of each position; fewer classes are kept whole")


@dataclass(frozen=True)
class CachedTeacher:
    """A teacher whose outputs are read from files.

    Attributes:
        rows: its outputs, in the order of the training rows.
        classes: of the logits; 0 where there are embeddings.
        k: classes kept of each position.
        weight: how much it counts beside other teachers.
    """

    rows: datasets.Dataset
    classes: int
    k: int
    weight: float = 1.0

    def to(self, device: torch.device) -> None:
        """Do nothing: outputs follow the batch."""

    def signals(self, batch: Batch, request: SignalRequest) -> Signals:
        """Read the outputs for the rows that `batch` names.

        Raises:
            UsageError: hidden states or attention are asked for.
        """
        if request.hidden or request.attentions:
            losses = ", ".join(f"`{name}`" for name, loss in LOSSES.items() if not loss.is_cacheable)
            raise UsageError(
                f"distil.cache: a cache holds {' and '.join(CACHED_SIGNALS)}; leave out {losses}, or the cache."
            )
        numbers = batch[ROW]
        column = self.rows.data.column("answers")
        outputs = [column[number].values.to_numpy() for number in numbers.tolist()]
        if self.classes == 0:
            return {"embeddings": torch.from_numpy(np.stack(outputs)).to(numbers.device)}
        joined = np.concatenate(outputs)
        if self.k >= self.classes:
            logits = torch.from_numpy(joined.reshape(-1, self.classes)).to(numbers.device)
            return {"logits": logits, "only_counted": True}
        top_k = (torch.from_numpy(each).to(numbers.device) for each in unpacked(joined, self.k, self.classes))
        return {"logits": TopKLogits(*top_k)}

    def chunked_signals(self, batch: Batch, positions: torch.Tensor, request: SignalRequest) -> Signals:
        """Read the same as a `LogitSource`; files hold no other positions than those that count."""
        logits = self.signals(batch, request)["logits"]
        source: LogitSource = logits if isinstance(logits, TopKLogits) else WholeLogits(logits)
        return {"logits": source}


def with_rows(data: TaskData) -> tuple[datasets.Dataset, Any]:
    """Return the training rows with their numbers, and a collator that brings these into the batch."""

    def collate(rows: list[dict[str, Any]]) -> Batch:
        numbers = [row[ROW] for row in rows]
        batch = data.collate([{k: v for k, v in row.items() if k != ROW} for row in rows])
        return {**batch, ROW: torch.tensor(numbers)}

    return data.train.add_column(ROW, range(len(data.train))), collate
