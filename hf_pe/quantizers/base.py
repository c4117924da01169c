"""What a quantizer is: a library that stores the weights of linear layers in fewer bits."""

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
"""What scales become when they are stored."""
Encode = Callable[[torch.Tensor, Stored], torch.Tensor]
"""Chooses codes for the levels of a grid, given what its scales become when they are stored."""


@dataclass(frozen=True)
class Method:
    """A format that weights are stored in.

    Attributes:
        title: as cards and plans name it: "NF4".
        reference: link of the paper.
        has_grid: whether `Quantizer.encode_` can exchange codes and scales, so that GPTQ can choose them.
    """

    title: str
    reference: str
    has_grid: bool = False


@dataclass(frozen=True)
class QuantizationSettings:
    """How weights are quantized; a quantizer uses what its method has.

    Attributes:
        method: a name of `Quantizer.methods`.
        modules_to_not_convert: full names of the modules that keep their weights; None: transformers' own default.
        double_quantization: whether scales are quantized too.
        compute_dtype: what products are computed in; None: the quantizer's default.
        storage_dtype: of the tensors that hold the codes.
        outlier_threshold: inputs above it are multiplied in 16 bits; 0: none are.
    """

    method: str
    modules_to_not_convert: Sequence[str] | None = None
    double_quantization: bool = True
    compute_dtype: torch.dtype | None = None
    storage_dtype: torch.dtype = torch.uint8
    outlier_threshold: float = 6.0


class Quantizer(ABC):
    """A library that transformers loads quantized weights with.

    A subclass has one line in `hf_pe.quantizers.registry.QUANTIZERS`. Recipes, their schema, cards and the checks of
    what is quantized already follow from it.

    Example:
        >>> from hf_pe.quantizers.registry import METHODS
        >>> METHODS["nf4"].bits(QuantizationSettings("nf4", double_quantization=False))
        4.5
    """

    name: ClassVar[str]
    """Of the library: cards and errors say it, and reports state the version of the package with this name."""
    tag: ClassVar[str]
    """The Hub tag of results."""
    config_names: ClassVar[tuple[str, ...]]
    """Values of `quant_method` in a config whose weights it can dequantize."""
    methods: ClassVar[Mapping[str, Method]]
    """The formats, by their names in recipe files."""
    block: ClassVar[int] = 1
    """Weights of a row that share a scale, in methods that have a grid."""
    input_multiple: ClassVar[int] = 1
    """What the number of inputs of a layer has to be a multiple of, so that every method can quantize it."""
    shape_attribute: ClassVar[str] = ""
    """The path below a quantized parameter to the shape of the weight that it stands for, where its own is another."""
    unfit_reason: ClassVar[str] = ""
    """Why `unfit_layers` keep their weights, as a clause: "4-bit kernels want inputs in multiples of 64"."""

    @abstractmethod
    def bits(self, settings: QuantizationSettings) -> float:
        """Return the bits that a quantized weight takes, scales included."""

    @abstractmethod
    def config(self, settings: QuantizationSettings) -> QuantizationConfigMixin:
        """Return how transformers quantizes weights while it loads them."""

    @abstractmethod
    def is_quantized(self, module: nn.Module) -> bool:
        """Return whether the weight of this module is quantized by this library."""

    @abstractmethod
    def weight(self, module: nn.Module) -> torch.Tensor:
        """Return the weight that a quantized linear layer stands for.

        Returns:
            *Shape:* (outputs, inputs)
        """

    def unfit_layers(self, model: PreTrainedModel, method: str) -> list[str]:
        """Return the linear layers that cannot be quantized because of their widths; see `unfit_reason`."""
        return []

    def scale_bytes(self, module: nn.Module) -> int:
        """Return the bytes of scales in a module that are no parameters of it."""
        return 0

    def remember_layout_(self, model: nn.Module) -> None:  # noqa: B027  many libraries have one layout only
        """Let `restore_layout_` bring back how quantized tensors lie now, before the model is run."""

    def restore_layout_(self, model: nn.Module) -> None:  # noqa: B027  likewise
        """Bring quantized tensors back into the layout in which they are saved and trained."""

    def encode_(self, module: nn.Module, encode: Encode) -> None:
        """Exchange codes and scales of a quantized layer, for a method that has a grid.

        Args:
            module: changed in place.
            encode: called with the levels of the grid [16] and with what scales [outputs, blocks] become when they are
                stored; returns the codes, [outputs, inputs].
        """
        raise NotImplementedError(f"{self.name} has no method with a grid.")

    def quantizable_layers(self, model: PreTrainedModel, kept: Sequence[str] = ()) -> list[str]:
        """Return the names of the linear layers that can be quantized, without those in `kept`."""
        return plain_linear_layers(model, kept)

    def kept_layers(self, model: PreTrainedModel, method: str | None, skip: tuple[str, ...] = ()) -> list[str]:
        """Return the linear layers that keep their weights: the whole skip list, sorted.

        They are transformers' own list, ties, everything outside the backbone (heads), `unfit_layers`, `skip`, and what
        transformers leaves out unasked: parts that want float32 (T5's second FFN map), what a name in the list ends.

        Args:
            model: on any device.
            method: how the others are quantized; None: without regard to their widths.
            skip: more modules, by full name or last part.
        """
        default = {name.removesuffix(".bias") for name in get_keys_to_not_convert(model)}
        inside = model.base_model_prefix + "."
        has_backbone = model.base_model is not model
        linear = set(self.quantizable_layers(model))
        heads = {n for n in linear if has_backbone and not n.startswith(inside)}
        if not has_backbone:  # transformers' "last module" is a head only where there is one
            default -= linear
        unfit = set(self.unfit_layers(model, method)) if method is not None else set()
        kept = (default & linear) | heads | unfit | {n for n in linear if n.endswith(skip)}
        patterns = [*kept, *(model._keep_in_fp32_modules or ())]
        return sorted(name for name in linear if not should_convert_module(name, patterns))

    def quantized(
        self, model: PreTrainedModel, settings: QuantizationSettings, dtype: torch.dtype | None = None
    ) -> PreTrainedModel:
        """Return a quantized copy on the same device, through transformers' own loading.

        Compute and storage dtypes and the whole skip list are written into the config, so that a reload is equal.

        Args:
            model: stays as it is.
            settings: how.
            dtype: of all that is not quantized; default: that of most of the model's weights.
        """
        result = quantized_copy(model, self.config(settings), dtype)
        self.remember_layout_(result)
        return result

    def dequantized(self, model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
        """Return the plain model that a quantized one without adapters stands for.

        Args:
            model: stays as it is.
            dtype: of the weights.
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
        """Return how many weights a quantized parameter stands for; None for one that is not quantized by it."""
        try:
            shape = attrgetter(self.shape_attribute)(parameter) if self.shape_attribute else None
        except AttributeError:
            return None
        return None if shape is None else int(torch.Size(shape).numel())


def quantized_copy(
    model: PreTrainedModel, config: QuantizationConfigMixin, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Return a quantized copy on the same device, through transformers' own loading.

    Args:
        model: stays as it is.
        config: as transformers reads it; see `Quantizer.config`.
        dtype: of all that is not quantized; default: that of most of the model's weights.
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
    """Return outputs and inputs of linear layers that are not quantized, by name."""
    shapes = {name: plain_weight(model.get_submodule(name)).shape for name in names}
    return {name: (shape[0], shape[1]) for name, shape in shapes.items()}
