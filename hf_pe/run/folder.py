"""Write the folder of a result: weights, processor, report, card and further files, and verify that it loads."""

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
"""Largest allowed relative difference of outputs between the model in memory and the reloaded one."""
ROUNDED_TOLERANCE = 2e-2
"""Largest allowed difference of an embedding's values where weights or activations have 16 bits or fewer."""


def write_result(  # noqa: PLR0913  each argument is named by its caller
    model: PreTrainedModel,
    processor: Any,
    folder: Path,
    name: str,
    report: Report,
    auto_class: str,
    source: Source | None = None,
    *,
    extra_files: Mapping[str, str] | None = None,
    label: str = "",
) -> Report:
    """Write all files but the card into `folder`, load it in a fresh process, compare, and complete the report.

    Args:
        model: Model to save.
        processor: Its tokenizer or processor, or None.
        folder: Folder that is empty or does not exist yet.
        name: Name of the result, for its card and the code that loads it.
        report: Report of the measurements so far.
        auto_class: Auto class that loads the model.
        source: Source whose side files (pooling, licence) are copied.
        extra_files: Further text files by name.
        label: Name of the folder in progress lines; by default `name`.

    Returns:
        The report with name, bytes on disk, peak memory and the result of the reload check.

    Raises:
        ReloadError: The folder does not load, or gives other outputs.
        NotFiniteError: The model is in float16 and overflows.
    """
    progress.say(f"saving {label or name} and loading it again in a fresh process")
    save_model(model, processor, folder, source)
    model = as_stock_loads(model)  # the reloaded model has these dtypes
    saved = {tensor: value_sha256(value) for tensor, value in model.state_dict().items()}
    reloaded, loading = reopened(folder, model, auto_class, processor)
    if reloaded.parameters != report.after.parameters:
        raise ReloadError(
            f"{name} reloads with {reloaded.parameters} parameters, {report.after.parameters} were saved."
        )
    if not getattr(model, "is_quantized", False):  # the layout of quantized tensors may differ; outputs decide
        _require_same_tensors(saved, reloaded.hashes, name)
    overflow = overflow_of(model, lambda: outputs_of(model, example_inputs(model, batch=1)))
    if overflow is not None:
        raise NotFiniteError(f"{name}: {overflow}")
    if reloaded.max_difference is None or not reloaded.max_difference <= RELOAD_TOLERANCE:
        raise ReloadError(f"{name} reloads with other outputs: relative difference {reloaded.max_difference}.")
    embeddings = sentence_difference(folder, model, processor) if auto_class == "AutoModel" else None
    if embeddings is not None and not embeddings <= _tolerance(model):
        raise ReloadError(
            f"{name} gives other embeddings when SentenceTransformer opens it: they differ by {embeddings}."
        )
    after = report.after.model_copy(
        update={
            "disk_bytes": weight_bytes_on_disk(folder),
            "peak_memory_bytes": reloaded.peak_memory_bytes,
        }
    )
    reload = Reload(
        status="native" if custom_modules_of(model.config) is None else "plug-in",
        loading=loading,
        parameters=reloaded.parameters,
        max_difference=reloaded.max_difference,
        sha256=weight_hashes(folder),
        sentence_difference=embeddings,
    )
    for file, text in (extra_files or {}).items():
        (folder / file).write_text(text.rstrip("\n") + "\n", "utf-8")
    return report.model_copy(update={"name": name, "after": after, "reload": reload})


def finish_result(report: Report, folder: Path) -> Report:
    """Write the card of a result, seal all its files in its report, and return the report as it is written."""
    write_card(report, folder)
    write_sealed(report, folder, hashes=report.reload.sha256 if report.reload else None)
    return read_report(folder)


def remake_card(folder: Path, template: Path | None = None) -> None:
    """Make the card of a result again from its report; a sealed result is sealed with the new card."""
    report = read_report(folder)
    write_card(report, folder, template)
    if not reseal(folder, [CARD, *PICTURES]) and report.seal:
        progress.say(
            f"report.json in {folder} was changed after it was sealed, so hf-pe push will refuse it. If you made that "
            f"change on purpose: hf-pe seal {folder}"
        )


def seal_result(folder: Path) -> Changes:
    """Accept changes that the user made to a result: seal its report and its files as they are now.

    Returns:
        The changes that were accepted.

    Raises:
        UsageError: The folder is no result, or its weights or config are not the measured ones.
    """
    report = read_report(folder)
    require_measured(report, folder)
    changes = changes_since_sealed(folder, result_files(folder))
    write_sealed(report, folder)
    return changes


def _tolerance(model: PreTrainedModel) -> float:
    exact = model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
    return RELOAD_TOLERANCE if exact else ROUNDED_TOLERANCE


def _require_same_tensors(saved: Mapping[str, str], loaded: Mapping[str, str], name: str) -> None:
    """Compare saved and loaded tensors by hash, since the outputs need not depend on each of them.

    Raises:
        ReloadError: A tensor is missing, additional or different; the message names some.
    """
    wrong = sorted(tensor for tensor in saved.keys() | loaded.keys() if saved.get(tensor) != loaded.get(tensor))
    if wrong:
        raise ReloadError(f"{name} reloads with other weights: {', '.join(wrong[:4])} ({len(wrong)} tensors).")
