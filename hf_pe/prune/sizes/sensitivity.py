"""How much of its answers a model loses when one axis alone is cut."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from hf_pe.anatomy import Axis, kind_of
from hf_pe.calibration import distance, rows_within, task_outputs
from hf_pe.calibration.coverage import reached, require_reached
from hf_pe.progress import advance
from hf_pe.prune.sizes.search import AxisSizes, SensitivityPoint
from hf_pe.tasks import TaskData
from hf_pe.verify.ablate import skipped

SHARES = (0.15, 0.3, 0.5, 0.75, 1.0)
"""How far down its ladder an axis is tried; between, what is lost grows in proportion."""

TOKENS = 4096
"""About as many are answered for each layer whose absence is tried."""


def sensitivity_curves(
    model: PreTrainedModel,
    data: TaskData,
    candidates: Sequence[Sequence[AxisSizes]],
    made: Callable[[AxisSizes], PreTrainedModel],
    cost: Callable[[AxisSizes], float],
) -> list[list[SensitivityPoint]]:
    """Go down each ladder alone.

    Args:
        model: the original.
        data: the rows.
        candidates: one for each axis.
        made: the model cut to a setting and refitted.
        cost: of a setting.

    Returns:
        For each ladder some rungs, the first and the last among them; the loss never falls.
    """
    wanted, pairs = task_outputs(model, data), any(_narrows(rungs[0]) for rungs in candidates)
    found = []
    for rungs in candidates:
        last = len(rungs) - 1
        chosen = sorted({max(round(share * last), 1) for share in SHARES})
        curve = [SensitivityPoint(0, 0.0, cost(rungs[0]))]
        for number, rung in enumerate(chosen, 1):
            loss = distance(task_outputs(made(rungs[rung]), data), wanted, pairs=pairs)
            curve.append(SensitivityPoint(rung, max(loss, curve[-1].loss), cost(rungs[rung])))
            advance(f"sensitivity along {', '.join(rungs[0])}", number, len(chosen))
        found.append(curve)
    return found


def least_loss(
    model: PreTrainedModel,
    data: TaskData,
    settings: Sequence[AxisSizes],
    made: Callable[[AxisSizes], PreTrainedModel],
) -> AxisSizes:
    """Of some settings the one whose cut and refitted model loses least; the first of equals.

    Args:
        model: the original.
        data: the rows.
        settings: at least one.
        made: the model cut to a setting and refitted.
    """
    wanted, found = task_outputs(model, data), list[float]()
    for number, setting in enumerate(settings, 1):
        found.append(distance(task_outputs(made(setting), data), wanted, pairs=_narrows(setting)))
        advance("ways to the target", number, len(settings))
    return settings[found.index(min(found))]


def greedy_depth_order(
    model: PreTrainedModel,
    axis: Axis,
    removable: Sequence[int],
    count: int,
    data: TaskData,
    gone: list[int],
) -> list[int]:
    """Layers whose absence costs the model's answers least, taken away one by one, each beside those that went before.

    As SLEB (Song et al. 2024, arXiv:2402.09025, algorithm 1), with the task's answers in place of perplexity.

    Args:
        model: the original.
        axis: of depth; layers of the same number go from all stacks.
        removable: layers that may go.
        count: how many do; as many rounds of passes over about `TOKENS` tokens, one for each layer that is left.
        data: the rows.
        gone: those that are known to go first; gets the others.

    Returns:
        `gone`, at least `count` of them.
    """
    if len(gone) < count:
        require_reached(reached(model, axis, data), axis)
    rows = rows_within(data, TOKENS)
    wanted = task_outputs(model, data, rows) if len(gone) < count else None
    for number in range(len(gone), count):
        assert wanted is not None
        losses = {}
        for layer in (layer for layer in removable if layer not in gone):
            names = [f"{stack}.{i}" for stack in axis.groups for i in (*gone, layer)]
            with skipped([model.get_submodule(name) for name in names]):
                losses[layer] = distance(task_outputs(model, data, rows), wanted)
        gone.append(min(losses, key=lambda layer: losses[layer]))
        advance(f"least missed {axis.name}", number + 1, count)
    return gone


def _narrows(setting: AxisSizes) -> bool:
    """Whether embeddings may become narrower than those they are compared with."""
    return any(kind_of(name).is_residual for name in setting)
