"""Audio classification: one label per recording."""

import io
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from scipy.io import wavfile
from scipy.signal import resample_poly
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.data import Examples
from hf_pe.errors import UsageError
from hf_pe.tasks.base import ROW, Batch, Judged, TaskData
from hf_pe.tasks.classification import DESCRIPTION, class_signals, judged_classes, label_column, label_numbers, labelled


@dataclass(frozen=True)
class AudioClassification:
    """Recordings are .wav files, their bytes, or {"array", "sampling_rate"}; longer than `seconds` they are cut."""

    seconds: float = 30.0
    name: str = "audio_classification"
    auto_class: str = "AutoModelForAudioClassification"
    pipeline_tag: str = "audio-classification"
    metric: str = "accuracy"
    higher_is_better: bool = True

    def prepare(self, examples: Examples, processor: Any, config: PretrainedConfig) -> TaskData:
        """Translate the labels into the model's; recordings are read batch by batch."""
        options = examples.config
        label = label_column(options)
        if not options.audio:
            raise UsageError("data.audio: expected the name of the column with the recordings, got nothing.")
        column = options.audio

        def rows(found: datasets.Dataset) -> datasets.Dataset:
            return labelled(found.select_columns([column]), label_numbers(found[label], config))

        collate = Waves(processor, column, self.seconds)
        return TaskData(self, processor, rows(examples.train), rows(examples.eval), collate, examples)

    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """Logits [batch, labels], the task loss and, on request, hidden states."""
        return class_signals(model, batch, hidden=hidden)

    def describe(self, examples: Examples) -> str:
        """Says what is averaged."""
        return DESCRIPTION

    def judge(self, model: PreTrainedModel, data: TaskData) -> Judged:
        """Predicted and given label of each row; a slice per label."""
        return judged_classes(self, model, data)


@dataclass(frozen=True)
class Waves:
    """Makes a batch of rows with recordings."""

    processor: Any
    column: str
    seconds: float

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """What the feature extractor makes of them, padded to the longest, and labels."""
        rate = int(self.processor.sampling_rate)
        waves = [heard(row[self.column], rate)[: round(self.seconds * rate)] for row in rows]
        batch: Batch = dict(self.processor(waves, sampling_rate=rate, padding=True, return_tensors="pt"))
        for name in ("labels", ROW):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return batch


def heard(audio: Any, rate: int) -> np.ndarray[Any, Any]:
    """A recording as one channel of float32 in -1..1 at `rate` samples a second.

    Raises:
        UsageError: it cannot be read.
    """
    wave: np.ndarray[Any, Any]
    if isinstance(audio, dict) and audio.get("array") is not None:
        found, wave = int(audio["sampling_rate"]), np.asarray(audio["array"], np.float32)
    else:
        source: Any = (audio.get("bytes") or audio.get("path")) if isinstance(audio, dict) else audio
        try:
            found, wave = wavfile.read(io.BytesIO(source) if isinstance(source, bytes) else Path(source))
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(
                f"Data: {str(source)[:80]!r} is no .wav file that can be read: {error}. Other formats: decode them "
                'first, to rows of {"array", "sampling_rate"}.'
            ) from error
    if wave.dtype == np.uint8:
        wave = (wave.astype(np.float32) - 128) / 128
    elif np.issubdtype(wave.dtype, np.integer):
        wave = wave.astype(np.float32) / float(np.iinfo(wave.dtype).max)
    wave = wave.mean(1) if wave.ndim == 2 else wave
    if found != rate:
        ratio = Fraction(rate, found)
        wave = resample_poly(wave, ratio.numerator, ratio.denominator)
    return np.asarray(wave, np.float32)
