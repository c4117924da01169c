"""Defines a teacher whose outputs were computed once and are read from memory-mapped files."""

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
from hf_pe.settings import Settings
from hf_pe.tasks import ROW, Batch, TaskData


class Cache(Settings):
    """Holds the settings of a cache of teachers' outputs."""

    old_names: ClassVar = {"k": "top_k"}

    folder: str = Field("build/teacher", exclude=True, description="folder of the files; does not affect the result")
    top_k: int = Field(64, ge=1, description="most likely classes stored per position; all of them if there are fewer")


@dataclass(frozen=True)
class CachedTeacher:
    """Reads the signals of a teacher from files.

    Attributes:
        rows: outputs of the teacher, in the order of the training rows.
        classes: number of classes of the logits; 0 if the outputs are embeddings.
        k: number of classes stored per position.
        weight: of this teacher among all teachers.
    """

    rows: datasets.Dataset
    classes: int
    k: int
    weight: float = 1.0

    def to(self, device: torch.device) -> None:
        """Do nothing: outputs are put on the device of the batch."""

    def signals(self, batch: Batch, request: SignalRequest) -> Signals:
        """Read the signals for the rows of `batch`, by their indices in it.

        Raises:
            UsageError: the request names hidden states or attention.
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
        log_probs, classes = unpacked(joined, self.k, self.classes)
        return {
            "logits": TopKLogits(
                torch.from_numpy(log_probs).to(numbers.device), torch.from_numpy(classes).to(numbers.device)
            )
        }

    def chunked_signals(self, batch: Batch, positions: torch.Tensor, request: SignalRequest) -> Signals:
        """Read the logits as a `LogitSource`; the files contain only the positions with a label."""
        logits = self.signals(batch, request)["logits"]
        source: LogitSource = logits if isinstance(logits, TopKLogits) else WholeLogits(logits)
        return {"logits": source}


def with_rows(data: TaskData) -> tuple[datasets.Dataset, Any]:
    """Return the training rows with their indices, and a collator that keeps the indices in the batch."""

    def collate(rows: list[dict[str, Any]]) -> Batch:
        numbers = [row[ROW] for row in rows]
        batch = data.collate([{k: v for k, v in row.items() if k != ROW} for row in rows])
        return {**batch, ROW: torch.tensor(numbers)}

    return data.train.add_column(ROW, range(len(data.train))), collate
