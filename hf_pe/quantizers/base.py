"""Define what a quantizer is: a library that stores the weights of linear layers in fewer bits."""

import copy
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_pe.anatomy import meta_model
from hf_pe.quantizers.layers import plain_linear_layers, plain_weight
from hf_pe.surgery import main_dtype, rebuilt

Stored = Callable[[torch.Tensor], torch.Tensor]
"""Returns the values that scales have after they are stored, which may round them."""
Encode = Callable[[torch.Tensor, Stored], torch.Tensor]
"""Returns codes for the levels of a grid, given `Stored`."""


@dataclass(frozen=True)
class Method:
    """Describe a format that weights are stored in.

    Attributes:
        title: Name in cards and plans, such as "NF4".
        reference: Link to the paper.
        has_grid: Whether `Quantizer.encode_` can replace codes and scales, so that GPTQ can choose them.
    """

    title: str
    reference: str
    has_grid: bool = False


@dataclass(frozen=True)
class QuantizationSettings:
    """Hold the settings of a quantization; a quantizer ignores those that its method does not have.

    Attributes:
        method: A name of `Quantizer.methods`.
        modules_to_not_convert: Full names of the modules that keep their weights; None for transformers' own default.
        double_quantization: Whether the scales are quantized too.
        compute_dtype: Dtype of matrix products; None for the quantizer's default.
        storage_dtype: Dtype of the tensors with the codes.
        outlier_threshold: Inputs above it are multiplied in 16 bits; 0 for none.
    """

    method: str
    modules_to_not_convert: Sequence[str] | None = None
    double_quantization: bool = True
    compute_dtype: torch.dtype | None = None
    storage_dtype: torch.dtype = torch.uint8
    outlier_threshold: float = 6.0


