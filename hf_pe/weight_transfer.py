"""Initializes a smaller model from another one: copies parameters of the same shape, projects embeddings."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy import discover
from hf_pe.errors import UsageError

Named = list[tuple[str, nn.Parameter]]


@torch.no_grad()
def start_from(teacher: PreTrainedModel, student: PreTrainedModel, layers: Sequence[int] | None = None) -> list[str]:
    """Copy the teacher's parameters into the student's where shapes are equal; nothing else in the student changes.

    Layer i of the student begins as the teacher's layer `layers[i]`. Within a layer, and outside the layers, parameters
    are paired by name where all names agree, else by shape in the order in which modules were built, which is that of
    query, key, value, output, norm and FFN in most families. For a student of the teacher's own architecture,
    `StructuredPruning` cuts by importance and is better.

    Args:
        teacher: stays as it is.
        student: built from its config, with random weights; changed in place.
        layers: numbers of the teacher's layers, one for each layer of the student; default: spread evenly, first with
            first and last with last.

    Returns:
        Names of the student's parameters that were copied.

    Raises:
        UsageError: `layers` names another number of layers, or a layer that the teacher does not have.
    """
    student_blocks, teacher_blocks = _blocks(student), _blocks(teacher)
    if layers is None:
        layers = spread_evenly(len(student_blocks), len(teacher_blocks)) if student_blocks and teacher_blocks else []
    if (student_blocks and teacher_blocks) and (
        len(layers) != len(student_blocks) or not all(0 <= j < len(teacher_blocks) for j in layers)
    ):
        raise UsageError(
            f"start_from: expected {len(student_blocks)} numbers within 0..{len(teacher_blocks) - 1}, "
            "one for each layer of the student; "
            f"got {list(layers)}."
        )
    copied = []
    pairs = [(_outside(student, student_blocks), _outside(teacher, teacher_blocks))]
    pairs += [(_inside(student, student_blocks[i]), _inside(teacher, teacher_blocks[j])) for i, j in enumerate(layers)]
    for student_parameters, teacher_parameters in pairs:
        for name, parameter, source in _matched(student_parameters, teacher_parameters):
            parameter.copy_(source)
            copied.append(name)
    return copied


@torch.no_grad()
def narrow_embeddings_(old: PreTrainedModel, new: PreTrainedModel) -> None:
    """Set the embeddings of `new` to those of `old`, projected on the principal components of the token embeddings.

    Embeddings that are summed (tokens, positions, segments) are projected alike. One with more rows than in `old` keeps
    its further rows; where `new` is wider, its further columns become zero.

    Args:
        old: stays as it is.
        new: a text model; changed in place.
    """
    old_tokens: Any = old.get_input_embeddings()
    new_tokens: Any = new.get_input_embeddings()
    weight, width = old_tokens.weight, new_tokens.weight.shape[1]
    _, _, components = torch.linalg.svd(weight.double() - weight.double().mean(0), full_matrices=False)
    projection = components.T[:, :width].to(weight.dtype)
    tables = {_ending(n): m for n, m in old.named_modules() if isinstance(m, nn.Embedding)}
    for name, table in new.named_modules():
        if not isinstance(table, nn.Embedding):
            continue
        source: Any = old_tokens if table.weight is new_tokens.weight else tables.get(_ending(name))
        if source is None or source.weight.shape[1] != len(projection) or table.weight.shape[1] != width:
            continue
        rows = min(len(source.weight), len(table.weight))
        table.weight[:rows] = 0
        table.weight[:rows, : projection.shape[1]] = source.weight[:rows] @ projection


def embeddings_for(table: torch.Tensor, tokenizer: Any, new_tokenizer: Any) -> tuple[torch.Tensor, float]:
    """Return token embeddings for another tokenizer.

    A token of both tokenizers keeps its row, a new one gets the mean of the rows of its pieces, and special tokens get
    those of the same role.

    Args:
        table: embeddings of the tokens of `tokenizer`, [tokens, width].
        tokenizer: that the embeddings belong to.
        new_tokenizer: that they are made for.

    Returns:
        The embeddings [len(new_tokenizer), width], and the fraction of its tokens that both tokenizers have.
    """
    rows = {_word_part(token, _style(tokenizer)): number for token, number in tokenizer.get_vocab().items()}
    roles = {
        role: getattr(tokenizer, f"{role}_token_id") or getattr(tokenizer, f"{_LIKE.get(role, role)}_token_id", None)
        for role in _ROLES
    }
    special = {getattr(new_tokenizer, f"{role}_token_id"): row for role, row in roles.items() if row is not None}
    embeddings = table.mean(0, keepdim=True).repeat(len(new_tokenizer), 1)
    shared = 0
    for token, number in new_tokenizer.get_vocab().items():
        word_part = _word_part(token, _style(new_tokenizer))
        if number in special or word_part in rows:
            embeddings[number] = table[special.get(number, rows.get(word_part, 0))]
            shared += 1
            continue
        begins, text = word_part
        pieces = tokenizer(text if begins else f"a{text}", add_special_tokens=False)["input_ids"][0 if begins else 1 :]
        pieces = [piece for piece in pieces if piece != tokenizer.unk_token_id]
        if pieces:
            embeddings[number] = table[pieces].mean(0)
    return embeddings, shared / len(new_tokenizer)


_ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
_LIKE = {"cls": "bos", "sep": "eos", "bos": "cls", "eos": "sep"}
"""Roles of special tokens that replace each other where a tokenizer lacks one."""


@functools.lru_cache(maxsize=8)
def _style(tokenizer: Any) -> str:
    """Return how a tokenizer marks word pieces: "##" for those inside a word, "\u0120" or "\u2581" for beginnings."""
    tokens = tokenizer.get_vocab()
    return max(("##", "\u0120", "\u2581"), key=lambda mark: sum(token.startswith(mark) for token in tokens))


def _word_part(token: str, style: str) -> tuple[bool, str]:
    """Return whether a token begins a word, and its text."""
    marked = token.startswith(style)
    return marked != (style == "##"), token.removeprefix(style)


def random_init(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Return a model with random weights that can be trained.

    transformers draws the batch norms of an EfficientNet around 0 with a standard deviation of 0.02, as its
    convolutions, so that activations and gradients vanish block after block. In models with batch norms, these begin at
    1, and convolutions are drawn by their number of outputs (He et al. 2015, arXiv:1502.01852, eq. 14), as in papers.
    """
    make: Any = model_class
    model: PreTrainedModel = make(config)
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                size = module.kernel_size[0] * module.kernel_size[1] * module.out_channels / module.groups
                nn.init.normal_(module.weight, std=(2 / size) ** 0.5)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
    return model


