"""Check that the calibration rows reach the units of an axis: texts alone never run the image tower of a LLaVA."""

from collections.abc import Collection
from typing import Any

from transformers import PreTrainedModel

from hf_pe.anatomy import Axis
from hf_pe.calibration.hooks import BATCH, count_calls
from hf_pe.errors import UsageError
from hf_pe.tasks import TaskData


def require_reached(statistics: Collection[Any], axis: Axis) -> None:
    """Refuse to choose units of an axis that the calibration rows never reach.

    Args:
        statistics: what was gathered of the axis on the calibration rows; empty where no row reaches it.
        axis: the axis.

    Raises:
        UsageError: `statistics` is empty.
    """
    if not statistics:
        raise UsageError(
            f"prune: the calibration data never reach '{axis.name}' (are images missing?), so its units cannot be "
            "ranked. Give data that reach it, leave this axis out, or set its size with keep and choose by "
            "magnitude_l2."
        )


def reached_modules(model: PreTrainedModel, axis: Axis, data: TaskData) -> list[str]:
    """Return the modules of an axis that the calibration rows run.

    They are those of the first batch that runs any; the list is empty where no batch does.
    """
    names = {slot.group if not axis.kind.is_depth else f"{slot.group}.0" for slot in axis.slots}
    names |= {slot.name.rpartition(".")[0] for slot in axis.slots}
    modules = {name: module for name, module in model.named_modules() if name and name in names}
    counts = (count_calls(model, modules, batch) for batch in data.batches(data.calibration, BATCH))
    return next((list(calls) for calls in counts if calls), [])
