"""Run recipes from beginning to end: check, dry run, load, plan and apply stage by stage, measure side by side."""

import datetime
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    PreTrainedModel,
    set_seed,
)

from hf_pe import progress
from hf_pe.checkpoints.live_model import plain_model
from hf_pe.checkpoints.processor import load_processor
from hf_pe.checkpoints.sentence_source import is_sentence_transformer
from hf_pe.checkpoints.source import Dtype, Source, resolve
from hf_pe.data import Data, load_examples, load_general
from hf_pe.errors import UsageError
from hf_pe.files.own_files import require_own_files
from hf_pe.hub.base_card import model_card
from hf_pe.measure import Evaluate
from hf_pe.outputs import check_stages_folder, require_space, run_id, stages_folder
from hf_pe.recipe import Recipe
from hf_pe.report import MAIN, Report
from hf_pe.run import provenance
from hf_pe.run.dry_run import DryRun, prepare_run
from hf_pe.run.identity import origin_of, stage_ids
from hf_pe.run.inputs import local_inputs
from hf_pe.run.measure_model import with_folder_facts
from hf_pe.run.original import load_original
from hf_pe.run.recipe_content import recipe_of
from hf_pe.run.result import Result
from hf_pe.run.side_by_side import measure_side_by_side
from hf_pe.run.stage_chain import carry_out
from hf_pe.run.stages import StageFolder, require_resumable
from hf_pe.tasks import Task, hub_metrics, prepare


def compress(  # noqa: PLR0913  each argument is named by its caller
    model: str | Path | Source | nn.Module,
    recipes: Sequence[Recipe],
    *,
    data: Data,
    task: str | Task | None = None,
    variants: Mapping[str, Recipe] | None = None,
    processor: Any = None,
    evaluate: Evaluate | None = None,
    base_model: str | None = None,
    license: str | None = None,
    dtype: Dtype | None = None,
    seed: int = 0,
    work: str | Path | None = None,
    resume: bool = False,
    restart: bool = False,
    command: str = "hf_pe.compress(...)",
) -> Result:
    """Make `model` smaller by applying `recipes` in order, and measure before and after; `model` stays unchanged.

    Args:
        model: Hub id, folder, .gguf file, `package:NAME/inner/path`, or a loaded model of transformers (then give
            `processor`), which may be wrapped by `torch.compile` or DataParallel; its state is restored afterwards.
        recipes: Techniques to apply, in this order; the original model is the teacher of a `Distillation`.
        data: Rows to calibrate, train and evaluate on: a DataConfig, the name of one source, a list of texts, a data
            set (its columns "text" and, for tasks that need one, "label" are used), or (texts or data set, DataConfig),
            whose `train` is then their name on the card.
        task: A name of `hf_pe.tasks.TASKS` or a Task; by default the task of the model's class.
        variants: Recipes for quantized or 16-bit copies of the final model, by name.
        processor: Tokenizer or processor of a loaded model; or the folder, Hub id or `package:NAME/inner/path` that it
            is loaded from, where it is not the model's own.
        evaluate: Function `model -> {metric: value}` that replaces the task's metrics. A resumed run identifies it by
            its name only, so start again after changing its code.
        base_model: Hub id of the model that `model` is a copy or a fine-tune of, for the card, where `model` is not a
            Hub id itself.
        license: License of the original, where its card does not state it.
        dtype: Dtype of the loaded weights; by default the stored one, bfloat16 for a quantized .gguf file.
        seed: Seed of everything random.
        work: Folder for finished stages; they stay there when something stops the run.
        resume: Continue after the last stage in `work` that was made from the same model, data, processor, seed,
            recipes so far, and versions of hf_pe, transformers and torch.
        restart: Remove finished stages of an earlier run in `work` once this run can begin.
        command: Command that the report names as the one that made the result.

    Raises:
        UsageError: The arguments cannot work; raised before weights are loaded wherever possible.
    """
    live = plain_model(model) if isinstance(model, nn.Module) else None
    source = _source(model if live is None else live, processor, dtype)
    prepared = prepare_run(source, recipes, variants or {}, task=task, processor=processor, live=live)
    recipes, variants, the_task = prepared.recipes, prepared.variants, prepared.task
    inputs = local_inputs(source, recipes, data, processor)
    processor_name = str(processor) if isinstance(processor, (str, Path)) else None
    processor = prepared.processor
    if work is not None:
        check_stages_folder(Path(work), resume=resume, restart=restart, inputs=inputs)
    _require_space(work, prepared.dry_run)
    card = model_card(source.folder, source.path)
    progress.say("reading data")
    examples = load_examples(data, needs_label=the_task.needs_label)
    processor = processor if processor is not None else load_processor(source, the_task.processor_class)
    rows = prepare(the_task, examples, processor, prepared.config)
    general = load_general(rows.examples, plain_text=the_task.reads_plain_text)
    general_rows = None if general is None else prepare(the_task, general, processor, prepared.config)
    content = recipe_of(
        source, the_task, rows.examples.config, recipes, variants, base_model, license, seed, processor_name
    )
    origin = None  # without a folder that outlives the run, no stage can be resumed
    if work is not None:
        origin = origin_of(source, live, processor, the_task, rows.examples, evaluate, seed)
    chain, branch_ids = stage_ids(origin, recipes, variants)
    if resume and work is not None and origin is not None:
        require_resumable(Path(work), [*chain, *branch_ids.values()], origin)

    original = load_original(prepared, rows, live, evaluate, seed, general_rows)
    warnings = (*card.warnings, *rows.examples.warnings, *rows.warnings, *original.warnings)
    for warning in (*warnings, *prepared.dry_run.warnings):
        progress.warn(warning)
    with original.in_use() as before, _stages_folder(work, resume=resume, restart=restart) as folder:
        stages = StageFolder(folder, origin, resume, evaluate, seed)
        named_variants = {name: (branch_ids[name], recipe) for name, recipe in variants.items()}
        branches = carry_out(stages, before, list(zip(chain, recipes, strict=True)), named_variants)
        set_seed(seed)
        measured = measure_side_by_side(original, {n: branch.state for n, branch in branches.items()}, evaluate)
        before_facts = with_folder_facts(measured.before, before.model, processor, folder, the_task.auto_class, source)

    data_of_original = original.state.data
    shared: dict[str, Any] = {
        "task": the_task.name,
        "pipeline_tag": the_task.pipeline_tag,
        "metric": the_task.metric if evaluate is None else next(iter(before_facts.quality), the_task.metric),
        "metric_description": the_task.describe(data_of_original)
        if evaluate is None
        else "Quality by the user's own function.",
        "higher_is_better": the_task.higher_is_better,
        "hub_metrics": {name: hub for name, hub in hub_metrics(type(the_task)).items() if name in before_facts.quality},
        "base": provenance.base_facts(source, before.model, base_model, license, card),
        "before": before_facts,
        "data": provenance.data_facts(rows.examples, original.general.data.examples if original.general else None),
        "unread_parts": original.unread,
        "library_name": "sentence-transformers" if is_sentence_transformer(source) else "transformers",
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "seed": seed,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }

    def result(name: str, variant_results: dict[str, Result]) -> Result:
        branch = branches[name]
        reports = tuple(finished.report for finished in branch.stages)
        stage_warnings = (part.warnings for stage in reports for part in (stage.plan, stage.curve) if part)
        all_warnings = (*warnings, *itertools.chain.from_iterable(stage_warnings))
        report = Report(
            name=name,
            after=measured.after[name],
            stages=reports,
            changes=measured.changes[name],
            warnings=all_warnings,
            **shared,
        )
        plans = tuple(finished.plan for finished in branch.stages)
        facts = (branch.state.processor, report, plans, source, the_task.auto_class, content)
        return Result(branch.state.model, *facts, variant_results, inputs, run_id(Path(work) if work else None))

    return result(MAIN, {name: result(name, {}) for name in variants})


