"""Checks that SentenceTransformer opens a saved folder and returns the embeddings that were evaluated."""

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from hf_pe.checkpoints.classes import brings_code
from hf_pe.checkpoints.sentence_transformers import is_sentence_folder, read_modules, read_sentence_modules
from hf_pe.errors import ReloadError
from hf_pe.fresh.run import run_fresh
from hf_pe.tasks import Embedding

SENTENCES = (
    "A short one.",
    "Where does the river that runs through the old town have its spring?",
    "The committee met twice in March; it will publish what it agreed on, with all figures, before the summer ends.",
)


def sentence_difference(folder: Path, model: PreTrainedModel, processor: Any) -> float | None:
    """Open `folder` with SentenceTransformer in a fresh process and compare it with `model` under the embedding task.

    Returns:
        The largest difference in any value of the normalized embeddings; None if `folder` is not in the format of
        sentence-transformers, if the model or a module has code of its own, or if the package is not installed.

    Raises:
        ReloadError: SentenceTransformer does not open the folder; contains the last output of the process.
    """
    installed = importlib.util.find_spec("sentence_transformers") is not None
    if not installed or not is_sentence_folder(folder) or brings_code(type(model)) or not _has_stock_modules(folder):
        return None
    expected = Embedding(read_sentence_modules(folder)).encode(model, processor, SENTENCES)
    embeddings = torch.nn.functional.normalize(_encoded(folder, model.device.type), dim=-1)
    if embeddings.shape != expected.shape:
        raise ReloadError(f"{folder.name} opens with SentenceTransformer, but its embeddings have another width.")
    return float((embeddings - expected).abs().max())


def _has_stock_modules(folder: Path) -> bool:
    """Return whether all modules are classes of sentence-transformers, which imports whatever modules.json names."""
    return all(entry["type"].startswith("sentence_transformers.") for entry in read_modules(folder))


def _encoded(folder: Path, device: str) -> torch.Tensor:
    with tempfile.TemporaryDirectory() as work:
        order = {"folder": str(folder.resolve()), "device": device, "texts": SENTENCES}
        Path(work, "texts.json").write_text(json.dumps(order), "utf-8")
        run_fresh("open_sentences.py", work, f"{folder.name} does not open with SentenceTransformer")
        return load_file(Path(work, "embeddings.safetensors"))["embeddings"]
