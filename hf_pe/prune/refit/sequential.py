"""Refit a pruned model block by block in closed form, so that later blocks correct the errors of earlier ones.

The pruned model is the student, the model before pruning the teacher. In each block of the student, the linear layer
that reads pruned units changes so that the block hands on, as nearly as it can, the hidden state that the teacher has
at the same depth. This takes forward passes only. For each block of the student, from the first to the last:

    1. run all calibration batches through the teacher up to the same depth; its hidden states are the targets
    2. run them through the student's block, whose inputs come from the blocks that are refitted already
    3. change the linear layer by the least-squares step that brings the hidden states nearest to the targets
    4. run the changed block, and go on to the next

The linear layer is the one that ends the block's FFN. Where heads were cut, the output projection of attention is
refitted first, in the same way; its target is the hidden state that the teacher's FFN reads.

`hf_pe.calibration.blockwise` keeps all batches waiting at a block while it is refitted, so no forward pass has to start
again from the inputs. The symbols, for one linear layer in a block of the student, at one token (`docs/pruning.md` has
a figure):

    x   input of the linear layer                                        (inputs,)
    y   its output W x + b                                               (width,), as all that follow
    N   the norm that reads y, where there is one (Gemma, OLMo 2): N(y) = (y - mean) / size * n + bias, with the mean
        and the root mean square (size) over the width of a token, and the norm's weight n. N^-1 undoes it with the mean
        and size that y has now
    u   update: N(y) where there is such a norm, else y
    g   factor of each coordinate of u (layer scales, the residual multiplier of Granite); 1 in most models
    r   residual stream: the hidden state that the block adds the update to
    s   the sum r + g u
    M   the norm that the block ends with, where there is one (BERT)
    h   hidden state that the block hands on: M(s) where there is such a norm, else s
    t   target: the teacher's hidden state at the same depth. Where pruning removed the teacher's next layers, it is the
        state after the last of them, so that this block takes over their work as well
    d   change: what s lacks to reach the target. d = t - s, or M^-1(t) - s with the mean and size that s has now
    q   token weight: 1 / mean(t^2), with M 1 / mean(s^2). Later norms divide by the size of the state, so an error
        matters relative to it. (The weight of the pruning criteria, `direction_weight`, ignores an error that only
        scales the state. Here d also corrects what earlier blocks left, and that can be a wrong scale.)

The linear layer moves by a ridge regression of d on x, whose ridge `hf_pe.regression` chooses:

    D, c = argmin  mean over tokens of  q |D x + c - d|^2  +  ridge  sum over inputs i of  p_i |D_i|^2
    W <- W + D / g,   b <- b + c / g

with D_i the column of D that reads input i. Its penalty is p_i = sqrt(m_i m), where m_i is the mean of x_i^2 with the
weights q (about the mean of x_i, if the layer has a bias), and m is the mean of all m_i.

With N, a change of y passes the norm before it is added. The change that y needs is dy = N^-1(u + d / g) - y, and the
regression is of n g dy on x with the token weights q / size^2, after which W moves by D / (n g) and b by c / (n g).
Output coordinates whose gain n g is almost zero stay as they are: no change of W could reach the state through them.

Worked example: a block without norms, a linear layer without bias, one token, width 1. r = 1, x = 2, W = 0.5, so u = y
= 1 and s = 2. The teacher has t = 3: d = 1, and without a ridge D = d / x = 0.5. The new W = 1 gives u = 2 and s = 3 =
t.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis, Slot, discover
from hf_pe.calibration import BATCH, PausedBatch, Stop, blockwise_passes, count_calls, hidden_of, mean_square
from hf_pe.errors import UsageError
from hf_pe.progress import advance
from hf_pe.prune.refit.observed_block import LastLinear, ObservedBlock, observe, update_factor
from hf_pe.regression import CHANGE, Folds, fit
from hf_pe.tasks import TaskData, counted_rows

MIN_GAIN = 1e-3
"""Output coordinates whose gain is below this fraction of the largest are left unchanged."""


def sequential_maps(axis: Axis) -> list[Slot]:
    """Return the slots of the linear layers that `refit_sequentially_` changes, as far as the units of `axis` go.

    These are the layers that read the units. Left out are experts, and layers outside of blocks (a merger of patches).
    """
    slots = (slot for slot in axis.slots if slot.consumes and slot.entry is None)
    return [slot for slot in slots if any(map(str.isdigit, slot.name.split(".")))]


class _BlockPlan(NamedTuple):
    """The linear layers to refit in one block, and where their targets come from.

    Attributes:
        ffn: weight of the layer that reads the units of the FFN.
        attention: weights of attention's output projections whose heads were cut; they are refitted first.
        block: name of the student's block.
        teacher_block: name of the same block in the teacher.
        stops: where the teacher's batches pause to give the targets: before `teacher_block`, if attention is refitted;
            then after it, or after the last of the removed blocks that follow it.
    """

    ffn: Slot
    attention: list[Slot]
    block: str
    teacher_block: str
    stops: list[Stop]


@torch.no_grad()
def refit_sequentially_(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    axis: Axis,
    layers: Mapping[str, Sequence[int]],
    data: TaskData,
    heads: Sequence[Axis] = (),
) -> None:
    """Refit each block of the student in place, so that it hands on the teacher's hidden state at the same depth.

    The module's docstring has the method. In each block the FFN's output layer changes. Where heads were cut, the
    output projection of attention changes first; its target is the hidden state that the teacher's FFN reads. An
    output projection whose update is not simply added to that state stays as it is, such as self-attention in a
    decoder that adds cross-attention after it.

    Nothing changes where the calibration rows never run through the blocks (those of another tower), or run through
    one block several times (ALBERT's, which has a target at every depth).

    Args:
        student: the pruned model, changed in place.
        teacher: the model before pruning.
        axis: the student's FFN width.
        layers: by stack of blocks, the indices of the teacher's layers that the student has; all of them in stacks that
            are not named.
        data: the calibration rows.
        heads: the student's head axes that were cut.

    Raises:
        UsageError: the blocks do more with the FFN's output than to norm it, scale it and add it to the hidden state.
    """
    batches = list(data.batches(data.calibration, BATCH))
    plans = _block_plans(teacher, axis, layers, heads)
    if not plans or count_calls(student, {"": student.get_submodule(plans[0].block)}, batches[0])[""] != 1:
        return
    target_stops = [stop for plan in plans for stop in plan.stops]
    own_stops = [Stop(plan.block, after=False) for plan in plans]
    with (
        blockwise_passes(teacher, batches, target_stops) as teacher_pauses,
        blockwise_passes(student, batches, own_stops) as pauses,
    ):
        for done, (plan, paused) in enumerate(zip(plans, pauses, strict=True), 1):
            teacher_starts, teacher_ends = next(teacher_pauses) if plan.attention else [], next(teacher_pauses)
            ffn = _module(plan.ffn, plan.block)
            factor = update_factor(student, plan.block, ffn, None, paused[0])
            if factor is not None:
                last = LastLinear(ffn, factor)
                _refit_attention_(student, teacher, plan, last, paused, teacher_starts)
                targets = (hidden_of(end.output).float() for end in teacher_ends)
                _refit_(student, plan.block, plan.ffn, factor, None, paused, targets)
            elif done == 1:
                raise UsageError(
                    f"prune.refit: sequential expects blocks that add the output of {plan.block}.{ffn} to their hidden "
                    "state, at most after a norm or a factor for each coordinate; these blocks compute something else "
                    "from it. Choose refit: least_squares."
                )
            advance("refit, block by block", done, len(plans))


def _block_plans(
    teacher: PreTrainedModel, axis: Axis, layers: Mapping[str, Sequence[int]], heads: Sequence[Axis]
) -> list[_BlockPlan]:
    """Return the linear layers to refit, block by block, from arguments of `refit_sequentially_`."""
    stacks = [stack for depth in discover(teacher.config, type(teacher)).named("layers") for stack in depth.groups]
    projections: dict[tuple[str, int], list[Slot]] = {}
    for slot in (slot for cut in heads for slot in sequential_maps(cut)):
        projections.setdefault(_block_of(slot.name, stacks), []).append(slot)
    plans = []
    for slot in sequential_maps(axis):
        stack, number = _block_of(slot.name, stacks)
        count = len(teacher.get_submodule(stack))  # type: ignore[arg-type]
        kept = list(layers.get(stack, range(count)))
        deepest = (kept[number + 1] if number + 1 < len(kept) else count) - 1
        attention, teacher_block = projections.pop((stack, number), []), f"{stack}.{kept[number]}"
        starts = [Stop(teacher_block, after=False)] if attention else []
        stops = [*starts, Stop(f"{stack}.{deepest}", after=True)]
        plans.append(_BlockPlan(slot, attention, f"{stack}.{number}", teacher_block, stops))
    return plans


def _refit_attention_(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    plan: _BlockPlan,
    last: LastLinear,
    paused: Sequence[PausedBatch],
    teacher_paused: Sequence[PausedBatch],
) -> None:
    """Refit the output projections of a block's attention towards the hidden state that the teacher's FFN reads.

    Args:
        student: the pruned model, changed in place.
        teacher: the model before pruning.
        plan: the plan of the block.
        last: the linear layer that ends the block's FFN.
        paused: all batches, before the student's block.
        teacher_paused: all batches, before the teacher's block.
    """
    for slot in plan.attention:
        name = _module(slot, plan.block)
        factor = update_factor(student, plan.block, name, last, paused[0])
        if factor is not None:
            targets = (observe(teacher, plan.teacher_block, name, last, start).state for start in teacher_paused)
            _refit_(student, plan.block, slot, factor, last, paused, targets)


def _refit_(
    student: PreTrainedModel,
    block: str,
    slot: Slot,
    factor: torch.Tensor,
    last: LastLinear | None,
    paused: Sequence[PausedBatch],
    targets: Iterable[torch.Tensor],
) -> None:
    """Refit one linear layer of a block towards target hidden states.

    Args:
        student: the pruned model, changed in place.
        block: name of the block.
        slot: the weight of the linear layer.
        factor: g. *Shape:* (width,)
        last: see `observe`.
        paused: all batches, before the block.
        targets: t of each batch. *Shape:* (batch, tokens, width)
    """
    name = _module(slot, block)
    linear: Any = student.get_submodule(f"{block}.{name}")
    folds = Folds()
    for number, (target, start) in enumerate(zip(targets, paused, strict=True)):
        observed = observe(student, block, name, last, start)
        parts = observed.linear.inputs, *_change_and_weight(observed, target, factor)
        inputs, change, weight = (counted_rows(part, start.batch.get("attention_mask")) for part in parts)
        folds.add(number, inputs, change, weight[:, 0])
    regression = fit(folds.moments(), bias=getattr(linear, "bias", None) is not None, by_size=CHANGE)
    gain = factor * (1 if observed.linear.norm is None else observed.linear.norm.gain)
    gain = torch.where(gain.abs() > MIN_GAIN * gain.abs().max(), gain, torch.inf)
    move = regression.move / gain
    linear.weight.data = linear.weight.data + (move if slot.dim == 0 else move.T).to(linear.weight.data)
    if linear.bias is not None:
        linear.bias.data = linear.bias.data + (regression.shift / gain).to(linear.bias.data)


def _change_and_weight(
    observed: ObservedBlock, target: torch.Tensor, factor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the regression's target and the token weights, for one batch.

    Args:
        observed: the tensors of the block on the batch.
        target: t. *Shape:* (batch, tokens, width)
        factor: g. *Shape:* (width,)

    Returns:
        d, *Shape:* (batch, tokens, width), and q, *Shape:* (batch, tokens, 1). Where a norm N reads the layer's output,
        n g dy and q / size^2.
    """
    change, weight, norm = target - observed.sum, 1 / mean_square(target), observed.linear.norm
    if observed.norm is not None:
        change, weight = observed.norm.inverse(target) - observed.sum, 1 / mean_square(observed.sum)
    if norm is None:
        return change, weight
    update = observed.linear.update + torch.where(factor == 0, 0, change / factor)
    change = (norm.inverse(update) - observed.linear.outputs) * norm.gain * factor
    return change, weight / norm.size.square()


def _module(slot: Slot, block: str) -> str:
    """Return the name of a slot's module inside its block."""
    return slot.name.rpartition(".")[0].removeprefix(f"{block}.")


def _block_of(name: str, stacks: Sequence[str]) -> tuple[str, int]:
    """Return the stack and the number of the block that a parameter belongs to.

    The stack is the innermost of `stacks` around the parameter; where none is, the name up to its first number.
    """
    parts = name.split(".")
    depths = [stack.count(".") + 1 for stack in stacks if name.startswith(f"{stack}.")]
    depth = max(depths, default=next(i for i, part in enumerate(parts) if part.isdigit()))
    return ".".join(parts[:depth]), int(parts[depth])
