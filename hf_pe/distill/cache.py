"""A teacher's answers, computed once: in Arrow files that later runs map into memory in place of a forward pass.

Of a large vocabulary the likeliest classes are kept, 30 bits each: the class, and its log-probability at the recipe's
temperature in the bits that are left. Fewer classes than that, and embeddings, are kept whole.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.arrow_writer import ArrowWriter
from pydantic import Field
from torch.nn import functional
from transformers import PreTrainedModel

from hf_pe.data.fingerprint import content_of
from hf_pe.distill.losses.logits import Top
from hf_pe.distill.losses.masked_mean import Signals, counted, positions
from hf_pe.distill.objective import Last
from hf_pe.errors import UsageError
from hf_pe.files.atomic import is_unfinished, write_whole, written_beside
from hf_pe.files.hashes import processor_sha256
from hf_pe.files.json_files import read_object
from hf_pe.plans import Frozen
from hf_pe.progress import advance
from hf_pe.tasks import LARGE, ROW, Batch, Head, Task, TaskData, few_tokens, rows_within, token_head

BITS = 30
"""Of one kept logit, its class included: 3.75 bytes."""
FLOOR = 24.0
"""Log-probabilities below minus this are kept as minus this."""
ROWS = 256
"""In one file; what an interrupted run has finished is not computed again."""
BATCH = 16
"""Rows of a forward pass."""
NOTE = "cache.json"


class Cache(Frozen):
    """Where a teacher's answers are kept, and how many of them."""

    folder: str = Field("build/teacher", exclude=True, description="of the answers; of no matter to the result")
    k: int = Field(64, ge=1, description="likeliest classes of each position; fewer classes are kept whole")


@dataclass
class Cached:
    """A teacher that answers from files.

    Attributes:
        rows: its answers, in the order of the training rows.
        classes: of the logits; 0 where there are embeddings.
        k: kept ones of each position.
        weight: beside other teachers.
    """

    rows: datasets.Dataset
    classes: int
    k: int
    weight: float = 1.0

    def to(self, device: torch.device) -> None:
        """Nothing to do."""

    def signals(self, batch: Batch, *, task: Task, hidden: bool, attentions: bool) -> Signals:
        """Of the rows that `batch` names.

        Raises:
            UsageError: hidden states or attention are asked for.
        """
        return self._kept(batch, hidden or attentions)

    def last(self, batch: Batch, mask: torch.Tensor, *, hidden: bool, attentions: bool) -> Last:
        """The same, a part at a time."""
        logits = self._kept(batch, hidden or attentions)["logits"]
        if isinstance(logits, Top):
            return Last(lambda place: Top(logits.logs[place], logits.classes[place]), {})
        return Last(lambda place: logits[place], {})

    def _kept(self, batch: Batch, more: bool) -> Signals:
        """What the files say of the rows; `more` than that is refused."""
        if more:
            raise UsageError(
                "distil.cache: a cache holds logits and embeddings; leave out `hidden`, `attention` and `relations`, "
                "or the cache."
            )
        numbers = batch[ROW]
        column = self.rows.data.column("answers")
        found = [column[number].values.to_numpy() for number in numbers.tolist()]
        if self.classes == 0:
            return {"embeddings": torch.from_numpy(np.stack(found)).to(numbers.device)}
        parts = np.concatenate(found)
        if self.k >= self.classes:
            logits = torch.from_numpy(parts.reshape(-1, self.classes)).to(numbers.device)
            return {"logits": logits, "only_counted": True}
        logs, classes = _unpacked(parts, self.k, self.classes)
        return {"logits": Top(torch.from_numpy(logs).to(numbers.device), torch.from_numpy(classes).to(numbers.device))}


def with_rows(data: TaskData) -> tuple[datasets.Dataset, Any]:
    """The training rows with their numbers, and a collator that brings these into the batch."""

    def collate(rows: list[dict[str, Any]]) -> Batch:
        numbers = [row[ROW] for row in rows]
        batch = data.collate([{k: v for k, v in row.items() if k != ROW} for row in rows])
        return {**batch, ROW: torch.tensor(numbers)}

    return data.train.add_column(ROW, range(len(data.train))), collate