def spread_evenly(few: int, many: int) -> list[int]:
    """Return `few` numbers of 0..`many`-1, spread evenly from the first to the last; only the last where `few` is 1."""
    return [many - 1] if few == 1 else [round(i * (many - 1) / (few - 1)) for i in range(few)]


def _blocks(model: PreTrainedModel) -> list[str]:
    """Return the names of the layers, in order; of the deepest stack where there are several."""
    stacks: list[list[str]] = [[]]
    for axis in discover(model.config, type(model)).axes:
        if axis.kind.is_depth:
            stacks += [[f"{stack}.{i}" for i in range(axis.size)] for stack in axis.groups]
    return max(stacks, key=len)


def _inside(model: PreTrainedModel, block: str) -> Named:
    return [(f"{block}.{name}", p) for name, p in model.get_submodule(block).named_parameters()]


def _outside(model: PreTrainedModel, blocks: list[str]) -> Named:
    return [(n, p) for n, p in model.named_parameters() if not any(n.startswith(f"{b}.") for b in blocks)]


def _matched(student: Named, teacher: Named) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
    """Yield a name of the student with its parameter and the teacher's that is copied, both of the same shape.

    They are paired by the last parts of their names if all agree, else in order.
    """
    by_name = {_ending(name): p for name, p in teacher}
    if all(_ending(name) in by_name for name, _ in student):
        for name, p in student:
            if by_name[_ending(name)].shape == p.shape:
                yield name, p, by_name[_ending(name)]
        return
    start = 0
    for name, p in student:
        match = next((i for i in range(start, len(teacher)) if teacher[i][1].shape == p.shape), None)
        if match is not None:
            yield name, p, teacher[match][1]
            start = match + 1


def _ending(name: str) -> Any:
    """Return a parameter's name, split at dots, without the path to its layer."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return tuple(parts[numbers[-1] + 1 :] if numbers else parts)
