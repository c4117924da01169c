"""The settings that say which rows a run uses."""

from pydantic import Field

from hf_pe.plans import Frozen


class DataConfig(Frozen):
    """What to train, calibrate and evaluate on.

    A source is a local file (.csv .tsv .json .jsonl .parquet, anything else is read as text lines), a folder of such
    files, a folder with a folder of images or .wav files for each label, or with metadata.jsonl (or .csv) whose
    `file_name` names images or .wav files beside it (where `image` or `audio` is given),
    `builtin:pydoc` (the language reference that CPython carries), `builtin:docstrings:PACKAGE` (docstrings of an
    installed package, parsed and never imported), or the id of a Hub data set. Several sources are joined.
    """

    train: str | tuple[str, ...]
    eval: str | tuple[str, ...] | None = Field(None, description="default: a part of `train` that is held out")
    eval_fraction: float = Field(0.1, gt=0, lt=1, description="how much is held out where `eval` is not given")
    train_split: str = "train"
    eval_split: str = "validation"
    text: str = Field("text", description="column with the text")
    text_pair: str | None = Field(None, description="column with the second text of a pair")
    label: str | None = Field(
        None, description="column with the label, score, labels of words, answers, objects or target text"
    )
    image: str | None = Field(None, description="column with images: file names or bytes; in the place of text")
    audio: str | None = Field(None, description="column with recordings: .wav files, bytes or arrays; in that of text")
    label_first: bool = Field(False, description="text lines are 'LABEL text'")
    encoding: str = "utf-8"
    limit: int | None = Field(None, gt=0, description="most training rows")
    eval_limit: int | None = Field(None, gt=0, description="most evaluation rows")
    calibration: int = Field(256, gt=0, description="training rows that statistics are taken from")
    max_length: int = Field(128, gt=1, description="tokens per example")
    seed: int = 0
