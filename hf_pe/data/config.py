"""Defines the settings of the data: where rows come from, which columns are used, and how many rows."""

from typing import Any

from pydantic import Field, field_validator

from hf_pe.settings import Settings


class DataConfig(Settings):
    """Names the rows to train, calibrate and evaluate on.

    A source is a local file (.csv .tsv .json .jsonl .ndjson .parquet, compressed by gzip or not; anything else is read
    as text, one row per line), a folder of such files, a folder that `datasets` saved, a folder with a folder of images
    or .wav files for each label, or with metadata.jsonl (or .csv) whose `file_name` names images or .wav files beside
    it (if `image` or `audio` is set), `builtin:pydoc` (Python's language reference), `builtin:docstrings:PACKAGE`
    (docstrings of an installed package, which is parsed and never imported), or the id of a Hub data set. The rows of
    several sources are joined.

    In a folder, files and folders named train, validation (valid, val, dev, eval) or test belong to these splits:
    training uses the first, evaluation the second, and nothing is trained on the third.
    """

    train: str | tuple[str, ...] = Field(description="training data: files, a folder, a Hub data set or builtin:NAME")
    eval: str | tuple[str, ...] | None = Field(
        None, description="default: the validation files in the folder `train`, else a part of `train` that is held out"
    )
    eval_fraction: float = Field(0.1, gt=0, lt=1, description="fraction of `train` that is held out without `eval`")
    general: str | tuple[str, ...] | None = Field(
        None,
        description="text of another kind, to measure what is forgotten: sources as for `train`, or none; default: "
        "builtin:pydoc for causal_lm, masked_lm and embedding, none for other tasks",
    )
    general_limit: int = Field(300, gt=0, description="most rows of `general`, sampled with `seed`")
    train_split: str = Field("train", description="of a Hub data set")
    eval_split: str = Field("validation", description="of a Hub data set")
    config_name: str | None = Field(None, description="configuration of a Hub data set that has several")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub data set")
    text: str = Field("text", description="column with the text")
    text_pair: str | None = Field(None, description="column with the second text of a pair")
    label: str | None = Field(
        None, description="column with the label, score, labels of words, answers, objects or target text"
    )
    image: str | None = Field(None, description="column with images (file names or bytes), used instead of text")
    audio: str | None = Field(
        None, description="column with recordings (.wav files, bytes or arrays), used instead of text"
    )
    label_names: dict[str, str] | None = Field(
        None, description="the model's names of the data's labels where they differ, such as {neg: NEGATIVE}"
    )
    label_first: bool = Field(False, description="text lines are 'LABEL text'")
    encoding: str = Field("utf-8", description="of text files")
    limit: int | None = Field(None, gt=0, description="most training rows, sampled with `seed`")
    eval_limit: int | None = Field(None, gt=0, description="most evaluation rows, sampled with `seed`")
    calibration: int = Field(256, gt=0, description="training rows for calibration statistics, sampled with `seed`")
    max_length: int = Field(128, gt=1, description="most tokens per example")
    seed: int = Field(0, description="of what is sampled or held out")

    @field_validator("label_names", mode="before")
    @classmethod
    def _as_text(cls, names: Any) -> Any:
        """Return the names as text: YAML reads 0 and yes as a number and a boolean."""
        return {str(name): str(own) for name, own in names.items()} if isinstance(names, dict) else names

    @property
    def media(self) -> str | None:
        """The column with images or recordings, if it is used instead of text."""
        return self.image or self.audio

    @property
    def texts(self) -> list[str]:
        """The columns with texts."""
        return [name for name in (None if self.media else self.text, self.text_pair) if name]

    @property
    def inputs(self) -> list[str]:
        """The columns that the model's inputs are made from."""
        return [*self.texts, *(name for name in (self.image, self.audio) if name)]

    @property
    def columns(self) -> list[str]:
        """All columns that are used; other columns are neither converted nor kept."""
        return [*self.inputs, *([self.label] if self.label else [])]


def names_of(sources: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the sources as a tuple."""
    return (sources,) if isinstance(sources, str) else tuple(sources or ())
