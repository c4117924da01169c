"""Writes a teacher's outputs into Arrow files, which `CachedTeacher` reads.

Embeddings and the logits of few classes are stored completely. Of a large vocabulary, the most likely classes of each
position are stored (`packed_logits`), with log-probabilities at the recipe's temperature.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.arrow_writer import ArrowWriter
from torch.nn import functional
from transformers import PreTrainedModel

from hf_pe.data.fingerprint import content_of
from hf_pe.distill.losses.logits import TopKLogits
from hf_pe.distill.losses.masked_mean import Signals, counted, positions
from hf_pe.distill.teachers.cached import Cache, CachedTeacher
from hf_pe.distill.teachers.packed_logits import packed
from hf_pe.errors import UsageError
from hf_pe.files.atomic import is_unfinished, write_whole, written_beside
from hf_pe.files.hashes import processor_sha256
from hf_pe.files.json_files import read_object
from hf_pe.progress import advance
from hf_pe.tasks import LARGE, Batch, Head, TaskData, few_tokens, on_device, rows_within, token_head

ROWS = 256
"""Number of training rows per file; files that an interrupted run has finished are not computed again."""
BATCH = 16
"""Number of rows per forward pass."""
NOTE = "cache.json"


def open_cache(
    cache: Cache, teacher: PreTrainedModel, data: TaskData, temperature: float, weight: float, name: str
) -> CachedTeacher:
    """Return a teacher's outputs on the training rows; files that are missing in the cache are computed and written.

    Args:
        cache: settings of the cache.
        teacher: in evaluation mode.
        data: the task, the rows and the collator.
        temperature: of the log-probabilities that are stored for a large vocabulary.
        weight: of this teacher among all teachers.
        name: of this teacher's folder inside the cache's folder.

    Raises:
        UsageError: the folder contains outputs for other data, of another teacher, or with other settings; or outputs
            of the task cannot be cached.
    """
    if reason := data.task.uncacheable:
        raise UsageError(f"distil.cache: outputs of task '{data.task.name}' cannot be cached: {reason}. Leave it out.")
    folder = Path(cache.folder).expanduser() / name
    signals = _teacher_outputs(teacher, data, list(range(min(2, len(data.train)))), few=True)
    classes = signals["logits"].shape[-1] if "logits" in signals else 0
    k = min(cache.top_k, classes)
    note = {
        "format": 1,
        "task": data.task.name,
        "data": _data_hash(data),
        "tokenizer": _tokenizer_hash(data.processor),
        "teacher": _weights_hash(teacher),
        "k": k,
        "temperature": temperature if 0 < cache.top_k < classes else None,
        "classes": classes,
        "rows": len(data.train),
    }
    _check(folder, note)
    unread = CachedTeacher(datasets.Dataset.from_dict({}), classes, k, weight)
    starts = range(0, len(data.train), ROWS)
    for number, start in enumerate(starts, 1):
        file = folder / f"{start:09d}.arrow"
        if not file.is_file():
            _write(file, teacher, data, range(start, min(start + ROWS, len(data.train))), unread, temperature)
            advance("teacher's outputs", number, len(starts))
    files = [datasets.Dataset.from_file(str(folder / f"{start:09d}.arrow")) for start in starts]
    return replace(unread, rows=datasets.concatenate_datasets(files))


def _write(
    file: Path, teacher: PreTrainedModel, data: TaskData, rows: range, kept: CachedTeacher, temperature: float
) -> None:
    """Write one file of outputs under a temporary name, then rename it."""
    dense = kept.classes == 0 or kept.k >= kept.classes
    features = datasets.Features({"answers": datasets.Sequence(datasets.Value("float32" if dense else "uint8"))})
    head = token_head(data.task, teacher, _batch(teacher, data, [rows.start])) if not dense else None
    fits = head is not None or kept.classes < LARGE
    size = BATCH if fits else rows_within(data, teacher.config, BATCH)
    with written_beside(file) as fresh, ArrowWriter(path=str(fresh), features=features) as writer:
        for start in range(rows.start, rows.stop, size):
            numbers = list(range(start, min(start + size, rows.stop)))
            if head is not None:
                top, lengths = _top_k(teacher, head, data, numbers, kept.k, temperature)
                outputs = _split(_bytes_of(top, kept), lengths)
            else:
                outputs = _by_row(_teacher_outputs(teacher, data, numbers), kept, temperature, dense)
            for row_outputs in outputs:
                writer.write({"answers": row_outputs})
        writer.finalize()


@torch.no_grad()
def _teacher_outputs(teacher: PreTrainedModel, data: TaskData, rows: list[int], *, few: bool = False) -> Signals:
    batch = _batch(teacher, data, rows)
    return data.task.signals(teacher, few_tokens(batch) if few else batch)


def _batch(teacher: PreTrainedModel, data: TaskData, rows: list[int]) -> Batch:
    (batch,) = data.batches(data.train.select(rows), len(rows))
    return on_device(teacher, batch)


@torch.no_grad()
def _top_k(
    teacher: PreTrainedModel, head: Head, data: TaskData, rows: list[int], k: int, temperature: float
) -> tuple[TopKLogits, list[int]]:
    """Return the most likely classes of the positions with a label, in chunks, and the number of these in each row."""
    batch = _batch(teacher, data, rows)
    mask, _ = data.task.predicted(batch)
    parts = [
        functional.log_softmax(logits.float() / temperature, -1).topk(k)
        for _, logits in head.parts(head.last_state(teacher, batch)[mask])
    ]
    top = TopKLogits(torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts]))
    return top, mask.sum(1).tolist()


def _by_row(signals: Signals, kept: CachedTeacher, temperature: float, dense: bool) -> list[np.ndarray[Any, Any]]:
    """Return the values to store for each row, as flat arrays."""
    if kept.classes == 0:
        return list(signals["embeddings"].float().cpu().numpy())
    logits, mask = counted(signals, signals), positions(signals)
    rows = len(signals["logits"])
    lengths = [len(logits) // rows] * rows if mask is None else mask.sum(1).tolist()
    if dense:
        flat = logits.float()
    else:
        logs = functional.log_softmax(logits.float() / temperature, -1).topk(kept.k)
        flat = _bytes_of(TopKLogits(logs.values, logs.indices), kept)
    return _split(flat, lengths)


def _bytes_of(top: TopKLogits, kept: CachedTeacher) -> torch.Tensor:
    return torch.from_numpy(packed(top.log_probs.cpu().numpy(), top.classes.cpu().numpy(), kept.classes))


def _split(flat: torch.Tensor, lengths: list[int]) -> list[np.ndarray[Any, Any]]:
    return [part.reshape(-1).cpu().numpy() for part in torch.tensor_split(flat, np.cumsum(lengths)[:-1].tolist())]


def _check(folder: Path, note: dict[str, Any]) -> None:
    """Begin a cache in `folder`, or check that the cache in it has the same contents and settings."""
    file = folder / NOTE
    if not file.is_file():
        if folder.is_dir() and not all(is_unfinished(path) for path in folder.iterdir()):
            raise UsageError(f"distil.cache: {folder} contains other files; give an empty folder.")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(note, indent=2) + "\n")
        return
    earlier = read_object(file, "Delete the folder, or give another one: it is unknown which outputs it contains.")
    changed = [key for key in note if earlier.get(key) != note[key]]
    if changed:
        what = ", ".join(f"{key} ({earlier.get(key)} then, {note[key]} now)" for key in changed)
        raise UsageError(
            f"distil.cache: {folder} was made for another {what}, so that the outputs in it do not fit. Give another "
            "folder, or delete this one."
        )


def _data_hash(data: TaskData) -> str:
    digest = hashlib.blake2b(digest_size=8)
    media = (data.examples.config.image, data.examples.config.audio)
    for column in data.train.column_names:
        digest.update(column.encode())
        for row in data.train[column]:
            digest.update(content_of(row).encode() if column in media else np.asarray(row).tobytes())
    return digest.hexdigest()


def _tokenizer_hash(processor: Any) -> str:
    if processor is not None and not hasattr(processor, "get_vocab"):  # of images or recordings
        return processor_sha256(processor)
    vocabulary = processor.get_vocab() if processor is not None else {}
    return hashlib.blake2b(json.dumps(sorted(vocabulary.items())).encode(), digest_size=8).hexdigest()


def _weights_hash(model: PreTrainedModel) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
