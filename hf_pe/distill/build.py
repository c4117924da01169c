"""From what a recipe says and what models give to an objective: checks, heads, pairs of layers, projections."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy import label_head
from hf_pe.distill.attention import watchable, watched
from hf_pe.distill.cache import Cached
from hf_pe.distill.layer_map import Pairs, last, similar, uniform
from hf_pe.distill.losses.hidden import side_by_side
from hf_pe.distill.losses.logits import Top
from hf_pe.distill.losses.masked_mean import Signals, places
from hf_pe.distill.losses.registry import LOSSES, chunkable
from hf_pe.distill.objective import Answers, Link, Live, Objective, is_sharded
from hf_pe.distill.schedule import Scheduled
from hf_pe.distill.teacher import require_same_labels, require_same_vocabulary
from hf_pe.dummies.outputs import difference
from hf_pe.errors import UsageError
from hf_pe.modes import evaluating
from hf_pe.tasks import (
    LARGE,
    Batch,
    Head,
    Task,
    as_read_by,
    counted_rows,
    few_tokens,
    keeps_logits,
    require_classes,
    states,
)

WATCHED = 32
"""Tokens of a language model whose attention is looked at first."""
SAME = 1e-3
"""How far a float32 model's answers may move when its attention is looked at; rounding moves them by 1e-6."""
ROUNDINGS = 16
"""How far those of a 16-bit model may, in units of its dtype's rounding (eps): 12 layers of a Llama move them by 8."""
DEFAULTS = {"logits": {"kl": 1.0}, "embeddings": {"cosine": 1.0, "similarity": 10.0}}
"""Weights where the recipe gives none, by what the task's model gives."""
Layers = Literal["uniform", "last", "similar"] | tuple[int, ...]
DEFAULT_LAYERS: Literal["uniform"] = "uniform"


def default_losses(given: Mapping[str, Any]) -> dict[str, float]:
    """Weights where the recipe gives none, by the signals there are."""
    return next(weights for signal, weights in DEFAULTS.items() if signal in given)


def build(
    student: Any,
    teachers: Sequence[Answers],
    task: Task,
    batch: Batch,
    *,
    losses: Mapping[str, Scheduled],
    temperature: Scheduled,
    beta: float,
    layers: Layers,
    seed: int = 0,
    known: int | None = None,
) -> Objective:
    """The objective for these models, found out on one batch.

    Args:
        student: with adapters perhaps.
        teachers: see `Objective`.
        task: gives the signals of all models.
        batch: some rows, on the student's device.
        losses: weights by name; none: the task's default.
        temperature: of the logits.
        beta: of the Jensen-Shannon divergence.
        layers: which of the teacher's hidden states each of the student's learns from.
        seed: of the projections' first weights.
        known: how many rows of a vocabulary the tokenizer uses, see `known_ids`.

    Raises:
        UsageError: a teacher has other labels or another vocabulary; a classifier has one output; a loss needs what the
            task, a teacher or the attention does not give; widths or layers do not fit.
    """
    live = [teacher for teacher in teachers if isinstance(teacher, Live)]
    plain: PreTrainedModel = student.get_base_model() if hasattr(student, "get_base_model") else student
    if task.auto_class.endswith(("Classification", "Detection")):
        for each in live:
            require_same_labels(plain.config, each.model.config)
    if task.auto_class.endswith("Classification"):
        require_classes(plain.config)
    if hasattr(task, "predicted"):
        sizes = [each.classes for each in teachers if isinstance(each, Cached)]
        for size in (*sizes, *(_vocabulary_size(each.model) for each in live)):
            require_same_vocabulary(_vocabulary_size(plain), size, known)
    with evaluating(plain):
        for teacher in teachers:
            teacher.to(plain.device)
        needs = {LOSSES[name].needs for name in losses}
        hidden = "hidden_states" in needs
        with torch.no_grad():
            few = few_tokens(batch)
            given = task.signals(plain, few, hidden=True)
            wanted = [t.signals(few, task=task, hidden=hidden, attentions=False) for t in teachers]
            learned = [_hidden_states(model, task, batch) for model in (plain, *(t.model for t in live)) if hidden]
        if "attentions" in needs:
            _require_attention(plain, live, task, few_tokens(batch, rows=2, tokens=WATCHED))
        label_head, feature_scale = None, None
        if "features" in needs:
            label_head = _label_heads(plain, live)
            with torch.no_grad():
                feature_scale = _feature_scale(live[0], task, batch)
    weights = dict(losses) or default_losses(given)
    _require_signals(weights, task, given, wanted)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        links = [_link(layers, learned[0], each, _tokens(given, batch)) for each in learned[1:]]
    head = None
    sharded = any(is_sharded(model) for model in (plain, *(teacher.model for teacher in live)))
    if not sharded and _in_chunks(weights, task, wanted):  # heads are called outside of what gathers shards
        heads = [Head.of(teacher.model, few) for teacher in live]
        head = Head.of(student, few)
        if head is None or None in heads:
            head = None
        else:
            for teacher, found in zip(live, heads, strict=True):
                teacher.head = found
    if feature_scale is not None:
        links = [link._replace(feature_scale=feature_scale) for link in links or [Link()]]
    return Objective(task, weights, teachers, temperature, beta, head, links, label_head)


