"""Exports a model to ONNX by transformers' own exporter, and compares its outputs in ONNX Runtime."""

import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from hf_pe import progress
from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.save import copy_beside, say_left_behind
from hf_pe.checkpoints.source import resolve
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, no_cache, outputs_of, tensors_of
from hf_pe.errors import UsageError, pass_on_memory_errors
from hf_pe.outputs import replaced, require_space
from hf_pe.quantizers.registry import require_plain

NEEDED = ("onnx", "onnxscript", "onnxruntime")
LENGTHS = (12, 29)
"""Tokens of the inputs with which the model is traced, and of others with which the graph has to work as well."""
TOLERANCE = 1e-3
"""Largest relative difference of float32 outputs that is accepted."""


class Exported(NamedTuple):
    """Describe the exported model.

    Attributes:
        folder: has `model.onnx`, its weights and the other files of the model (tokenizer, card ...).
        bytes: of the graph and its weights.
        difference: largest relative difference between ONNX Runtime's outputs and the model's.
    """

    folder: Path
    bytes: int
    difference: float


def export_onnx(
    model: str,
    output: str | Path,
    *,
    weights: Literal["float32", "int8"] = "float32",
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Exported:
    """Write a model as ONNX for any batch size and length, after a comparison of its outputs in ONNX Runtime.

    Args:
        model: folder, Hub id, .gguf file or `package:NAME/inner/path`; plain weights.
        output: folder of the result; written under another name, then renamed.
        weights: int8 is ONNX Runtime's dynamic quantization: weights in 8 bits, scales of activations computed at
            run time.
        overwrite: replace the contents of `output`, after success.
        trust_remote_code: run Python code from the model's repository.

    Raises:
        UsageError: the extra `export` is not installed, the weights are quantized (ONNX has no such types), the
            exporter cannot trace the model, or the outputs differ.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(f'export needs {", ".join(missing)}: pip install "hf-pe[export]".')
    source = resolve(model, trust_remote_code=trust_remote_code)
    config = load_config(source)
    require_plain(config)
    with replaced(Path(output), overwrite=overwrite, inputs=source.inputs()) as fresh:
        progress.say("loading the model")
        net: Any = load_model(source, class_for(config), dtype=torch.float32)
        size = sum(parameter.nbytes for parameter in net.parameters())
        require_space(fresh, size if weights == "float32" else size // 4, "the result")
        progress.say("exporting")
        exported = _exported(net, weights)
        gap = _gap(net, exported)
        largest = TOLERANCE if weights == "float32" else sys.float_info.max
        if not gap <= largest:
            raise UsageError(
                f"export: ONNX Runtime's outputs differ from the model's by {gap:.1e} (relative); expected at most "
                f"{largest:.0e}. The installed transformers does not export {type(net).__name__} correctly."
            )
        net.config._name_or_path = ""
        exported.save_pretrained(fresh)
        if source.folder is not None:
            copy_beside(source.folder, fresh, config, own_code=trust_remote_code)
        say_left_behind(source)
        size = sum(file.stat().st_size for file in fresh.glob("model.onnx*"))
    return Exported(Path(output), size, gap)


def _exported(net: Any, weights: str) -> Any:
    """Return the model as transformers' exporter makes it for ONNX Runtime."""
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter
    from transformers.exporters.quantizers.quantizer_onnxruntime import OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    quantizer = OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig()) if weights == "int8" else None
    inputs: dict[str, Any] = {**example_inputs(net, length=LENGTHS[0]), **no_cache(net)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch.export
        try:
            return OnnxExporter().export(net, inputs, config=OnnxConfig(dynamic=True, quantizer=quantizer))
        except Exception as error:
            pass_on_memory_errors(error)
            first = next(iter(str(error).splitlines()), "")
            raise UsageError(
                f"export: {type(net).__name__} cannot be traced: {type(error).__name__}: {first}"
            ) from error


def _gap(net: Any, exported: Any) -> float:
    """Return the largest relative difference of outputs over inputs of all `LENGTHS`; NaN where one is not finite."""
    batches = [example_inputs(net, batch=3, length=length) for length in LENGTHS]
    expected = [tensor for batch in batches for tensor in outputs_of(net, batch)]
    return difference(expected, [tensor for batch in batches for tensor in tensors_of(exported(**batch))])
