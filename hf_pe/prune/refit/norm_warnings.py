"""What a cut does to norms over the units that it takes away: their mean runs over fewer, so that their output changes.

Heads of OLMo 2 and 3 and of MiniMax, and the FFN of BitNet, have such norms inside; over the hidden width every model
has them. With calibration rows their weights are scaled back (`rescale_norms_`); without, the plan says so.
"""

from torch.nn.modules.batchnorm import _BatchNorm

from hf_pe.anatomy import Axis, is_norm, skeleton
from hf_pe.anatomy.norms import norms_along
from hf_pe.model_spec import ModelSpec


def rescaling_warnings(spec: ModelSpec, axis: Axis) -> tuple[str, ...]:
    """Return a sentence where norms run over the units of an axis, for cuts after which nothing scales them back."""
    modules = norms_along(skeleton(spec.config, spec.model_class), axis)
    names = [name for name, each in modules.items() if is_norm(each) and not isinstance(each, _BatchNorm)]
    if not names:
        return ()
    named = f"{names[0]}{', ...' if len(names) > 1 else ''}"
    return (
        f"{axis.name}: {len(names)} of the model's norms run over all units ({named}). Over the kept ones alone they "
        "give another scale, which nothing corrects here; a prune recipe with calibration rows and a repair does.",
    )
