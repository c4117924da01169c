"""The story: check, outline, load, then stage by stage plan and apply, measure side by side."""

import datetime
import json
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
    set_seed,
)

from hf_pe import progress
from hf_pe.anatomy import form_of
from hf_pe.checkpoints import load as checkpoints
from hf_pe.checkpoints.live_model import plain_model, unchanged
from hf_pe.checkpoints.load import Dtype, Source
from hf_pe.checkpoints.mixed_dtypes import dtype_warnings
from hf_pe.checkpoints.weight_checks import require_finite
from hf_pe.data import Data, DataConfig, load_examples, load_for_evaluation
from hf_pe.distill import Distillation
from hf_pe.errors import UsageError
from hf_pe.files.own_files import require_own_files
from hf_pe.hub import Publish, push
from hf_pe.hub.base_card import model_card
from hf_pe.hub.publish import Sent
from hf_pe.measure import (
    Evaluate,
    chance_warnings,
    changes,
    first_answers,
    judge,
    measure,
    on_one_device,
    reopened,
    sketch_size,
    weight_bytes,
)
from hf_pe.outputs import check_stages_folder, replaced, require_space, run_id, stages_folder
from hf_pe.padding import classifies_rows_alone, padding_id, padding_named
from hf_pe.plans import Plan, Sketch
from hf_pe.prune import StructuredPruning
from hf_pe.quantize import BitsAndBytesQuantization, Packing
from hf_pe.quantizers.bnb import require_plain
from hf_pe.report import MAIN, Measurement, Report
from hf_pe.run import provenance
from hf_pe.run.folder import finish_result, save_result
from hf_pe.run.identity import AnyRecipe, origin_of, stage_ids
from hf_pe.run.inputs import local_inputs
from hf_pe.run.stages import Finished, StageFolder, require_resumable
from hf_pe.tasks import TASKS, Embedding, Task, prepare, require_classes, task_named

VARIANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a variant may be called: its name becomes a folder and a branch on the Hub."""


@dataclass(frozen=True)
class Outline:
    """What a dry run knows: the original and the plan of every stage, then of every variant."""

    original: Plan
    stages: tuple[Plan, ...]
    variants: dict[str, Plan]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the stages may be worthless for, then the variants, by name."""
        of_variants = [f"variant {n}: {w}" for n, plan in self.variants.items() for w in plan.warnings]
        return (*(warning for plan in self.stages for warning in plan.warnings), *of_variants)


@dataclass(frozen=True)
class Result:
    """A compressed model with its report; nothing is on disk until `save`."""

    model: PreTrainedModel
    processor: Any
    report: Report
    plans: tuple[Plan, ...]
    source: Source
    auto_class: str
    recipe: dict[str, Any]
    variants: dict[str, "Result"] = field(default_factory=dict)
    inputs: dict[str, Path] = field(default_factory=dict)
    run: str = ""

    def save(self, folder: str | Path, *, overwrite: bool = False) -> "Result":
        """Write the model, its card and its papers; prove that it reloads. Old content stays until all is well.

        With variants, `folder` holds one folder for each: "main" and their names.

        Raises:
            UsageError: `folder` is not empty and `overwrite` is not given; or it is no result, overlaps what was read,
                is in use, cannot be written, or its disk is too small: see `outputs.check_output`.
            RuntimeError: what was written does not load or is not equal.
        """
        folder = Path(folder)
        require_space(folder, sum(weight_bytes(r.model) for r in (self, *self.variants.values())), "the result")
        checkpoints.say_left_behind(self.source)
        with replaced(folder, overwrite=overwrite, inputs=self.inputs, run=self.run) as fresh:
            if not self.variants:
                return self._write(fresh, folder.name)
            main = self._write(fresh / MAIN, folder.name, f"{folder.name}/{MAIN}")
            variants = {
                n: r._write(fresh / n, f"{folder.name}-{n}", f"{folder.name}/{n}") for n, r in self.variants.items()
            }
            table = {name: each.report.after for name, each in {MAIN: main, **variants}.items()}
            variants = {n: r._with_table(fresh / n, table) for n, r in variants.items()}
            return replace(main._with_table(fresh / MAIN, table), variants=variants)

    def push_to_hub(self, repo: str, **settings: Any) -> list[Sent]:
        """Save into a folder of its own, prove and scan it, and push it: private unless `private=False`.

        Args:
            repo: NAME or USER/NAME.
            settings: fields of `hf_pe.hub.Publish`, such as private, branch, tag or create_pr.

        Raises:
            UsageError, PushError: see `hf_pe.hub.push`.
        """
        own_code = checkpoints.brings_code(type(self.model))  # it runs already: the user has allowed it
        wanted = Publish(repo=repo, **{"trust_remote_code": own_code, **settings})
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place, repo.rpartition("/")[2])
            self.save(folder)
            return push(folder, wanted, prove=False)  # saving has just proved it

    def _write(self, folder: Path, name: str, place: str = "") -> "Result":
        papers = {
            "plan.json": json.dumps(
                {"format_version": 1, "stages": [plan.model_dump(mode="json") for plan in self.plans]}
            ),
            "recipe.yaml": yaml.safe_dump(self.recipe, sort_keys=False),
        }
        report = self.report.model_copy(update={"folder": place or None})
        report = save_result(
            self.model,
            self.processor,
            folder,
            name,
            report,
            self.auto_class,
            self.source,
            papers=papers,
            place=place,
        )
        return replace(self, report=report)

    def _with_table(self, folder: Path, table: dict[str, Measurement]) -> "Result":
        """Add the table over all variants, known once each is on disk."""
        report = self.report.model_copy(update={"variants": table})
        return replace(self, report=finish_result(report, folder))


