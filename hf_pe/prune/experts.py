"""Experts of sparse models: what reaches them, what flows inside them, and how those that are left make up for others.

Routing is never changed: a repair moves the maps that experts give their output by.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis, Slot
from hf_pe.errors import UsageError
from hf_pe.progress import advance
from hf_pe.prune.repair import fit
from hf_pe.prune.statistics import BATCH, Moments, add_to_fold
from hf_pe.tasks import TaskData, model_inputs

HELD_BACK = 4
"""Every so many batches one is kept back: a correction stays if it brings the block's output nearer there."""


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

    _run(model, owners, data, f"routing of {axis.name}", collect)
    return {
        group: [(torch.cat([g for g, _ in parts]), torch.cat([n for _, n in parts])) for parts in experts]
        for group, experts in seen.items()
    }


def expert_moments(model: PreTrainedModel, axis: Axis, data: TaskData) -> dict[str, list[Moments]]:
    """Moments of what flows into the experts' output maps, by slot, one for each fold; a token counts by its gate's
    square, as it does in the block's output. Experts without a token are missing."""
    slots: dict[str, list[Slot]] = {}
    for slot in axis.slots:
        if slot.consumes and slot.entry is not None:
            slots.setdefault(slot.name.rpartition(".")[0], []).append(slot)
    sums: dict[str, list[Moments]] = {}

    def collect(owner: str, number: int, module: Any, call: Call, counts: torch.Tensor) -> None:
        for slot in slots[owner]:
            token, gates = call.of(slot.entry or 0, counts)
            if len(token):
                x = inner(module, slot.entry or 0, call.hidden[token])
                add_to_fold(sums.setdefault(slot.key, []), number, Moments.of(x, weight=gates.float().square()))

    if slots:
        _run(model, {owner: owner for owner in slots}, data, f"statistics of {axis.name}", collect)
    return sums


@torch.no_grad()
def correct_(
    smaller: PreTrainedModel, model: PreTrainedModel, axis: Axis, kept: Mapping[str, Sequence[int]], data: TaskData
) -> tuple[int, int]:
    """Let the experts that are left make up for the removed ones, in place, with the routing as it is.

    With d the gap between the block's output before and now, and g the gates of the token's experts, expert e takes
    its part of the least-squares step, g_e^2 / sum g^2 of d, by ridge regression on g_e times what flows into its
    output map. A block whose output does not come nearer on batches that were held back stays as it was.

    Args:
        smaller: cut along `axis`.
        model: the original; both see the hidden states of the original.
        axis: the experts of `model`.
        kept: experts that stay, by group of `axis`.
        data: calibration rows.

    Returns:
        Blocks that were corrected, and all.
    """
    owners = {s.group: s.name.rpartition(".")[0] for s in axis.slots if s.name.endswith("down_proj")}
    owners = {group: name for group, name in owners.items() if hasattr(model.get_submodule(name), "is_transposed")}
    batches = list(data.batches(data.calibration, BATCH))
    if not owners or len(batches) < 2:
        return 0, len(kept)
    whole, gaps = dict[str, list[float]](), dict[str, dict[int, list[Moments]]]()
    tried = {name: smaller.get_parameter(f"{name}.down_proj").data.clone() for name in owners.values()}

    def learn(name: str, number: int, module: Any, call: Call, gap: torch.Tensor) -> None:
        weight = call.gates.float().square()
        total = weight.sum(1).clamp_min(1e-12)
        for expert in range(len(tried[name])):
            token, gates = call.of(expert)
            if len(token):
                x = inner(module, expert, call.hidden[token]) * gates[:, None]
                part = (gates.float().square() / total[token])[:, None] * gap[token].float()
                folds = gaps.setdefault(name, {}).setdefault(expert, [])
                add_to_fold(folds, number, Moments.of(x, part))

    def judge(name: str, number: int, module: Any, call: Call, gap: torch.Tensor) -> None:
        whole.setdefault(name, []).append(float(gap.float().square().sum()))

    held = [b for number, b in enumerate(batches) if number % HELD_BACK == HELD_BACK - 1] or batches[-1:]
    taught = [b for b in batches if all(b is not other for other in held)]
    _compare(model, smaller, owners, taught, learn)
    _compare(model, smaller, owners, held, judge)
    before = {name: sum(values) for name, values in whole.items()}
    for name, experts in gaps.items():
        owner: Any = smaller.get_submodule(name)
        for expert, folds in experts.items():
            move = fit(folds, bias=False).move
            weight = owner.down_proj.data[expert]
            weight += (move if getattr(owner, "is_transposed", False) else move.T).to(weight)
    whole.clear()
    _compare(model, smaller, owners, held, judge)
    nearer = {name for name, values in whole.items() if sum(values) < before[name]}
    for name in tried.keys() - nearer:
        smaller.get_parameter(f"{name}.down_proj").data.copy_(tried[name])
    return len(nearer), len(owners)