def _hidden_states(model: PreTrainedModel, task: Task, batch: Batch) -> tuple[torch.Tensor, ...]:
    """Hidden states of all rows, without their logits; where a model cannot leave these out, row by row."""
    batch = batch | as_read_by(model, batch)
    if few_tokens(batch) is batch:
        return tuple(task.signals(model, batch, hidden=True)["hidden_states"])
    if hasattr(task, "predicted") and keeps_logits(model):
        return states(model, batch)
    rows = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(len(batch["input_ids"]))]
    found = [task.signals(model, row, hidden=True)["hidden_states"] for row in rows]
    return tuple(torch.cat(layer) for layer in zip(*found, strict=True))


def _tokens(given: Signals, batch: Batch) -> torch.Tensor | None:
    """Which tokens of `batch` count, where the task's hidden states are of labels (`given` tells) or of inputs."""
    return batch["labels"] != -100 if "tokens" in given else batch.get("attention_mask")


def _link(
    layers: Layers, student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, ...], mask: torch.Tensor | None
) -> Link:
    """With projections where the widths differ, and the mean squares of the teacher's states."""
    pairs = pair(layers, student, teacher, mask)
    both = [_at_same_places(student[here], teacher[there]) for here, there in pairs]
    scales = [counted_rows(there.float(), mask).square().mean() for _, there in both]
    widths = [(here.shape[-1], there.shape[-1]) for here, there in both]
    if all(here == there for here, there in widths):
        return Link(pairs, scales=scales)
    return Link(pairs, [nn.Linear(*each, bias=False, device=student[0].device) for each in widths], scales)


def _at_same_places(*states: torch.Tensor) -> list[torch.Tensor]:
    """As `side_by_side`.

    Raises:
        UsageError: some stand at other places than the first.
    """
    found = side_by_side(*states)
    here, there = found[0].shape[:-1], next((s.shape[:-1] for s in found if s.shape[:-1] != found[0].shape[:-1]), None)
    if there is not None:
        raise UsageError(
            f"distil.losses.hidden: the student's hidden states stand at other places ({tuple(here)}) than those they "
            f"would learn from ({tuple(there)}). Use `features` and losses of the logits."
        )
    return found


def pair(
    layers: Layers,
    student: tuple[torch.Tensor, ...],
    teacher: tuple[torch.Tensor, ...],
    mask: torch.Tensor | None = None,
) -> Pairs:
    """Which hidden state learns from which, by `layers`; `mask` says which tokens count.

    Raises:
        UsageError: given ones are too many or too few, do not rise, or are out of range; `similar` ones stand at
            different places.
    """
    if layers == "similar":
        rows = [counted_rows(state, mask) for state in _at_same_places(*student, *teacher)]
        return similar(rows[: len(student)], rows[len(student) :])
    if layers == "last":
        return last(len(student), len(teacher))
    if isinstance(layers, str):
        return uniform(len(student), len(teacher))
    rising = all(one < other for one, other in itertools.pairwise((-1, *layers, len(teacher))))
    if len(layers) != len(student) or not rising:
        raise UsageError(
            f"distil.layers: expected {len(student)} rising numbers within 0..{len(teacher) - 1} (0: what the "
            f"embeddings give), one for each hidden state of the student; got {list(layers)}."
        )
    return list(enumerate(layers))