class Quantizer(ABC):
    """Wrap a library by which transformers loads quantized weights.

    A subclass has one line in `hf_pe.quantizers.registry.QUANTIZERS`. Recipes, their schema, cards and the checks for
    models that are quantized already derive from it.

    Example:
        >>> from hf_pe.quantizers.registry import METHODS
        >>> METHODS["nf4"].bits(QuantizationSettings("nf4", double_quantization=False))
        4.5
    """

    name: ClassVar[str]
    """Name of the library in cards and errors; reports state the version of the package with this name."""
    tag: ClassVar[str]
    """The Hub tag of results."""
    config_names: ClassVar[tuple[str, ...]]
    """Values of `quant_method` in configs whose weights this library can dequantize."""
    methods: ClassVar[Mapping[str, Method]]
    """The formats, by their names in recipe files."""
    block: ClassVar[int] = 1
    """Number of weights in a row that share a scale, in methods that have a grid."""
    input_multiple: ClassVar[int] = 1
    """Every method can quantize a layer whose number of inputs is a multiple of this."""
    shape_attribute: ClassVar[str] = ""
    """Path from a quantized parameter to the shape of the weight before quantization, where its own shape differs."""
    unfit_reason: ClassVar[str] = ""
    """Why `unfit_layers` keep their weights, as a clause: "4-bit kernels need inputs in multiples of 64"."""

    @abstractmethod
    def bits(self, settings: QuantizationSettings) -> float:
        """Return the bits of a quantized weight, scales included."""

    @abstractmethod
    def config(self, settings: QuantizationSettings) -> QuantizationConfigMixin:
        """Return the config by which transformers quantizes weights while it loads them."""

    @abstractmethod
    def is_quantized(self, module: nn.Module) -> bool:
        """Return whether the weight of this module is quantized by this library."""

    @abstractmethod
    def weight(self, module: nn.Module) -> torch.Tensor:
        """Return the dequantized weight of a linear layer.

        Returns:
            *Shape:* (outputs, inputs)
        """

    def unfit_layers(self, model: PreTrainedModel, method: str) -> list[str]:
        """Return the linear layers that cannot be quantized because of their widths; see `unfit_reason`."""
        return []

    def scale_bytes(self, module: nn.Module) -> int:
        """Return the bytes of the scales of a module that are not parameters."""
        return 0

    def remember_layout_(self, model: nn.Module) -> None:  # noqa: B027  many libraries have one layout only
        """Record the layout of quantized tensors before the model is run, for `restore_layout_`."""

    def restore_layout_(self, model: nn.Module) -> None:  # noqa: B027  likewise
        """Restore the layout of quantized tensors in which they are saved and trained."""

    def encode_(self, module: nn.Module, encode: Encode) -> None:
        """Replace codes and scales of a quantized layer, for a method that has a grid.

        Args:
            module: Quantized layer, which is changed in place.
            encode: Chooses the codes of shape (outputs, inputs), given the levels of the grid of shape (16,) and a
                function that returns the values of scales of shape (outputs, blocks) after storing.
        """
        raise NotImplementedError(f"{self.name} has no method with a grid.")

    def quantizable_layers(self, model: PreTrainedModel, kept: Sequence[str] = ()) -> list[str]:
        """Return the names of the linear layers that can be quantized, without those in `kept`."""
        return plain_linear_layers(model, kept)

    def kept_layers(self, model: PreTrainedModel, method: str | None, skip: tuple[str, ...] = ()) -> list[str]:
        """Return the linear layers that keep their weights: the complete skip list, sorted.

        These are the layers on transformers' own list, tied ones, all outside the backbone (heads), `unfit_layers`,
        `skip`, and those that transformers skips by itself: parts that need float32 (T5's second FFN layer), and layers
        whose name ends with one on the list.

        Args:
            model: The model, on any device.
            method: Method for the other layers; None to ignore widths.
            skip: Further modules, by full name or last part.
        """
        default = {name.removesuffix(".bias") for name in get_keys_to_not_convert(model)}
        inside = model.base_model_prefix + "."
        has_backbone = model.base_model is not model
        linear = set(self.quantizable_layers(model))
        heads = {n for n in linear if has_backbone and not n.startswith(inside)}
        if not has_backbone:  # transformers lists the last module, but without a backbone it is no head
            default -= linear
        unfit = set(self.unfit_layers(model, method)) if method is not None else set()
        kept = (default & linear) | heads | unfit | {n for n in linear if n.endswith(skip)}
        patterns = [*kept, *(model._keep_in_fp32_modules or ())]
        return sorted(name for name in linear if not should_convert_module(name, patterns))

    def quantized(
        self, model: PreTrainedModel, settings: QuantizationSettings, dtype: torch.dtype | None = None
    ) -> PreTrainedModel:
        """Return a quantized copy on the same device, made by transformers' own loading.

        Compute dtype, storage dtype and the complete skip list are written into the config, so that a reloaded model is
        equal.

        Args:
            model: The model, which is not changed.
            settings: Settings of the quantization.
            dtype: Dtype of the weights that are not quantized; by default that of most of the model's weights.
        """
        result = quantized_copy(model, self.config(settings), dtype)
        self.remember_layout_(result)
        return result

    def dequantized(self, model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
        """Return the dequantized copy of a model without adapters.

        Args:
            model: The quantized model, which is not changed.
            dtype: Dtype of the weights in the copy.
        """
        self.restore_layout_(model)
        config = copy.deepcopy(model.config)
        del config.quantization_config
        config.dtype = dtype
        plain, weights = meta_model(config, type(model)), {}
        state = model.state_dict()
        for name in plain.state_dict():
            owner = name.rpartition(".")[0]
            if name.endswith(".weight") and self.is_quantized(model.get_submodule(owner)):
                weight = self.weight(model.get_submodule(owner)).to(dtype)
                weights[name] = weight.T.contiguous() if isinstance(plain.get_submodule(owner), Conv1D) else weight
            else:
                weights[name] = state[name]
        return rebuilt(model, config, weights, dtype)

    def parameter_count(self, parameter: nn.Parameter) -> int | None:
        """Return the number of weights in a parameter quantized by this library; None for any other parameter."""
        try:
            shape = attrgetter(self.shape_attribute)(parameter) if self.shape_attribute else None
        except AttributeError:
            return None
        return None if shape is None else int(torch.Size(shape).numel())


def quantized_copy(
    model: PreTrainedModel, config: QuantizationConfigMixin, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Return a quantized copy on the same device, made by transformers' own loading.

    Args:
        model: The model, which is not changed.
        config: Config for transformers; see `Quantizer.config`.
        dtype: Dtype of the weights that are not quantized; by default that of most of the model's weights.
    """
    with tempfile.TemporaryDirectory() as work:
        model.save_pretrained(work)
        model_class: Any = type(model)
        result: PreTrainedModel = model_class.from_pretrained(
            work, quantization_config=config, dtype=dtype or main_dtype(model), device_map={"": str(model.device)}
        )
    result.config._name_or_path = model.config._name_or_path
    result.eval()
    return result


def layer_shapes(model: PreTrainedModel, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the numbers of outputs and inputs of linear layers that are not quantized, by name."""
    shapes = {name: plain_weight(model.get_submodule(name)).shape for name in names}
    return {name: (shape[0], shape[1]) for name, shape in shapes.items()}
