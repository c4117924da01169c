"""Where a result comes from: base model, data, machine, versions. Nothing that tells whose machine it was."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from transformers import PreTrainedModel

from hf_pe.checkpoints import Source
from hf_pe.data import Examples
from hf_pe.report import BaseModelFacts, DataFacts

PACKAGES = ("hf-pe", "torch", "transformers", "bitsandbytes", "datasets")


def base_facts(source: Source, model: PreTrainedModel, base_model: str | None, license: str | None) -> BaseModelFacts:
    """What the original says of itself; `base_model` and `license` where it does not."""
    said = _front_matter(source)
    language = said.get("language") or []
    return BaseModelFacts(
        id=base_model or source.name,
        license=license or said.get("license"),
        language=tuple([language] if isinstance(language, str) else language),
        tags=tuple(said.get("tags") or ()),
        model_class=type(model).__name__,
        model_type=model.config.model_type,
    )


def data_facts(examples: Examples) -> DataFacts:
    """Sources without local folders, row counts, fingerprint."""
    config = examples.config
    return DataFacts(
        train=public_names(config.train),
        eval=None if config.eval is None else public_names(config.eval),
        train_rows=len(examples.train),
        eval_rows=len(examples.eval),
        fingerprint=examples.fingerprint,
    )


def public_names(sources: str | tuple[str, ...]) -> tuple[str, ...]:
    """Sources as they may be published: of a local path only the last part."""
    return tuple(Path(s).name if Path(s).exists() else s for s in ([sources] if isinstance(sources, str) else sources))


def machine() -> str:
    """Processor, cores and system, without names of hosts or users."""
    found = f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    return f"{found}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else found


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    return {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def _front_matter(source: Source) -> dict[str, Any]:
    folder = source.folder
    if folder is None:
        try:
            return dict(ModelCard.load(source.path).data.to_dict())
        except (OSError, ValueError):  # no card, or no network any more: the facts stay unstated
            return {}
    card = folder / "README.md"
    return dict(ModelCard(card.read_text("utf-8")).data.to_dict()) if card.is_file() else {}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
