"""Second moments and routing of experts, which share one stacked tensor."""

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
    """What the experts of one block are given.

    Attributes:
        hidden: [tokens, width].
        chosen: experts of each token, [tokens, k].
        gates: their weights, [tokens, k].
    """

    hidden: torch.Tensor
    chosen: torch.Tensor
    gates: torch.Tensor

    @classmethod
    def read(cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Call":
        """From a call of `module`.

        Raises:
            UsageError: it is not called with hidden states, the chosen experts and their weights.
        """
        given = [*inspect.signature(module.forward).bind(*args, **kwargs).arguments.values()]
        if len(given) != 3 or given[1].is_floating_point() or given[1].shape != given[2].shape:
            raise UsageError(f"prune: how tokens reach the experts of {type(module).__name__} is not understood.")
        return cls(given[0].reshape(-1, given[0].shape[-1]), given[1], given[2])

    def of(self, expert: int, counts: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Its tokens (indices) among those that count, and its gate for each."""
        mine = self.chosen == expert
        token, place = torch.where(mine if counts is None else mine & counts.to(mine.device)[:, None])
        return token, self.gates[token, place]


def inner(module: Any, expert: int, rows: torch.Tensor) -> torch.Tensor:
    """What flows into the output map of one expert for hidden states [tokens, width]: [tokens, inner width].

    Raises:
        UsageError: the module does not say how its weights lie (transformers' `use_experts_implementation`).
    """
    if not hasattr(module, "is_transposed"):
        raise UsageError(
            f"prune: what flows inside the experts of {type(module).__name__} is not understood. Choose a criterion "
            "of magnitude and repair: none."
        )
    name = "gate_up_proj" if module.has_gate else "up_proj"
    weight = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    first = functional.linear(rows, weight.T if module.is_transposed else weight, bias)
    found: torch.Tensor = module._apply_gate(first) if module.has_gate else module.act_fn(first)
    return found


def routed(model: PreTrainedModel, axis: Axis, data: TaskData) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """By block and expert: the gates of the tokens it gets, and the norms of what it gives for them, [tokens] each."""
    state = model.state_dict()
    owners = {s.group: s.name.rpartition(".")[0] for s in axis.slots if s.name in state and state[s.name].ndim == 3}
    seen = {group: [[(torch.zeros(0), torch.zeros(0))] for _ in range(axis.size)] for group in owners}

    def collect(group: str, number: int, module: Any, call: Call, counts: torch.Tensor) -> None:
        for expert, parts in enumerate(seen[group]):
            token, gates = call.of(expert, counts)
            if len(token):
                one = torch.ones(len(token), 1)
                out = module.forward(call.hidden[token], torch.full_like(one, expert).to(call.chosen), one.to(gates))
                parts.append((gates.cpu(), out.norm(dim=-1).cpu()))

    with expert_calls(model, owners, collect) as passes:
        passes.run(data, f"routing of {axis.name}")
    return {
        group: [(torch.cat([g for g, _ in parts]), torch.cat([n for _, n in parts])) for parts in experts]
        for group, experts in seen.items()
    }


def expert_moments(model: PreTrainedModel, axis: Axis, data: TaskData) -> dict[str, list[Moments]]:
    """Moments of what flows into the experts' output maps, by slot, one for each fold; a token counts by its gate's
    square, as it does in the block's output. Experts without a token are missing."""
    sums: dict[str, Folds] = {}
    owners, collect = _collecting(axis, sums)
    if owners:
        with expert_calls(model, owners, collect) as passes:
            passes.run(data, f"statistics of {axis.name}")
    return {key: folds.moments() for key, folds in sums.items()}


def expert_moments_by_block(model: PreTrainedModel, axis: Axis, data: TaskData) -> Iterator[dict[str, list[Moments]]]:
    """The same with one block's in memory."""
    sums: dict[str, Folds] = {}
    owners, collect = _collecting(axis, sums)
    if owners:
        with expert_calls(model, owners, collect) as passes:
            for _ in passes.walk(data, list(owners), f"statistics of {axis.name}"):
                yield {key: folds.moments() for key, folds in sums.items()}
                sums.clear()


def _collecting(axis: Axis, sums: dict[str, Folds]) -> tuple[dict[str, str], Callable[..., None]]:
    """The modules that hold experts, and what adds up their moments in `sums`."""
    slots: dict[str, list[Slot]] = {}
    for slot in axis.slots:
        if slot.consumes and slot.entry is not None:
            slots.setdefault(slot.name.rpartition(".")[0], []).append(slot)

    def collect(owner: str, number: int, module: Any, call: Call, counts: torch.Tensor) -> None:
        for slot in slots[owner]:
            token, gates = call.of(slot.entry or 0, counts)
            weight = gates.float().square()
            if weight.any():
                x = inner(module, slot.entry or 0, call.hidden[token])
                sums.setdefault(slot.key, Folds()).add(number, x, weight=weight)

    return {owner: owner for owner in slots}, collect


@contextmanager
def expert_calls(
    model: PreTrainedModel,
    owners: Mapping[str, str],
    collect: Callable[[str, int, Any, Call, torch.Tensor], None],
) -> Iterator[Passes]:
    """`collect` gets each call of the experts of `owners` and which tokens count."""
    passes = Passes(model, model.base_model)

    def watch(group: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = Call.read(module, args, kwargs)
            collect(group, passes.number, module, call, count_tokens(passes.mask, len(call.hidden)))

        return hook

    handles = [
        model.get_submodule(name).register_forward_pre_hook(watch(group), with_kwargs=True)
        for group, name in owners.items()
    ]
    with watching(passes, handles):
        yield passes


def count_tokens(mask: torch.Tensor | None, tokens: int) -> torch.Tensor:
    """Return which of `tokens` tokens count, as a flat boolean mask [tokens]; all without an attention mask."""
    return torch.ones(tokens, dtype=torch.bool) if mask is None else mask.flatten().bool().cpu()
