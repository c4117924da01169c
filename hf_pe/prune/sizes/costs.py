"""Cost of a model at given sizes: counted from the config, or measured on this machine."""

import copy
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_pe.anatomy import discover, meta_model
from hf_pe.checkpoints.classes import auto_class_of
from hf_pe.errors import UsageError
from hf_pe.measure import LENGTH, alternating, flops, latency, longest, parameters, reopened, spec_sizes
from hf_pe.model_spec import ModelSpec
from hf_pe.prune.sizes.allowed import resized_spec

UNITS = {"parameters": "", "flops": " FLOPs", "bytes": " bytes", "latency": " ms", "memory": " bytes"}
"""The costs that a budget can bound, with their units."""
MEASURED = ("latency", "memory")
"""The costs that are measured; the others are counted from the config."""
DEEP = 8
"""Stacks of more layers are measured with SHALLOW and with DEEPER layers, since each further layer costs the same."""
SHALLOW, DEEPER = 2, 6
SECONDS = 20.0
"""How long a model runs in turns with the dense one to measure its latency."""


class Costs:
    """The costs of one model at different sizes, each computed once.

    Costs that are measured are those of a model of that size with random weights.

    Args:
        dense: the model before anything is cut.
        batch: number of examples in the forward pass whose latency is measured.
        device: the device that latency is measured on.
    """

    def __init__(self, dense: ModelSpec, batch: int = 1, device: str | torch.device = "cpu") -> None:
        self.dense, self.batch, self.device = dense, batch, device
        self._costs: dict[tuple[str, str], float] = {}
        self._dense_model: PreTrainedModel | None = None
        self._dense_latency = 0.0

    def of(self, name: str, spec: ModelSpec) -> float:
        """Return one cost of a model.

        Latency and peak memory of deep models are extrapolated from the cost with 2 layers and what 4 more add.

        Args:
            name: "parameters" (outside embeddings), "flops" (at batch 1), "bytes" (of all weights), "latency" (median,
                in milliseconds) or "memory" (peak, in bytes).
            spec: the model.

        Raises:
            UsageError: the cost cannot be counted or measured for this architecture or on this machine.
        """
        parts = _blocks(spec) if name in MEASURED else [(1.0, spec)]
        return sum(times * self._once(name, part) for times, part in parts)

    def fraction(self, name: str, spec: ModelSpec) -> float:
        """Return one cost of a model over that of the dense model."""
        return self.of(name, spec) / self.of(name, self.dense)

    def _once(self, name: str, spec: ModelSpec) -> float:
        key = (name, spec.config.to_json_string())
        if key not in self._costs:
            cost = getattr(self, f"_{name}")(spec)
            if cost is None:
                raise UsageError(
                    f"prune.budget.{name}: {name} cannot be determined for this model on this machine. Choose another "
                    "target."
                )
            self._costs[key] = float(cost)
        return self._costs[key]

    def _parameters(self, spec: ModelSpec) -> int:
        return parameters(meta_model(spec.config, spec.model_class)).without_embeddings

    def _flops(self, spec: ModelSpec) -> int | None:
        return flops(spec.config, spec.model_class, length=longest(spec.config, LENGTH), pixels=spec.pixels)

    def _bytes(self, spec: ModelSpec) -> int:
        return int(spec_sizes(spec)["weight_bytes"])

    def _latency(self, spec: ModelSpec) -> float:
        """Measure latency in turns with the dense model (for deep ones, its first blocks).

        A machine that slows down slows both, so their ratio is steadier than a time.
        """
        dense = _blocks(self.dense)[0][1]
        inputs: dict[str, Any] = {"batch": self.batch, "length": longest(spec.config, LENGTH), "pixels": spec.pixels}
        if self._dense_model is None:
            self._dense_model = self._random(dense)
            self._dense_latency = latency({"dense": self._dense_model}, **inputs)["dense"].p50_ms
        if spec.config.to_json_string() == dense.config.to_json_string():
            return self._dense_latency
        models = {"dense": self._dense_model, "cut": self._random(spec)}
        times = alternating(models, **inputs, seconds=SECONDS, most_rounds=200)
        ratios = (cut / full for cut, full in zip(times["cut"], times["dense"], strict=True))
        return self._dense_latency * statistics.median(ratios)

    def _memory(self, spec: ModelSpec) -> int | None:
        model = self._random(spec)
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent, "sized")
            model.save_pretrained(folder)
            auto_class = auto_class_of(model.config, type(model))
            measurement, *_ = reopened(folder, model, auto_class, None, length=LENGTH, pixels=spec.pixels)
            return measurement.peak_memory_bytes

    def _random(self, spec: ModelSpec) -> PreTrainedModel:
        model_class: Any = spec.model_class
        with torch.random.fork_rng(devices=[]):
            model = model_class._from_config(copy.deepcopy(spec.config), dtype=spec.config.dtype or torch.float32)
        return model.eval().to(self.device)  # type: ignore[no-any-return]


def _blocks(spec: ModelSpec) -> list[tuple[float, ModelSpec]]:
    """Return shallow models with a factor each, so that the weighted sum of their costs is the cost of `spec`."""
    stacks = [a for a in discover(spec.config, spec.model_class).named("layers") if a.native and a.size > DEEP]
    low = {axis.name: SHALLOW for axis in stacks}
    slopes = [(axis.size - SHALLOW) / (DEEPER - SHALLOW) for axis in stacks]
    deeper = [resized_spec(spec, low | {axis.name: DEEPER}) for axis in stacks]
    return [(1 - sum(slopes), resized_spec(spec, low)), *zip(slopes, deeper, strict=True)]
