"""Keeps the best weights of a training on disk, and decides by a metric on held-out rows which ones these are."""

import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hf_pe.files.atomic import written_beside
from hf_pe.tasks import EvalResult

FILE = "kept_weights.pt"
RESAMPLES = 32
"""Bootstrap samples of the held-out rows."""
ONE_STANDARD_ERROR = 0.84
"""Probability that a normal variable is below its mean plus one standard error."""


@dataclass(frozen=True)
class Score:
    """Holds a metric on the held-out rows, and on bootstrap samples of them, with higher values being better.

    Attributes:
        value: on all rows.
        resampled: on each bootstrap sample; the samples are the same for all scores.
    """

    value: float
    resampled: list[float]

    @classmethod
    def of(cls, result: EvalResult, metric: str, *, higher_is_better: bool) -> "Score":
        """Return the score of an evaluation."""
        sign = 1 if higher_is_better else -1
        samples = np.random.default_rng(0).integers(0, result.count, (RESAMPLES, result.count))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a metric may not be defined on a sample
            value, *resampled = (sign * result.scores(rows)[metric] for rows in (None, *samples))
        return cls(float(value), [float(each) for each in resampled])

    def exceeds(self, best: "Score") -> bool:
        """Return whether this score is better; one that is not a number never is."""
        return self.value > best.value or (np.isnan(best.value) and not np.isnan(self.value))

    def is_as_good_as(self, best: "Score") -> bool:
        """Return whether this score is not below `best` by more than chance explains.

        It is not if it is below in at most 84 % of the bootstrap samples, in which both have the same rows: that is one
        standard error, whatever the scale of the metric. Of weights that are equally good in this sense, those that
        were trained for longer are kept, so that chance in a few rows does not decide (the one-standard-error rule,
        Breiman et al. 1984, Classification and Regression Trees, section 3.4.3).

        Example:
            >>> best = Score(0.9, [0.88, 0.90, 0.92])
            >>> Score(0.89, [0.90, 0.87, 0.90]).is_as_good_as(best), Score(0.5, [0.5, 0.5, 0.5]).is_as_good_as(best)
            (True, False)
        """
        if np.isnan(self.value) or np.isnan(best.value):
            return not np.isnan(self.value)
        own, others = np.asarray(self.resampled), np.asarray(best.resampled)
        is_below = (own < others) | (np.isnan(own) & ~np.isnan(others))
        return bool(is_below.mean() <= ONE_STANDARD_ERROR)


@dataclass(frozen=True)
class KeptWeights:
    """Keeps what training changes in a model in one file: trained parameters and buffers, not a whole copy.

    Attributes:
        folder: of the file.
    """

    folder: Path

    @property
    def file(self) -> Path:
        """The file with the weights."""
        return self.folder / FILE

    def fits(self, model: nn.Module) -> bool:
        """Return whether the disk has space for the file, and for a second one while it is replaced."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.folder).free > 2.1 * sum(tensor.nbytes for _, tensor in _trained(model))

    def save(self, model: nn.Module) -> None:
        """Write the weights beside those of before, then replace these."""
        with written_beside(self.file) as fresh:
            torch.save(dict(_trained(model)), fresh)

    def load_(self, model: nn.Module) -> None:
        """Copy the kept weights into the model; the file is mapped into memory, not read at once."""
        kept: dict[str, torch.Tensor] = torch.load(self.file, map_location="cpu", mmap=True, weights_only=True)
        with torch.no_grad():
            for name, tensor in _trained(model):
                tensor.copy_(kept[name])

    def link(self, folder: Path) -> None:
        """Add the file to a checkpoint, without a second copy where the file system has links."""
        _linked(self.file, folder / FILE)

    def take_from(self, folder: Path) -> None:
        """Make the file of a checkpoint the kept one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _linked(folder / FILE, self.file)


def _linked(source: Path, target: Path) -> None:
    if not source.is_file():
        return
    with written_beside(target) as fresh:
        try:
            os.link(source, fresh)
        except OSError:
            shutil.copyfile(source, fresh)


def _trained(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield trained parameters and stored buffers by name; tied parameters once."""
    stored = model.state_dict().keys()
    yield from ((name, p.detach()) for name, p in model.named_parameters() if p.requires_grad)
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in stored)
