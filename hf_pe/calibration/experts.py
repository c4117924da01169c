"""Second moments and routing of the experts of a mixture, whose weights are stacked in one tensor."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis, Slot
from hf_pe.calibration.hooks import Passes, watching
from hf_pe.errors import UsageError
from hf_pe.regression import Folds, Moments
from hf_pe.tasks import TaskData


class Call(NamedTuple):
    """The inputs of one call of a block's experts.

    Attributes:
        hidden: hidden states. *Shape:* (tokens, width)
        chosen: indices of each token's experts. *Shape:* (tokens, k)
        gates: the router's weights of these experts. *Shape:* (tokens, k)
    """

    hidden: torch.Tensor
    chosen: torch.Tensor
    gates: torch.Tensor

    @classmethod
    def read(cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Call":
        """Read the arguments of a call of `module`.

        Raises:
            UsageError: they are not hidden states, indices of experts and gates.
        """
        values = [*inspect.signature(module.forward).bind(*args, **kwargs).arguments.values()]
        if len(values) != 3 or values[1].is_floating_point() or values[1].shape != values[2].shape:
            raise UsageError(
                f"prune: expected that the experts of {type(module).__name__} are called with hidden states, indices "
                "of experts and their weights; they are called otherwise. Leave these axes out."
            )
        return cls(values[0].reshape(-1, values[0].shape[-1]), values[1], values[2])

    def of(self, expert: int, counts: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the indices of the tokens that an expert gets, and its gate for each.

        Args:
            expert: index of the expert.
            counts: mask of the tokens that count [tokens]; None where all do.
        """
        is_chosen = self.chosen == expert
        token, rank = torch.where(is_chosen if counts is None else is_chosen & counts.to(is_chosen.device)[:, None])
        return token, self.gates[token, rank]


def expert_inner(module: Any, expert: int, rows: torch.Tensor) -> torch.Tensor:
    """Return the inputs of the output projection of one expert.

    Args:
        module: holds the stacked experts of a block.
        expert: index of the expert.
        rows: hidden states. *Shape:* (tokens, width)

    Returns:
        *Shape:* (tokens, expert width)

    Raises:
        UsageError: the module does not say how its weights are stacked (transformers' `use_experts_implementation`).
    """
    if not hasattr(module, "is_transposed"):
        raise UsageError(
            f"prune: {type(module).__name__} does not say how the weights of its experts are stacked, so what flows "
            "inside them cannot be computed. Choose criterion: magnitude_l2 and refit: none."
        )
    name = "gate_up_proj" if module.has_gate else "up_proj"
    weight = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    projected = functional.linear(rows, weight.T if module.is_transposed else weight, bias)
    hidden: torch.Tensor = module._apply_gate(projected) if module.has_gate else module.act_fn(projected)
    return hidden


def routed_tokens(
    model: PreTrainedModel, axis: Axis, data: TaskData
) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return what the router sends to each expert on the calibration rows.

    Returns:
        By block, for each expert, the gates of the tokens that it gets and the norms of its outputs for them, [tokens]
        each.
    """
    state = model.state_dict()
    owners = {s.group: s.name.rpartition(".")[0] for s in axis.slots if s.name in state and state[s.name].ndim == 3}
    batches_of = {group: [[(torch.zeros(0), torch.zeros(0))] for _ in range(axis.size)] for group in owners}

    def collect(group: str, number: int, module: Any, call: Call, counts: torch.Tensor) -> None:
        for expert, parts in enumerate(batches_of[group]):
            token, gates = call.of(expert, counts)
            if len(token):
                ones = torch.ones(len(token), 1)
                out = module.forward(call.hidden[token], torch.full_like(ones, expert).to(call.chosen), ones.to(gates))
                parts.append((gates.cpu(), out.norm(dim=-1).cpu()))

    with expert_calls(model, owners, collect) as passes:
        passes.run(data, f"routing of {axis.name}")
    return {
        group: [(torch.cat([g for g, _ in parts]), torch.cat([n for _, n in parts])) for parts in experts]
        for group, experts in batches_of.items()
    }


def expert_moments(model: PreTrainedModel, axis: Axis, data: TaskData) -> dict[str, list[Moments]]:
    """Return the second moments of the inputs of the experts' output projections, by slot, one for each fold.

    A token counts by the square of its gate, as an error does in the block's output. Experts without a token are
    missing.
    """
    sums: dict[str, Folds] = {}
    owners, collect = _collecting(axis, sums)
    if owners:
        with expert_calls(model, owners, collect) as passes:
            passes.run(data, f"statistics of {axis.name}")
    return {key: folds.moments() for key, folds in sums.items()}


def expert_moments_by_block(model: PreTrainedModel, axis: Axis, data: TaskData) -> Iterator[dict[str, list[Moments]]]:
    """Yield the moments of `expert_moments` block by block, so that only those of one block are in memory."""
    sums: dict[str, Folds] = {}
    owners, collect = _collecting(axis, sums)
    if owners:
        with expert_calls(model, owners, collect) as passes:
            for _ in passes.by_block(data, list(owners), f"statistics of {axis.name}"):
                yield {key: folds.moments() for key, folds in sums.items()}
                sums.clear()


def _collecting(axis: Axis, sums: dict[str, Folds]) -> tuple[dict[str, str], Callable[..., None]]:
    """Return the modules that hold experts, and a function that adds their moments to `sums`."""
    slots: dict[str, list[Slot]] = {}
    for slot in axis.slots:
        if slot.consumes and slot.entry is not None:
            slots.setdefault(slot.name.rpartition(".")[0], []).append(slot)

    def collect(owner: str, number: int, module: Any, call: Call, counts: torch.Tensor) -> None:
        for slot in slots[owner]:
            token, gates = call.of(slot.entry or 0, counts)
            weight = gates.float().square()
            if weight.any():
                x = expert_inner(module, slot.entry or 0, call.hidden[token])
                sums.setdefault(slot.key, Folds()).add(number, x, weight=weight)

    return {owner: owner for owner in slots}, collect


@contextmanager
def expert_calls(
    model: PreTrainedModel,
    owners: Mapping[str, str],
    collect: Callable[[str, int, Any, Call, torch.Tensor], None],
) -> Iterator[Passes]:
    """Call `collect` at each call of experts while the passes run.

    Args:
        model: the model.
        owners: by a key of the caller's choice the name of a module that holds experts.
        collect: called with key, batch number, module, call, and the mask of the tokens that count.
    """
    passes = Passes(model, model.base_model)

    def reading(key: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = Call.read(module, args, kwargs)
            collect(key, passes.number, module, call, counted_tokens(passes.mask, len(call.hidden)))

        return hook

    handles = [
        model.get_submodule(name).register_forward_pre_hook(reading(key), with_kwargs=True)
        for key, name in owners.items()
    ]
    with watching(passes, handles):
        yield passes


def counted_tokens(mask: torch.Tensor | None, tokens: int) -> torch.Tensor:
    """Return which of `tokens` tokens count, as a flat boolean mask [tokens]; all do without an attention mask."""
    return torch.ones(tokens, dtype=torch.bool) if mask is None else mask.flatten().bool().cpu()
