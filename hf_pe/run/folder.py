"""A result folder: weights, processor, report, card and papers, proved to load before it counts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_pe import progress
from hf_pe.anatomy import custom_modules_of
from hf_pe.checkpoints.mixed_dtypes import as_stock_loads
from hf_pe.checkpoints.save import save_model, weight_bytes_on_disk, weight_hashes
from hf_pe.checkpoints.source import Source
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import outputs_of
from hf_pe.errors import NotFiniteError, ReloadError
from hf_pe.files.hashes import value_sha256
from hf_pe.hub import require_measured, write_card
from hf_pe.hub.pictures import PICTURES
from hf_pe.hub.seal import CARD, Changes, changes_since_sealed, reseal, result_files, write_sealed
from hf_pe.measure import reopened, sentence_difference
from hf_pe.overflow import overflow_of
from hf_pe.report import Reload, Report, read_report

RELOAD_TOLERANCE = 1e-4
"""Largest relative difference of outputs between the model in memory and the one loaded again."""
ROUNDED_TOLERANCE = 2e-2
"""Largest difference of an embedding's values where weights or activations are rounded to 16 bits or fewer."""


def write_result(  # noqa: PLR0913  each argument is named by its caller
    model: PreTrainedModel,
    processor: Any,
    folder: Path,
    name: str,
    report: Report,
    auto_class: str,
    source: Source | None = None,
    *,
    papers: Mapping[str, str] | None = None,
    place: str = "",
) -> Report:
    """Write all but the card into `folder`, load it in a fresh process and compare; return the completed report.

    Args:
        model, processor: what is saved.
        folder: empty or not there yet.
        name: of the result, in its card and in the lines that load it.
        report: what was measured; disk bytes, memory, the proof and the name are added.
        auto_class: that loads it.
        source: whose side files (pooling, licence) come along.
        papers: more text files by name.
        place: what to call the folder while it is written; default: `name`.

    Raises:
        ReloadError: what was written does not load, or gives other outputs.
        NotFiniteError: the model is in float16 and overflows.
    """
    progress.say(f"saving {place or name} and loading it again in a fresh process")
    save_model(model, processor, folder, source)
    model = as_stock_loads(model)  # what is compared is equal in dtypes
    saved = {tensor: value_sha256(value) for tensor, value in model.state_dict().items()}
    seen, loading = reopened(folder, model, auto_class, processor)
    if seen.parameters != report.after.parameters:
        raise ReloadError(f"{name} reloads with {seen.parameters} parameters, {report.after.parameters} were saved.")
    if not getattr(model, "is_quantized", False):  # packed tensors may be laid out in another way; outputs decide
        _require_same_tensors(saved, seen.hashes, name)
    overflow = overflow_of(model, lambda: outputs_of(model, example_inputs(model, batch=1)))
    if overflow is not None:
        raise NotFiniteError(f"{name}: {overflow}")
    if seen.max_difference is None or not seen.max_difference <= RELOAD_TOLERANCE:
        raise ReloadError(f"{name} reloads with other outputs: relative difference {seen.max_difference}.")
    embeddings = sentence_difference(folder, model, processor) if auto_class == "AutoModel" else None
    if embeddings is not None and not embeddings <= _closeness(model):
        raise ReloadError(
            f"{name} gives other embeddings when SentenceTransformer opens it: they differ by {embeddings}."
        )
    after = report.after.model_copy(
        update={
            "disk_bytes": weight_bytes_on_disk(folder),
            "peak_memory_bytes": seen.peak_memory_bytes,
        }
    )
    reload = Reload(
        status="native" if custom_modules_of(model.config) is None else "plug-in",
        loading=loading,
        parameters=seen.parameters,
        max_difference=seen.max_difference,
        sha256=weight_hashes(folder),
        sentence_difference=embeddings,
    )
    for file, text in (papers or {}).items():
        (folder / file).write_text(text.rstrip("\n") + "\n", "utf-8")
    return report.model_copy(update={"name": name, "after": after, "reload": reload})


def finish_result(report: Report, folder: Path) -> Report:
    """Write the card of a result, then seal all of it in its report; returns the report as it is written."""
    write_card(report, folder)
    write_sealed(report, folder, known=report.reload.sha256 if report.reload else None)
    return read_report(folder)


def remake_card(folder: Path, template: Path | None = None) -> None:
    """Make the card of a result again from its report. A result that was sealed is sealed with it; others stay so."""
    report = read_report(folder)
    write_card(report, folder, template)
    if not reseal(folder, [CARD, *PICTURES]) and report.seal:
        progress.say(
            f"report.json in {folder} was changed after it was sealed, so hf-pe push will refuse it. Where the change "
            f"is yours and meant: hf-pe seal {folder}"
        )


def seal_result(folder: Path) -> Changes:
    """Take over what was changed in a result on purpose: seal its report and its files as they are now.

    Returns:
        What was taken over.

    Raises:
        UsageError: there is no result, or its weights or its config are not those that the report's figures are of.
    """
    report = read_report(folder)
    require_measured(report, folder)
    found = changes_since_sealed(folder, result_files(folder))
    write_sealed(report, folder)
    return found


def _closeness(model: PreTrainedModel) -> float:
    exact = model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
    return RELOAD_TOLERANCE if exact else ROUNDED_TOLERANCE


def _require_same_tensors(saved: Mapping[str, str], loaded: Mapping[str, str], name: str) -> None:
    """Compare by hash what was saved and what was loaded, since outputs need not show each tensor.

    Raises:
        ReloadError: a tensor is missing, new or another one; names some.
    """
    wrong = sorted(tensor for tensor in saved.keys() | loaded.keys() if saved.get(tensor) != loaded.get(tensor))
    if wrong:
        raise ReloadError(f"{name} reloads with other weights: {', '.join(wrong[:4])} ({len(wrong)} tensors).")
