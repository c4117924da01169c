"""Where a result comes from: base model, data, machine, versions. Nothing that tells whose machine it was."""

import importlib.metadata
import os
import platform
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hf_pe.checkpoints.source import Source
from hf_pe.data import Examples
from hf_pe.data.config import names_of
from hf_pe.hub.base_card import Card, dataset_card
from hf_pe.quantizers.registry import QUANTIZERS
from hf_pe.report import BaseModelFacts, DataFacts


def base_facts(
    source: Source, model: PreTrainedModel, base_model: str | None, license: str | None, card: Card
) -> BaseModelFacts:
    """What the original says of itself; `base_model` and `license` where it does not.

    Where `base_model` names another model than the one that was compressed, that one may be a copy of it or a fine-tune
    of it: both names are kept.
    """
    return BaseModelFacts(
        id=base_model or source.name,
        compressed=None if base_model in (None, source.name) else source.name,
        revision=getattr(model.config, "_commit_hash", None),
        license=license or card.string("license"),
        licenses=() if license or len(card.strings("license")) < 2 else card.strings("license"),
        license_name=None if license else card.string("license_name"),
        license_link=None if license else card.string("license_link"),
        language=card.strings("language"),
        tags=card.strings("tags"),
        intended_use=card.sections(r"\buses?\b"),
        limits=card.sections(r"limit|\bbias|risk|out.of.scope|caveat|warning"),
        citation=card.citation(),
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
        licenses=_data_licenses(config.train, config.eval or ()),
        counts=examples.counts,
    )


def _data_licenses(*sources: str | tuple[str, ...]) -> dict[str, str]:
    """What each source says of its licence; one that says nothing, such as a local file, is left out."""
    names = [name for group in sources for name in names_of(group)]
    said = {name: _data_license(name) for name in names if not Path(name).expanduser().exists()}
    return {name: license for name, license in said.items() if license}


def _data_license(name: str) -> str | None:
    if name == "builtin:pydoc":
        return "PSF-2.0"
    if name.startswith("builtin:docstrings:"):
        owners = importlib.metadata.packages_distributions().get(name.rpartition(":")[2], [])
        about = importlib.metadata.metadata(owners[0]).json if owners else {}
        stated = str(about.get("license_expression") or about.get("license") or "")
        return stated.strip().partition("\n")[0][:60] or None
    return dataset_card(name).string("license")


def public_names(sources: str | tuple[str, ...]) -> tuple[str, ...]:
    """Sources as they may be published: of a local path only the last part."""
    return tuple(Path(s).name if Path(s).exists() else s for s in names_of(sources))


def machine() -> str:
    """Processor, cores and system, without names of hosts or users."""
    found = f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    return f"{found}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else found


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    packages = ("hf-pe", "torch", "transformers", *QUANTIZERS, "datasets")
    installed = {name: _version(name) for name in packages}
    return {"Python": platform.python_version()} | {name: version for name, version in installed.items() if version}


def _version(package: str) -> str:
    """Return the version of a package, "" where it is not installed: a quantizer need not be."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