def compress(
    model: str | Path | Source | nn.Module,
    recipes: Sequence[AnyRecipe],
    *,
    data: Data,
    task: str | Task | None = None,
    variants: Mapping[str, Packing] | None = None,
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
    """Make `model` smaller by `recipes`, in order, and measure before and after. `model` itself is not changed.

    Args:
        model: Hub id, folder, .gguf file, `package:NAME/inner/path`, or a loaded model of transformers (then give
            `processor`), which may be wrapped by `torch.compile` or DataParallel; it comes back as it was.
        recipes: what to do; the untouched model teaches a `Distillation`.
        data: what to calibrate, train and evaluate on: a DataConfig, the name of one source, a list of texts, a data
            set (its columns "text" and, for tasks that need one, "label" are used), or (texts or data set, DataConfig),
            whose `train` is then the name that the card gives them.
        task: a name of `hf_pe.tasks.TASKS` or a Task; default: by the model's class.
        variants: quantized or 16-bit copies of the final model, by name.
        processor: tokenizer or processor of a loaded model; or the folder, Hub id or `package:NAME/inner/path` that it
            is loaded from, where it is not the model's own.
        evaluate: the user's own `model -> {metric: value}` in place of the task's metrics. A resumed run knows it
            by its name only: after a change of its code begin anew.
        base_model: Hub id of what `model` is a copy or a fine-tune of, for the card, where `model` is not one.
        license: of the original, where its card does not state it.
        dtype: of the weights once loaded; default: as stored, bfloat16 for a quantized .gguf file.
        seed: of everything random.
        work: folder for stage checkpoints; what is finished stays there when something stops the run.
        resume: go on after the last stage in `work` that was made from the same: model, data, processor, seed, versions
            of hf_pe, transformers and torch, and recipes so far.
        restart: remove finished stages of an earlier run in `work`, once this one can begin.
        command: what the report says made it.

    Raises:
        UsageError: anything in the arguments cannot work; raised before weights are loaded where it can be known.
    """
    variants = dict(variants or {})
    recipes = fit_multiples(recipes, quantized_after=bool(variants))
    check_order(recipes, variants)
    for step in (*recipes, *variants.values()):
        if isinstance(step, BitsAndBytesQuantization):
            step.require_native()
    live = plain_model(model) if isinstance(model, nn.Module) else None
    source = _source(model if live is None else live, processor, dtype)
    config = live.config if live is not None else checkpoints.load_config(source)
    the_task = find_task(task, source, config)
    model_class = type(live) if live is not None else checkpoints.class_for(config, the_task.auto_class)
    inputs = local_inputs(source, recipes, data, processor)
    named = str(processor) if isinstance(processor, (str, Path)) else None
    if named is not None:
        processor = checkpoints.load_named_processor(
            named, model_class.main_input_name, trust_remote_code=source.trust_remote_code
        )
    pixels = checkpoints.pixels_from(source, model_class, processor)
    sketch = Sketch(config=config, model_class=model_class, pixels=pixels)
    planned = outline(sketch, recipes, variants, source)
    if work is not None:
        check_stages_folder(Path(work), resume=resume, restart=restart, inputs=inputs)
    _require_space(work, planned)
    card = model_card(source.folder, source.path)
    progress.say("reading data")
    examples = load_examples(data, needs_label=getattr(the_task, "needs_label", False))
    processor = processor if processor is not None else checkpoints.load_processor(source, model_class.main_input_name)
    ready = prepare(the_task, examples, processor, config)
    examples = ready.examples
    recipe = recipe_of(source, the_task, examples.config, recipes, variants, base_model, license, seed, named)
    origin = None  # without a folder of the user's, no stage can be resumed
    if work is not None:
        origin = origin_of(source, live, processor, the_task, examples, evaluate, seed)
    chain, branches = stage_ids(origin, recipes, variants)
    if resume and work is not None and origin is not None:
        require_resumable(Path(work), [*chain, *branches.values()], origin)

    progress.say("loading the model")
    set_seed(seed)
    original, unread = (live, ()) if live is not None else checkpoints.load_with_unread(source, model_class)
    if live is not None:
        require_finite(live.state_dict().items(), source.name)
    ready = replace(ready, teacher=original)
    padding = padding_id(config, processor) if classifies_rows_alone(config, model_class) else None
    with unchanged(live), padding_named(original, padding):
        original.eval()
        first_answers(original, ready)
        for step in recipes:
            if isinstance(step, Distillation):
                step.check(original, ready)
        progress.say("evaluating the original")
        first = judge(original, ready) if evaluate is None else None
    below = chance_warnings(original, first.scores(), ready) if first else ()
    rounded = checkpoints.rounding_warnings(source, config, model_class, original) if live is None else ()
    rounded += dtype_warnings(original)
    warnings = (*card.warnings, *examples.warnings, *ready.warnings, *rounded, *below)
    for warning in (*warnings, *planned.warnings):
        progress.warn(warning)
    with unchanged(live), padding_named(original, padding), _workplace(work, resume=resume, restart=restart) as folder:
        original.eval()
        stages = StageFolder(folder, origin, resume, ready, evaluate, seed)
        student, done = original, []
        for stage, step in zip(chain, recipes, strict=True):
            student, finished = stages.make(stage, step, student)
            done.append(finished)
        copies = {name: stages.make(branches[name], step, student) for name, step in variants.items()}
        models = {"before": original, MAIN: student} | {name: packed for name, (packed, _) in copies.items()}
        progress.say("measuring before and after, side by side")
        set_seed(seed)
        with on_one_device(models.values()):
            judged = {n: first if m is original else judge(m, ready) for n, m in models.items()} if first else None
            found = measure(models, ready, judged=judged, evaluate=evaluate)
            before = _with_folder_facts(found["before"], original, processor, folder, the_task.auto_class, source)

    shared: dict[str, Any] = {
        "task": the_task.name,
        "pipeline_tag": the_task.pipeline_tag,
        "metric": the_task.metric if evaluate is None else next(iter(before.quality), the_task.metric),
        "metric_description": the_task.describe(ready) if evaluate is None else "Quality by the user's own function.",
        "higher_is_better": the_task.higher_is_better,
        "base": provenance.base_facts(source, original, base_model, license, card),
        "before": before,
        "data": provenance.data_facts(examples),
        "unread_parts": unread,
        "library_name": "sentence-transformers" if checkpoints.is_sentence_transformer(source) else "transformers",
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "seed": seed,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }

    def result(name: str, finished: list[Finished], others: dict[str, Result]) -> Result:
        stages = tuple(f.report for f in finished)
        moved = changes(judged["before"], judged[name]) if judged else ()
        said = (*warnings, *(warning for stage in stages for warning in stage.plan.warnings))
        report = Report(name=name, after=found[name], stages=stages, changes=moved, warnings=said, **shared)
        plans = tuple(f.plan for f in finished)
        facts = (processor, report, plans, source, the_task.auto_class, recipe)
        return Result(models[name], *facts, others, inputs, run_id(Path(work) if work else None))

    return result(MAIN, done, {name: result(name, [*done, finished], {}) for name, (_, finished) in copies.items()})


def measure_source(source: Source, task: str | None, data: DataConfig | None) -> Measurement:
    """Measure one model as it is: sizes, FLOPs, latency, peak memory and, with `data`, quality.

    Raises:
        UsageError: the model, the task or the data cannot be had.
    """
    config = checkpoints.load_config(source)
    if task is None and data is None:
        auto_class, model_class, ready = "AutoModel", checkpoints.class_for(config), None
        auto_class = next(
            (t.auto_class for t in (task_named(n) for n in TASKS) if _is_class(config, t, model_class)),
            auto_class,
        )
    else:
        the_task = find_task(task, source, config)
        auto_class, model_class = the_task.auto_class, checkpoints.class_for(config, the_task.auto_class)
        processor = checkpoints.load_processor(source, model_class.main_input_name) if data else None
        ready = prepare(the_task, load_for_evaluation(data), processor, config) if data else None
    progress.say("loading the model")
    model = checkpoints.load_model(source, model_class)
    pixels = checkpoints.pixels_from(source, model_class)
    if ready is not None:
        first_answers(model, ready)
    found = measure({"model": model}, ready, pixels=pixels)["model"]
    if ready is not None:
        for warning in (*ready.examples.warnings, *ready.warnings, *chance_warnings(model, found.quality, ready)):
            progress.warn(warning)
    with tempfile.TemporaryDirectory() as folder:
        return _with_folder_facts(found, model, None, Path(folder), auto_class, source, pixels)


def outline(
    sketch: Sketch, recipes: Sequence[AnyRecipe], variants: Mapping[str, Packing], source: Source | None = None
) -> Outline:
    """The dry run: sizes after every stage, without weights.

    Args:
        sketch: of the original.
        recipes, variants: what to do.
        source: where the original comes from; what lies beside its weights has to fit the result.

    Raises:
        UsageError: the model is quantized already, a target cannot be reached or an architecture cannot be proved; or
            its form is the plug-in's and a step needs a stock one; or a module behind it needs another width.
    """
    require_plain(sketch.config)
    original = Plan(recipe="original", title="original", exact=True, **sketch_size(sketch))
    plans = []
    for recipe in recipes:
        _require_stock(sketch, recipe)
        plan, sketch = recipe.outline(sketch)
        if source is not None:
            checkpoints.require_sentence_width(source, sketch.config)
        plans.append(plan)
    for variant in variants.values():
        _require_stock(sketch, variant)
    return Outline(original, tuple(plans), {name: v.outline(sketch)[0] for name, v in variants.items()})


def _require_stock(sketch: Sketch, recipe: AnyRecipe) -> None:
    if form_of(sketch.config) is not None and recipe.recipe in ("prune", "swap", "quantize"):
        raise UsageError(
            f"{recipe.recipe}: expected a model that a stock config can say; its convolutions were rewritten before "
            f"(separate). Put {recipe.recipe} before separate, or leave one of the two."
        )


def check_order(recipes: Sequence[AnyRecipe], variants: Collection[str] = ()) -> None:
    """Refuse an order that cannot work, before any work.

    Raises:
        UsageError: no recipe at all, something after quantization or casting, or these twice; a variant whose name
            cannot be a folder beside the main result.
    """
    _check_variant_names(variants)
    if not recipes:
        raise UsageError("recipes: expected at least one of prune, swap, separate, distil, quantize; got none.")
    packed = 0
    for number, step in enumerate(recipes, 1):
        first = recipes[packed - 1].recipe if packed else None
        if first == "distil":
            raise UsageError(
                f"Recipe step {packed} (distil) leaves its adapters on packed weights (lora.merge: false), and step "
                f"{number} ({step.recipe}) comes after it. Put it last, or leave out merge."
            )
        if first == step.recipe:
            raise UsageError(
                f"Recipe steps {packed} and {number} both {first}: packed weights cannot be packed again. Keep one."
            )
        if first and step.recipe in ("quantize", "cast"):
            raise UsageError(f"Recipe steps {packed} ({first}) and {number} ({step.recipe}): keep one of the two.")
        if first:
            reason = {
                "prune": "a packed model cannot be cut",
                "swap": "the backbone of a packed model cannot be exchanged",
                "separate": "packed convolutions cannot be rewritten",
                "distil": "packed weights cannot be trained",
            }[step.recipe]
            raise UsageError(
                f"Recipe step {packed} ({first}) comes before step {number} ({step.recipe}): {reason}. "
                f"Put {step.recipe} first."
            )
        ends = isinstance(step, Distillation) and step.ends_packed
        packed = number if ends or step.recipe in ("quantize", "cast") else 0
    if packed and variants:
        raise UsageError(
            f"variants ({', '.join(variants)}) are packed copies of the result, and recipe step {packed} "
            f"({recipes[packed - 1].recipe}) has packed it already. Leave out one of the two."
        )


def _check_variant_names(names: Iterable[str]) -> None:
    """Refuse names that would write outside the result, or over another part of it."""
    taken = {MAIN: "the main result", "before": "the original"}
    for name in names:
        if VARIANT_NAME.fullmatch(name) is None or ".." in name or name.endswith((".", ".lock")):
            raise UsageError(
                f"variants: '{name}' cannot be the name of a folder and of a branch. Expected letters, digits, '.', "
                "'_' and '-', beginning with a letter or a digit, such as nf4 or half-precision."
            )
        if name.lower() in taken:
            raise UsageError(
                f"variants: '{name}' is the name of {taken[name.lower()]} already, upper or lower case alike. "
                "Choose another name, such as nf4."
            )
        taken[name.lower()] = f"the variant '{name}'"


def fit_multiples(recipes: Sequence[AnyRecipe], *, quantized_after: bool = False) -> list[AnyRecipe]:
    """Round pruned widths to 64 where quantization follows (bitsandbytes' block), else to 8, unless given."""
    found: list[AnyRecipe] = []
    for number, step in enumerate(recipes):
        packed = quantized_after or any(later.recipe == "quantize" for later in recipes[number:])
        if isinstance(step, StructuredPruning) and step.multiple is None:
            step = step.model_copy(update={"multiple": 64 if packed else 8})
        found.append(step)
    return found


ENDINGS = {
    "ForCausalLM": "causal_lm",
    "LMHeadModel": "causal_lm",
    "ForSequenceClassification": "text_classification",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "question_answering",
    "ForMaskedLM": "masked_lm",
    "ForConditionalGeneration": "seq2seq",
    "ForImageClassification": "image_classification",
    "ForAudioClassification": "audio_classification",
    "ForObjectDetection": "object_detection",
}
"""How the classes of each task's models end."""


def find_task(task: str | Task | None, source: Source, config: PretrainedConfig) -> Task:
    """Return the named task, else the one whose class the checkpoint names.

    Raises:
        UsageError: no task is named and none fits, or the model does something that no task here does: it writes what
            it hears or sees (Whisper), or predicts a number (a reranker).
    """
    if task is not None and not isinstance(task, str):
        return task
    if task is None:
        named = (config.architectures or [""])[0]
        fallback = "embedding" if checkpoints.is_sentence_transformer(source) else None
        task = next((t for ending, t in ENDINGS.items() if named.endswith(ending)), fallback)
        if task is None:
            raise UsageError(
                f"task: cannot be told from {named or 'the config'}; expected one of {', '.join(TASKS)}. Where none is "
                "what the model does, hf-pe cut, hf-pe quantize and hf-pe export work without data."
            )
        if task == "seq2seq":
            _require_text_to_text(named, config)
    found = Embedding(checkpoints.sentence_modules(source)) if task == "embedding" else task_named(task)
    if found.auto_class.endswith("Classification"):
        require_classes(config)
    return found


def _require_text_to_text(named: str, config: PretrainedConfig) -> None:
    """Refuse a model that reads sound or images, or that has no decoder of its own, and writes text."""
    kind: Any = AutoModelForSeq2SeqLM._model_mapping.get(type(config), None)
    if kind is not None and config.is_encoder_decoder and kind.main_input_name == "input_ids":
        return
    own: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    text = " For its text model alone: task: causal_lm." if own is not None and own.__name__ == named else ""
    raise UsageError(
        f"{named} does not turn a text into a text: training and evaluation of models that read sound or images and "
        f"write text are not supported yet. hf-pe cut, hf-pe quantize and hf-pe export work.{text}"
    )


def recipe_of(
    source: Source,
    task: Task,
    data: DataConfig,
    recipes: Sequence[AnyRecipe],
    variants: Mapping[str, Packing],
    base_model: str | None,
    license: str | None,
    seed: int,
    processor: str | None = None,
) -> dict[str, Any]:
    """The run as a recipe file's content; local folders are left out of it."""
    told = data.model_dump(mode="json", exclude_defaults=True)
    for key in told.keys() & {"train", "eval"}:
        names = provenance.public_names(getattr(data, key))
        told[key] = names[0] if len(names) == 1 else list(names)
    found = {
        "format_version": 1,
        "model": source.spec or source.name,
        "processor": processor and provenance.public_names(processor)[0],
        "base_model": base_model,
        "license": license,
        "task": task.name,
        "dtype": source.dtype,
        "data": told,
        "recipes": [r.model_dump(mode="json", exclude_unset=True) | {"recipe": r.recipe} for r in recipes],
        "variants": {
            n: v.model_dump(mode="json", exclude_unset=True) | {"recipe": v.recipe} for n, v in variants.items()
        },
        "seed": seed,
    }
    return {key: value for key, value in found.items() if value not in (None, {})}


def _with_folder_facts(
    measured: Measurement,
    model: PreTrainedModel,
    processor: Any,
    place: Path,
    auto_class: str,
    source: Source,
    pixels: Any = None,
) -> Measurement:
    """Add what only a saved folder tells: bytes on disk and peak memory of a fresh process; saved in `place` for it.

    A model that came from a .gguf file has the bytes of that file.
    """
    folder = place / "base"
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed meanwhile
    checkpoints.save_model(model, processor, folder)
    seen, _ = reopened(folder, "base", model, auto_class, processor, pixels=pixels)
    size = checkpoints.weight_bytes_on_disk(folder) if source.gguf is None else source.gguf.stat().st_size
    shutil.rmtree(folder)
    return measured.model_copy(update={"disk_bytes": size, "peak_memory_bytes": seen.peak_memory_bytes})


@contextmanager
def _workplace(work: str | Path | None, *, resume: bool, restart: bool) -> Iterator[Path]:
    if work is not None:
        with stages_folder(Path(work), resume=resume, restart=restart) as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _require_space(work: str | Path | None, planned: Outline) -> None:
    """Refuse a disk that cannot hold all stages and variants, and beside them the original or the result."""
    original = planned.original.weight_bytes
    if work is None:
        return require_space(Path(tempfile.gettempdir()), original, "the original, to measure it")
    stages = [plan.weight_bytes for plan in (*planned.stages, *planned.variants.values())]
    result = [planned.stages[-1].weight_bytes, *(plan.weight_bytes for plan in planned.variants.values())]
    written = sum(file.stat().st_size for file in Path(work).rglob("*.safetensors"))
    return require_space(Path(work), sum(stages) + max(original, sum(result)) - written, "what the stages write")


def _source(model: Any, processor: Any, dtype: Dtype | None) -> Source:
    if isinstance(model, Source):
        return model if dtype is None else model.model_copy(update={"dtype": dtype})
    if isinstance(model, (str, Path)):
        return checkpoints.resolve(str(model), dtype=dtype)
    if not isinstance(model, PreTrainedModel):
        raise UsageError(
            f"model: expected a Hub id, a folder, a .gguf file or a loaded model, got {type(model).__name__}."
        )
    if dtype is not None:
        raise UsageError(f"dtype: {dtype} is for a model that is loaded from a name; this one is in {model.dtype}.")
    if processor is None:
        raise UsageError("processor: a loaded model needs its tokenizer: compress(model, ..., processor=tokenizer).")
    named = model.config._name_or_path
    source = Source(
        name=named if "/" in named and not Path(named).exists() else Path(named or type(model).__name__).name,
        path=named,
    )
    if source.folder is not None:
        require_own_files(source.folder)  # its licence and the like come along
    return source


def _is_class(config: PretrainedConfig, task: Task, model_class: type[PreTrainedModel]) -> bool:
    try:
        return checkpoints.class_for(config, task.auto_class) is model_class
    except UsageError:
        return False
