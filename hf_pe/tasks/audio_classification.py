"""Audio classification: a model chooses a label for each recording."""

import io
import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import wavfile
from scipy.signal import resample_poly
from transformers import PretrainedConfig

from hf_pe.data import Examples
from hf_pe.errors import UsageError
from hf_pe.tasks.base import TaskData
from hf_pe.tasks.batch import Batch
from hf_pe.tasks.classification import Classification, with_labels, with_media


@dataclass(frozen=True)
class AudioClassification(Classification):
    """Choose a label for a recording.

    A recording is the name of a .wav file, its bytes, or {"array", "sampling_rate"}. It is cut off after `seconds`.

    Example:
        >>> AudioClassification(seconds=5.0).processor_class
        'AutoFeatureExtractor'
    """

    name = "audio_classification"
    auto_class = "AutoModelForAudioClassification"
    architectures = ("ForAudioClassification",)
    processor_class = "AutoFeatureExtractor"
    pipeline_tag = "audio-classification"

    seconds: float = 30.0

    def prepare(self, examples: Examples, processor: Any, config: PretrainedConfig) -> TaskData:
        """Translate the labels into the model's; files are read batch by batch.

        Raises:
            UsageError: no column with recordings or labels is named, or a recording or a label cannot be read.
        """
        column = examples.config.audio
        waves = AudioCollator(processor, column or "", self.seconds)
        return with_media(self, examples, processor, config, column, waves, read_recording)


@dataclass(frozen=True)
class AudioCollator:
    """Makes a batch of rows with recordings."""

    processor: Any
    column: str
    seconds: float

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the feature extractor's inputs for the model, padded to the longest recording, and the labels."""
        rate = int(self.processor.sampling_rate)
        waves = [waveform(row[self.column], rate)[: round(self.seconds * rate)] for row in rows]
        return with_labels(dict(self.processor(waves, sampling_rate=rate, padding=True, return_tensors="pt")), rows)


def waveform(audio: Any, rate: int) -> np.ndarray[Any, Any]:
    """Return a recording as one channel of float32 values in -1..1, resampled to `rate` samples per second.

    Raises:
        UsageError: the recording cannot be read.
    """
    source_rate, wave = read_recording(audio)
    if wave.dtype == np.uint8:
        wave = (wave.astype(np.float32) - 128) / 128
    elif np.issubdtype(wave.dtype, np.integer):
        wave = wave.astype(np.float32) / float(np.iinfo(wave.dtype).max)
    wave = wave.mean(1) if wave.ndim == 2 else wave
    if source_rate != rate:
        ratio = Fraction(rate, source_rate)
        wave = resample_poly(wave, ratio.numerator, ratio.denominator)
    return np.asarray(wave, np.float32)


def read_recording(audio: Any) -> tuple[int, np.ndarray[Any, Any]]:
    """Return the sampling rate of a recording, and its samples [samples] or [samples, channels].

    Raises:
        UsageError: the recording cannot be read.
    """
    wave: np.ndarray[Any, Any]
    if isinstance(audio, dict) and audio.get("array") is not None:
        rate, wave = int(audio["sampling_rate"]), np.asarray(audio["array"], np.float32)
    else:
        source: Any = (audio.get("bytes") or audio.get("path")) if isinstance(audio, dict) else audio
        try:
            rate, wave = wavfile.read(io.BytesIO(source) if isinstance(source, bytes) else Path(source))
        except (OSError, ValueError, TypeError, struct.error) as error:
            what = f"a recording of {len(source):,} bytes" if isinstance(source, bytes) else repr(str(source))
            raise UsageError(
                f"Data: {what} cannot be read as a .wav file: {error}. Decode other formats first, to rows of "
                '{"array", "sampling_rate"}.'
            ) from error
    return rate, wave