def open_cache(
    cache: Cache, teacher: PreTrainedModel, data: TaskData, temperature: float, weight: float, name: str
) -> Cached:
    """The answers of `teacher` on the training rows: those that are there, and what is missing computed now.

    Args:
        cache: where, and how many.
        teacher: in evaluation mode.
        data: the task, the rows and how they become batches.
        temperature: at which log-probabilities of a large vocabulary are kept.
        weight: of this teacher beside others.
        name: of this teacher's folder inside the cache's.

    Raises:
        UsageError: the folder holds answers to other data, by another teacher, or for other settings; or the task's
            answers cannot be kept.
    """
    reason = getattr(data.task, "uncacheable", None)
    if reason:
        raise UsageError(f"distil.cache: answers of task '{data.task.name}' cannot be kept: {reason}. Leave it out.")
    folder = Path(cache.folder).expanduser() / name
    signals = _answers(teacher, data, list(range(min(2, len(data.train)))), few=True)
    classes = signals["logits"].shape[-1] if "logits" in signals else 0
    k = min(cache.k, classes)
    note = {
        "format": 1,
        "task": data.task.name,
        "data": _data_hash(data),
        "tokenizer": _tokenizer_hash(data.processor),
        "teacher": _weights_hash(teacher),
        "k": k,
        "temperature": temperature if 0 < cache.k < classes else None,
        "classes": classes,
        "rows": len(data.train),
    }
    _check(folder, note)
    kept = Cached(datasets.Dataset.from_dict({}), classes, k, weight)
    starts = range(0, len(data.train), ROWS)
    for number, start in enumerate(starts, 1):
        file = folder / f"{start:09d}.arrow"
        if not file.is_file():
            _write(file, teacher, data, range(start, min(start + ROWS, len(data.train))), kept, temperature)
            advance("teacher's answers", number, len(starts))
    kept.rows = datasets.concatenate_datasets(
        [datasets.Dataset.from_file(str(folder / f"{start:09d}.arrow")) for start in starts]
    )
    return kept


def _write(file: Path, teacher: PreTrainedModel, data: TaskData, rows: range, kept: Cached, temperature: float) -> None:
    """One file of answers, beside and then renamed."""
    dense = kept.classes == 0 or kept.k >= kept.classes
    features = datasets.Features({"answers": datasets.Sequence(datasets.Value("float32" if dense else "uint8"))})
    head = token_head(data.task, teacher, _batch(teacher, data, [rows.start])) if not dense else None
    known = head is not None or kept.classes < LARGE
    size = BATCH if known else rows_within(data, teacher.config, BATCH)
    with written_beside(file) as fresh, ArrowWriter(path=str(fresh), features=features) as writer:
        for start in range(rows.start, rows.stop, size):
            numbers = list(range(start, min(start + size, rows.stop)))
            if head is not None:
                top, lengths = _likeliest(teacher, head, data, numbers, kept.k, temperature)
                answers = _split(_bytes_of(top, kept), lengths)
            else:
                answers = _by_row(_answers(teacher, data, numbers), kept, temperature, dense)
            for answer in answers:
                writer.write({"answers": answer})
        writer.finalize()


@torch.no_grad()
def _answers(teacher: PreTrainedModel, data: TaskData, rows: list[int], *, few: bool = False) -> Signals:
    batch = _batch(teacher, data, rows)
    return data.task.signals(teacher, few_tokens(batch) if few else batch)


def _batch(teacher: PreTrainedModel, data: TaskData, rows: list[int]) -> Batch:
    (batch,) = data.batches(data.train.select(rows), len(rows))
    device = next(teacher.parameters()).device
    return {k: v.to(device) for k, v in batch.items()}


@torch.no_grad()
def _likeliest(
    teacher: PreTrainedModel, head: Head, data: TaskData, rows: list[int], k: int, temperature: float
) -> tuple[Top, list[int]]:
    """The likeliest classes of the positions that count, without whole logits; how many of these each row has."""
    batch = _batch(teacher, data, rows)
    mask, _ = data.task.predicted(batch)  # type: ignore[attr-defined]
    parts = [
        functional.log_softmax(logits.float() / temperature, -1).topk(k)
        for _, logits in head.parts(head.last_state(teacher, batch)[mask])
    ]
    top = Top(torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts]))
    return top, mask.sum(1).tolist()


