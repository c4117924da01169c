"""What a size costs: counted from the config, or measured on this machine."""

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
"""Everything that can be bounded, and its unit."""
MEASURED = ("latency", "memory")
"""What is measured and not counted."""
DEEP = 8
"""Stacks of more layers are measured at SHALLOW and DEEPER layers: each further layer costs the same."""
SHALLOW, DEEPER = 2, 6
SECONDS = 20.0
"""How long a size takes turns with the dense model for its latency."""


class Costs:
    """What the sizes of one model cost. Each is looked at once; what is measured, with random weights of that size.

    Args:
        dense: the model before anything is cut.
        batch: examples in the pass whose latency counts.
        device: where latency is measured.
    """

    def __init__(self, dense: ModelSpec, batch: int = 1, device: str | torch.device = "cpu") -> None:
        self.dense, self.batch, self.device = dense, batch, device
        self._known: dict[tuple[str, str], float] = {}
        self._rival: PreTrainedModel | None = None
        self._usual = 0.0

    def of(self, name: str, spec: ModelSpec) -> float:
        """Parameters outside embeddings, FLOPs at batch 1, bytes of all weights, milliseconds (median) or peak bytes.

        Latency and peak memory of deep models are put together from blocks: the cost at 2 layers and what 4
        more add.

        Raises:
            UsageError: it cannot be counted or measured for this architecture or on this machine.
        """
        parts = _blocks(spec) if name in MEASURED else [(1.0, spec)]
        return sum(times * self._once(name, part) for times, part in parts)

    def share(self, name: str, spec: ModelSpec) -> float:
        """The same over what the dense model costs."""
        return self.of(name, spec) / self.of(name, self.dense)

    def _once(self, name: str, spec: ModelSpec) -> float:
        key = (name, spec.config.to_json_string())
        if key not in self._known:
            found = getattr(self, f"_{name}")(spec)
            if found is None:
                raise UsageError(f"prune.budget.{name}: it cannot be found out here; expected another target.")
            self._known[key] = float(found)
        return self._known[key]

    def _parameters(self, spec: ModelSpec) -> int:
        return parameters(meta_model(spec.config, spec.model_class)).without_embeddings

    def _flops(self, spec: ModelSpec) -> int | None:
        return flops(spec.config, spec.model_class, length=longest(spec.config, LENGTH), pixels=spec.pixels)

    def _bytes(self, spec: ModelSpec) -> int:
        return int(spec_sizes(spec)["weight_bytes"])

    def _latency(self, spec: ModelSpec) -> float:
        """In turns with the dense model (of a deep one, its first blocks): a machine that slows down slows both."""
        known = _blocks(self.dense)[0][1]
        how: dict[str, Any] = {"batch": self.batch, "length": longest(spec.config, LENGTH), "pixels": spec.pixels}
        if self._rival is None:
            self._rival = self._random(known)
            self._usual = latency({"rival": self._rival}, **how)["rival"].p50_ms
        if spec.config.to_json_string() == known.config.to_json_string():
            return self._usual
        models = {"rival": self._rival, "this": self._random(spec)}
        times = alternating(models, **how, seconds=SECONDS, most_rounds=200)
        return self._usual * statistics.median(a / b for a, b in zip(times["this"], times["rival"], strict=True))

    def _memory(self, spec: ModelSpec) -> int | None:
        model = self._random(spec)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place, "sized")
            model.save_pretrained(folder)
            kind = auto_class_of(model.config, type(model))
            return reopened(folder, "sized", model, kind, None, length=LENGTH, pixels=spec.pixels)[0].peak_memory_bytes

    def _random(self, spec: ModelSpec) -> PreTrainedModel:
        make: Any = spec.model_class
        with torch.random.fork_rng(devices=[]):
            model = make._from_config(copy.deepcopy(spec.config), dtype=spec.config.dtype or torch.float32)
        return model.eval().to(self.device)  # type: ignore[no-any-return]


def _blocks(spec: ModelSpec) -> list[tuple[float, ModelSpec]]:
    """Smaller models and how often each counts, so that the sum costs what `spec` does."""
    stacks = [a for a in discover(spec.config, spec.model_class).named("layers") if a.native and a.size > DEEP]
    low = {axis.name: SHALLOW for axis in stacks}
    slopes = [(axis.size - SHALLOW) / (DEEPER - SHALLOW) for axis in stacks]
    deeper = [resized_spec(spec, low | {axis.name: DEEPER}) for axis in stacks]
    return [(1 - sum(slopes), resized_spec(spec, low)), *zip(slopes, deeper, strict=True)]