def require_given(losses: Iterable[str], task: Task, given: Signals) -> None:
    """Refuse losses of what the task does not give.

    Args:
        losses: by name.
        task: that gave `given`, hidden states included.
        given: the signals of some batch.

    Raises:
        UsageError: names those that it can have.
    """
    there = {*given, "attentions", *(["features"] if task.auto_class.endswith("Classification") else [])}
    for name in losses:
        if LOSSES[name].needs not in there:
            allowed = ", ".join(other for other, loss in LOSSES.items() if loss.needs in there)
            needs = LOSSES[name].needs
            raise UsageError(f"distil.losses.{name}: task '{task.name}' gives no {needs}; expected {allowed}.")


def _require_signals(weights: Mapping[str, Any], task: Task, given: Signals, wanted: Sequence[Signals]) -> None:
    """Refuse losses of what is not there, or of another width."""
    require_given(weights, task, given)
    for name in weights:
        loss = LOSSES[name]
        for teacher in wanted:
            there = teacher.get(loss.needs)
            if isinstance(there, Top) and not loss.sparse:
                raise UsageError(
                    f"distil.losses.{name}: the cache holds the likeliest classes only; leave this loss out."
                )
            if name == "task" or loss.needs in ("hidden_states", "attentions", "features"):
                continue
            here_width, there_width = (_width(signals[loss.needs]) for signals in (given, teacher))
            if here_width != there_width and not (loss.needs == "logits" and hasattr(task, "predicted")):
                raise UsageError(
                    f"distil.losses.{name}: expected the student's {loss.needs} as wide as the teacher's "
                    f"({there_width}), got {here_width}. Choose losses of the logits, or keep the hidden width."
                )


def _vocabulary_size(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def _require_attention(student: PreTrainedModel, teachers: Sequence[Live], task: Task, batch: Batch) -> None:
    """Try whether attention can be looked at: answers stay, and something is seen."""
    models = [student, *(teacher.model for teacher in teachers)]
    for model in models:
        with torch.no_grad():
            plain = task.signals(model, batch)
            with watchable(model), watched() as seen:
                again = task.signals(model, batch)
        tolerance = max(SAME, ROUNDINGS * torch.finfo(model.dtype).eps) if model.dtype.itemsize == 2 else SAME
        parts = [[s[n].float() for n in ("logits", "embeddings") if n in s] for s in (plain, again)]
        if not seen or not difference(*parts) <= tolerance or len({each.weights.shape[2:] for each in seen}) > 1:
            raise UsageError(
                f"distil.losses: the attention of {type(model).__name__} cannot be looked at (it has an implementation "
                "of its own, or an encoder and a decoder); leave out `attention` and `relations`."
            )


def _label_heads(student: PreTrainedModel, teachers: Sequence[Live]) -> nn.Module:
    """The student's map to the labels, made one with a bridge; the teacher remembers its own.

    Raises:
        UsageError: there is no such map, or not one teacher.
    """
    if len(teachers) != 1:
        raise UsageError(
            f"distil.losses.features: expected one live teacher whose head is reused, got {len(teachers)}."
        )
    heads = [label_head(model.config, type(model)) for model in (student, teachers[0].model)]
    modules = [m.get_submodule(h or "") for m, h in zip((student, teachers[0].model), heads, strict=True)]
    if None in heads or not all(isinstance(module, nn.Linear) for module in modules):
        raise UsageError(
            "distil.losses.features: expected one linear map to the labels in student and teacher, "
            f"got {' and '.join(head or 'none' for head in heads)}. Leave this loss out."
        )
    teachers[0].label_head = modules[1]
    return modules[0]


def _feature_scale(teacher: Live, task: Task, batch: Batch) -> torch.Tensor:
    """Mean square of what the teacher's head reads where predictions count."""
    signals = teacher.signals(batch, task=task, hidden=False, attentions=False)
    return places(signals["features"], signals).float().square().mean()


def _in_chunks(weights: Mapping[str, Any], task: Task, wanted: Sequence[Signals]) -> bool:
    """Whether losses of the logits can go in chunks, and are worth it."""
    by_token = [name for name in weights if name in chunkable()]
    beside = {n for n in weights if LOSSES[n].needs in ("hidden_states", "attentions")}
    if not by_token or {*weights} - {*by_token} - beside or not hasattr(task, "predicted"):
        return False
    return all(isinstance(s["logits"], Top) or s["logits"].shape[-1] >= LARGE for s in wanted)


def _width(signal: Any) -> int | None:
    """Of the last dimension of a tensor, or of the first of some; None for a single number."""
    tensor = signal[0] if isinstance(signal, tuple) else signal
    return tensor.shape[-1] if tensor.ndim else None