def _by_row(signals: Signals, kept: Cached, temperature: float, dense: bool) -> list[np.ndarray[Any, Any]]:
    """What is kept of each row, flat."""
    if kept.classes == 0:
        return list(signals["embeddings"].float().cpu().numpy())
    logits, mask = counted(signals, signals), positions(signals)
    rows = len(signals["logits"])
    lengths = [len(logits) // rows] * rows if mask is None else mask.sum(1).tolist()
    if dense:
        flat = logits.float()
    else:
        logs = functional.log_softmax(logits.float() / temperature, -1).topk(kept.k)
        flat = _bytes_of(Top(logs.values, logs.indices), kept)
    return _split(flat, lengths)


def _bytes_of(top: Top, kept: Cached) -> torch.Tensor:
    return torch.from_numpy(_packed(top.logs.cpu().numpy(), top.classes.cpu().numpy(), kept.classes))


def _split(flat: torch.Tensor, lengths: list[int]) -> list[np.ndarray[Any, Any]]:
    return [part.reshape(-1).cpu().numpy() for part in torch.tensor_split(flat, np.cumsum(lengths)[:-1].tolist())]


def _packed(logs: np.ndarray[Any, Any], classes: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """Of each position [k] falling log-probabilities and their classes: bytes, [positions, ceil(30 k / 8)]."""
    width = _class_bits(count)
    steps = (1 << (BITS - width)) - 1
    levels = np.rint(np.clip(-logs, 0, FLOOR) / FLOOR * steps).astype(np.uint32)
    words = (levels | (classes.astype(np.uint32) << np.uint32(BITS - width))).astype(">u4")
    bits = np.unpackbits(words.view(np.uint8).reshape(*words.shape, 4), axis=-1)[..., 32 - BITS :]
    return np.packbits(bits.reshape(len(words), -1), axis=-1)


def _unpacked(flat: np.ndarray[Any, Any], k: int, count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The inverse of `_packed`, of all positions in a row: float32 and int64, [positions, k]."""
    width = _class_bits(count)
    bits = np.unpackbits(flat.reshape(-1, -(-BITS * k // 8)), axis=-1)[:, : BITS * k].reshape(-1, k, BITS)
    whole = np.concatenate([np.zeros((*bits.shape[:2], 32 - BITS), np.uint8), bits], -1)
    words = np.packbits(whole, axis=-1).view(">u4")[..., 0].astype(np.uint32)
    steps = (1 << (BITS - width)) - 1
    logs = -(words & np.uint32(steps)).astype(np.float32) * np.float32(FLOOR / steps)
    return logs, (words >> np.uint32(BITS - width)).astype(np.int64)


def _class_bits(count: int) -> int:
    width = max(int(count - 1).bit_length(), 1)
    if width > BITS - 8:
        raise UsageError(f"distil.cache: {count} classes are more than a cache can number ({1 << (BITS - 8)}).")
    return width


def _check(folder: Path, note: dict[str, Any]) -> None:
    """Begin a cache, or make sure that the one in `folder` is for the same."""
    file = folder / NOTE
    if not file.is_file():
        if folder.is_dir() and not all(is_unfinished(path) for path in folder.iterdir()):
            raise UsageError(f"distil.cache: {folder} holds something else; give an empty folder.")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(note, indent=2) + "\n")
        return
    was = read_object(file, "Delete the folder, or give another one: the answers in it cannot be told apart.")
    other = [key for key in note if was.get(key) != note[key]]
    if other:
        what = ", ".join(f"{key} ({was.get(key)} there, {note[key]} now)" for key in other)
        raise UsageError(
            f"distil.cache: {folder} was made for another {what}. Give another folder, or delete this one: "
            f"the answers in it do not fit."
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
    if processor is not None and not hasattr(processor, "get_vocab"):  # of images or sounds: size, mean, ...
        return processor_sha256(processor)
    known = processor.get_vocab() if processor is not None else {}
    return hashlib.blake2b(json.dumps(sorted(known.items())).encode(), digest_size=8).hexdigest()


def _weights_hash(model: PreTrainedModel) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
