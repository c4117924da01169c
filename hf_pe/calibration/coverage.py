"""Whether the calibration data reach the units of an axis."""

from collections.abc import Collection
from typing import Any

from transformers import PreTrainedModel

from hf_pe.anatomy import Axis
from hf_pe.calibration.hooks import BATCH, comes_by
from hf_pe.errors import UsageError
from hf_pe.tasks import TaskData


def require_passage(seen: Collection[Any], axis: Axis) -> None:
    """Refuse to choose along an axis of which nothing was seen.

    Raises:
        UsageError: no calibration row goes through it: it lies in another tower.
    """
    if not seen:
        raise UsageError(
            f"prune: no calibration row goes through what '{axis.name}' counts, so that nothing tells its units apart. "
            "Give data that do, leave this axis out, or set its size with keep and choose by magnitude_l2."
        )


def reached(model: PreTrainedModel, axis: Axis, data: TaskData) -> list[str]:
    """Modules of an axis that the first calibration batch goes through which goes through any."""
    names = {slot.group if not axis.kind.is_depth else f"{slot.group}.0" for slot in axis.slots}
    names |= {slot.name.rpartition(".")[0] for slot in axis.slots}
    modules = {name: module for name, module in model.named_modules() if name and name in names}
    batches = data.batches(data.calibration, BATCH)
    return next((list(found) for batch in batches if (found := comes_by(model, modules, batch))), [])
