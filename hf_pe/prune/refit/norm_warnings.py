"""Warn of norms that run over the units that a cut removes: their mean is over fewer units, so their output changes.

Attention of OLMo 2 and 3 and of MiniMax, and the FFN of BitNet, contain such norms; over the hidden width every model
has them. With calibration rows, `rescale_norms_` scales their weights back; without, the plan warns.
"""

from torch.nn.modules.batchnorm import _BatchNorm

from hf_pe.anatomy import Axis, is_norm, meta_model
from hf_pe.anatomy.norms import norms_along
from hf_pe.model_spec import ModelSpec


def rescaling_warnings(spec: ModelSpec, axis: Axis) -> tuple[str, ...]:
    """Return a warning where norms run over the units of an axis, for cuts after which nothing rescales them."""
    modules = norms_along(meta_model(spec.config, spec.model_class), axis)
    names = [name for name, module in modules.items() if is_norm(module) and not isinstance(module, _BatchNorm)]
    if not names:
        return ()
    examples = f"{names[0]}{', ...' if len(names) > 1 else ''}"
    return (
        f"{axis.name}: {len(names)} of the model's norms run over all units ({examples}). Over the kept units alone "
        "their outputs have another scale, and this cut does not correct it. A prune recipe with calibration rows and "
        "a refit does.",
    )