@contextmanager
def _stages_folder(work: str | Path | None, *, resume: bool, restart: bool) -> Iterator[Path]:
    """Yield the folder for finished stages: `work`, or a temporary one."""
    if work is not None:
        with stages_folder(Path(work), resume=resume, restart=restart) as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _require_space(work: str | Path | None, planned: DryRun) -> None:
    """Refuse a disk that cannot hold all stages and variants, and also the original or the result."""
    original = planned.original.weight_bytes
    if work is None:
        return require_space(Path(tempfile.gettempdir()), original, "a copy of the original, to measure it")
    stages = [plan.weight_bytes for plan in (*planned.stages, *planned.variants.values())]
    result = [planned.stages[-1].weight_bytes, *(plan.weight_bytes for plan in planned.variants.values())]
    written = sum(file.stat().st_size for file in Path(work).rglob("*.safetensors"))
    return require_space(Path(work), sum(stages) + max(original, sum(result)) - written, "what the stages write")


def _source(model: Any, processor: Any, dtype: Dtype | None) -> Source:
    if isinstance(model, Source):
        return model if dtype is None else model.model_copy(update={"dtype": dtype})
    if isinstance(model, (str, Path)):
        return resolve(str(model), dtype=dtype)
    if not isinstance(model, PreTrainedModel):
        raise UsageError(
            f"model: expected a Hub id, a folder, a .gguf file or a loaded model, got {type(model).__name__}."
        )
    if dtype is not None:
        raise UsageError(
            f"dtype: {dtype} is for a model that is loaded from a name; this model is loaded already, in "
            f"{model.dtype}. Leave out dtype."
        )
    if processor is None:
        raise UsageError("processor: a loaded model needs its tokenizer: compress(model, ..., processor=tokenizer).")
    path = model.config._name_or_path
    source = Source(
        name=path if "/" in path and not Path(path).exists() else Path(path or type(model).__name__).name,
        path=path,
    )
    if source.folder is not None:
        require_own_files(source.folder)  # its licence and other side files are copied
    return source
