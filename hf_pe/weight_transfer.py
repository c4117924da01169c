"""What a smaller model can take over from another one: parameters where shapes allow, tables of embeddings narrower."""

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
    """Copy the teacher's parameters into `student` where shapes allow; nothing else in it changes.

    Layer i begins as the teacher's layer `layers[i]`. Within a layer, and outside the layers, a parameter takes the one
    of the same name and shape, else the next of the same shape in the order in which modules were built: which is that
    of queries, keys, values, output, norm and FFN in most families. Of the teacher's own architecture at another depth
    or width a cut by importance is better: `StructuredPruning`.

    Args:
        teacher: stays as it is.
        student: built from its config, random; changed in place.
        layers: of the teacher, one for each layer of the student; default spread evenly, first with first and last with
            last.

    Returns:
        Names of the student's parameters that were copied.

    Raises:
        UsageError: `layers` names another number of layers, or one that is not there.
    """
    here, there = _blocks(student), _blocks(teacher)
    if layers is None:
        layers = spread(len(here), len(there)) if here and there else []
    if (here and there) and (len(layers) != len(here) or not all(0 <= j < len(there) for j in layers)):
        raise UsageError(
            f"start_from: expected {len(here)} numbers within 0..{len(there) - 1}, one for each layer of the student; "
            f"got {list(layers)}."
        )
    copied = []
    pairs = [(_outside(student, here), _outside(teacher, there))]
    pairs += [(_inside(student, here[i]), _inside(teacher, there[j])) for i, j in enumerate(layers)]
    for own, other in pairs:
        for name, one, found in _matched(own, other):
            one.copy_(found)
            copied.append(name)
    return copied


@torch.no_grad()
def narrower_tables_(old: PreTrainedModel, new: PreTrainedModel) -> None:
    """Fill the embedding tables of `new` with those of `old` along the principal components of the token embeddings.

    Tables that are summed (tokens, positions, segments) are turned alike. One with more rows than the old one keeps its
    own further rows; where `new` is wider its further columns become zero.
    """
    source: Any = old.get_input_embeddings()
    target: Any = new.get_input_embeddings()
    words, wanted = source.weight, target.weight
    _, _, components = torch.linalg.svd(words.double() - words.double().mean(0), full_matrices=False)
    turn = components.T[:, : wanted.shape[1]].to(words.dtype)
    tables = {_ending(n): m for n, m in old.named_modules() if isinstance(m, nn.Embedding)}
    for name, table in new.named_modules():
        if not isinstance(table, nn.Embedding):
            continue
        found: Any = source if table.weight is wanted else tables.get(_ending(name))
        if found is None or found.weight.shape[1] != len(turn) or table.weight.shape[1] != wanted.shape[1]:
            continue
        rows = min(len(found.weight), len(table.weight))
        table.weight[:rows] = 0
        table.weight[:rows, : turn.shape[1]] = found.weight[:rows] @ turn


def translated(table: torch.Tensor, own: Any, wanted: Any) -> tuple[torch.Tensor, float]:
    """An embedding table for the tokens of another tokenizer.

    A token that both know takes its row, one that only `wanted` knows the mean of the rows of its pieces; special
    tokens take those of the same role.

    Args:
        table: rows of the tokens of `own`, [tokens, width].
        own: tokenizer that `table` belongs to.
        wanted: the other tokenizer.

    Returns:
        The table [len(wanted), width], and the share of its tokens that both know.
    """
    known = {_form(token, _style(own)): number for token, number in own.get_vocab().items()}
    roles = {r: getattr(own, f"{r}_token_id") or getattr(own, f"{_LIKE.get(r, r)}_token_id", None) for r in _ROLES}
    special = {getattr(wanted, f"{role}_token_id"): row for role, row in roles.items() if row is not None}
    found = table.mean(0, keepdim=True).repeat(len(wanted), 1)
    same = 0
    for token, number in wanted.get_vocab().items():
        form = _form(token, _style(wanted))
        if number in special or form in known:
            found[number] = table[special.get(number, known.get(form, 0))]
            same += 1
            continue
        begins, text = form
        pieces = own(text if begins else f"a{text}", add_special_tokens=False)["input_ids"][0 if begins else 1 :]
        pieces = [piece for piece in pieces if piece != own.unk_token_id]
        if pieces:
            found[number] = table[pieces].mean(0)
    return found, same / len(wanted)


_ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
_LIKE = {"cls": "bos", "sep": "eos", "bos": "cls", "eos": "sep"}
"""Roles that stand for each other where a tokenizer lacks one."""


@functools.lru_cache(maxsize=8)
def _style(tokenizer: Any) -> str:
    """How tokens say that a word begins or goes on: "##" marks what goes on, "\u0120" and "\u2581" what begins."""
    tokens = tokenizer.get_vocab()
    return max(("##", "\u0120", "\u2581"), key=lambda mark: sum(token.startswith(mark) for token in tokens))


def _form(token: str, style: str) -> tuple[bool, str]:
    """Whether a token begins a word, and its text."""
    marked = token.startswith(style)
    return marked != (style == "##"), token.removeprefix(style)


def random_init(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """A model with random weights through which signals get.

    transformers draws the batch norms of an EfficientNet around 0 with a deviation of 0.02, as its convolutions: block
    after block the signal falls to nothing, and so do gradients. Where there are batch norms, they begin at 1, and
    convolutions are drawn by their outputs (He et al. 2015, arXiv:1502.01852, eq. 14), as the papers do.
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


def spread(few: int, many: int) -> list[int]:
    """`few` numbers of 0..`many`-1, evenly: first with first, last with last; the last alone where there is but one."""
    return [many - 1] if few == 1 else [round(i * (many - 1) / (few - 1)) for i in range(few)]


def _blocks(model: PreTrainedModel) -> list[str]:
    """Names of the layers, in order; of the deepest stack where there are several."""
    stacks: list[list[str]] = [[]]
    for axis in discover(model.config, type(model)).axes:
        if axis.kind.is_depth:
            stacks += [[f"{stack}.{i}" for i in range(axis.size)] for stack in axis.groups]
    return max(stacks, key=len)


def _inside(model: PreTrainedModel, block: str) -> Named:
    return [(f"{block}.{name}", p) for name, p in model.get_submodule(block).named_parameters()]


def _outside(model: PreTrainedModel, blocks: list[str]) -> Named:
    return [(n, p) for n, p in model.named_parameters() if not any(n.startswith(f"{b}.") for b in blocks)]


def _matched(own: Named, other: Named) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
    """Pairs of the same shape: by the last parts of their names if all agree, else in order."""
    by_name = {_ending(name): p for name, p in other}
    if all(_ending(name) in by_name for name, _ in own):
        for name, p in own:
            if by_name[_ending(name)].shape == p.shape:
                yield name, p, by_name[_ending(name)]
        return
    place = 0
    for name, p in own:
        match = next((i for i in range(place, len(other)) if other[i][1].shape == p.shape), None)
        if match is not None:
            yield name, p, other[match][1]
            place = match + 1


def _ending(name: str) -> Any:
    """A parameter's name without the path to its layer."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return tuple(parts[numbers[-1] + 1 :] if numbers else parts)
