"""Describe where a result comes from: base model, data, machine, versions; nothing that identifies a user or host."""

import importlib.metadata
import os
import platform
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hf_pe.checkpoints.source import Source
from hf_pe.data import Examples
from hf_pe.data.config import names_of
from hf_pe.data_facts import DataFacts
from hf_pe.hub.base_card import Card, dataset_card
from hf_pe.quantizers.registry import QUANTIZERS
from hf_pe.report import BaseModelFacts


def base_facts(
    source: Source, model: PreTrainedModel, base_model: str | None, license: str | None, card: Card
) -> BaseModelFacts:
    """Return the facts on the card about the original, from its own card and config.

    Args:
        source: Source of the original.
        model: The original.
        base_model: Hub id that replaces the source's name. The compressed model may be a copy or a fine-tune of it, so
            both names are kept.
        license: License that replaces the one on the card.
        card: Card of the original.
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


def data_facts(examples: Examples, general: Examples | None = None) -> DataFacts:
    """Return the facts on the card about the data: sources without local folders, row counts, fingerprint.

    Args:
        examples: Rows of the run.
        general: Rows of the general text; None without one.
    """
    config = examples.config
    general_sources = () if general is None else names_of(general.config.train)
    return DataFacts(
        train=public_names(config.train),
        eval=None if config.eval is None else public_names(config.eval),
        train_rows=len(examples.train),
        eval_rows=len(examples.eval),
        fingerprint=examples.fingerprint,
        licenses=_data_licenses(config.train, config.eval or (), general_sources),
        counts=examples.counts,
        general=public_names(general_sources),
        general_rows=0 if general is None else len(general.eval),
        general_fingerprint="" if general is None else general.fingerprint,
    )


def _data_licenses(*sources: str | tuple[str, ...]) -> dict[str, str]:
    """Return the license that each source states; sources that state none, such as local files, are left out."""
    names = [name for group in sources for name in names_of(group)]
    licenses = {name: _data_license(name) for name in names if not Path(name).expanduser().exists()}
    return {name: license for name, license in licenses.items() if license}


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
    """Return the names of data sources as they may be published: only the last part of a local path."""
    return tuple(Path(s).name if Path(s).exists() else s for s in names_of(sources))


def machine() -> str:
    """Return processor, cores and system of this machine, without names of hosts or users."""
    description = f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    return f"{description}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else description


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the measured numbers depend on."""
    packages = ("hf-pe", "torch", "transformers", *QUANTIZERS, "datasets")
    installed = {name: _version(name) for name in packages}
    return {"Python": platform.python_version()} | {name: version for name, version in installed.items() if version}


def _version(package: str) -> str:
    """Return the version of a package, or "" where it is not installed, as a quantizer may be."""
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