def _compare(
    model: PreTrainedModel,
    smaller: PreTrainedModel,
    owners: dict[str, str],
    batches: Sequence[Any],
    collect: Callable[[str, int, Any, Call, torch.Tensor], None],
) -> None:
    """Run batches through `model`; at each sparse block let that of `smaller` run on the same input, and hand over the
    call of its experts and the gap of the outputs."""
    blocks = {name.rpartition(".")[0]: name for name in owners.values()}
    state: dict[str, Any] = {}

    def watch(block: str, name: str) -> Any:
        other, experts = smaller.get_submodule(block), smaller.get_submodule(name)

        def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            state["call"] = Call.read(module, args, kwargs)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            handle = experts.register_forward_pre_hook(read, with_kwargs=True)
            try:
                now = other(*args, **kwargs)
            finally:
                handle.remove()
            gap = _first(output) - _first(now)
            gap = gap.reshape(-1, gap.shape[-1])
            counts = _counted(state["mask"], len(gap)).to(gap.device)
            call = Call(*(part[counts] for part in state["call"]))
            collect(name, state["number"], experts, call, gap[counts])

        return model.get_submodule(block).register_forward_hook(hook, with_kwargs=True)

    handles = [watch(block, name) for block, name in blocks.items()]
    try:
        with _evaluating(model), _evaluating(smaller):
            for number, batch in enumerate(batches):
                batch = {k: v.to(model.device) for k, v in batch.items()}
                state.update(number=number, mask=batch.get("attention_mask"))
                model.base_model(**model_inputs(batch))
                advance("correction of the experts", number + 1, len(batches))
    finally:
        for handle in handles:
            handle.remove()


def _run(
    model: PreTrainedModel,
    owners: Mapping[str, str],
    data: TaskData,
    what: str,
    collect: Callable[[str, int, Any, Call, torch.Tensor], None],
) -> None:
    """Run the calibration rows; `collect` gets each call of the experts of `owners` and which tokens count."""
    state: dict[str, Any] = {}

    def watch(group: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = Call.read(module, args, kwargs)
            collect(group, state["number"], module, call, _counted(state["mask"], len(call.hidden)))

        return hook

    handles = [
        model.get_submodule(name).register_forward_pre_hook(watch(group), with_kwargs=True)
        for group, name in owners.items()
    ]
    done = 0
    try:
        with torch.no_grad(), _evaluating(model):
            for number, batch in enumerate(data.batches(data.calibration, BATCH)):
                batch = {k: v.to(model.device) for k, v in batch.items()}
                state.update(number=number, mask=batch.get("attention_mask"))
                model.base_model(**model_inputs(batch))
                done += len(next(iter(batch.values())))
                advance(what, done, len(data.calibration))
    finally:
        for handle in handles:
            handle.remove()


def _counted(mask: torch.Tensor | None, tokens: int) -> torch.Tensor:
    return torch.ones(tokens, dtype=torch.bool) if mask is None else mask.flatten().bool().cpu()


def _first(output: Any) -> torch.Tensor:
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
