"""Logs size, latency and agreement with the teacher while a Trainer trains, and writes a report at the end."""

import copy
import datetime
import hashlib
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from hf_pe import progress
from hf_pe.callbacks.agreement import require_comparable, teacher_agreement
from hf_pe.callbacks.ranks import on_first
from hf_pe.checkpoints.classes import brings_code, class_for
from hf_pe.checkpoints.source import Source
from hf_pe.data_facts import DataFacts
from hf_pe.dummies.sizes import processor_size
from hf_pe.errors import UsageError
from hf_pe.files.own_files import require_own_files
from hf_pe.hub.base_card import model_card
from hf_pe.measure import layer_bits, measure, parameters, weight_bytes
from hf_pe.modes import evaluating
from hf_pe.plans import Plan
from hf_pe.report import Measurement, Report, StageReport, write_report
from hf_pe.run import provenance
from hf_pe.surgery import main_dtype
from hf_pe.tasks import TASKS, hub_metrics, require_classes
from hf_pe.tasks.infer import task_of_class

AGREEMENT = "teacher_agreement"
PIPELINE_TAGS = {"AutoModelForSpeechSeq2Seq": "automatic-speech-recognition", "AutoModel": "feature-extraction"}
"""The Hub's names of tasks that a Trainer can train but hf_pe does not have, by auto class."""


class Use(NamedTuple):
    """Describes the task of a model.

    Attributes:
        auto_class: the auto class of transformers that loads the model.
        task: name of the task in reports.
        pipeline_tag: the Hub's name of the task.
        classifies: whether the model chooses one of its labels.
    """

    auto_class: str
    task: str
    pipeline_tag: str
    classifies: bool = False


class CompressionReport(TrainerCallback):
    """Log what a smaller model has gained and lost at every evaluation, to the integrations in `report_to`.

    It logs under "compression/": parameters, parameters_ratio, teacher_agreement, latency_ms (batch 1, median) and
    latency_ratio (to the teacher's, measured in alternation). When training ends, it writes `output_dir/report.json`.

    Args:
        teacher: the model before it was made smaller.
        base_model: Hub id of the model that the teacher is a copy or a fine-tune of; default: where it was loaded from.
        license: of the teacher, if its card does not state it.
        batches: number of evaluation batches on which the two models are compared.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        *,
        base_model: str | None = None,
        license: str | None = None,
        batches: int = 8,
    ) -> None:
        self.teacher = teacher.eval()
        named = str(teacher.config._name_or_path or type(teacher).__name__)
        self.source = Source(name=Path(named).name if Path(named).exists() else named, path=named)
        if self.source.folder is not None:
            require_own_files(self.source.folder)  # its licence and similar files are copied to the result
        self.base_model, self.license, self.batches = base_model, license, batches
        self.card = model_card(self.source.folder, self.source.path)
        self.reporters: list[TrainerCallback] = []
        self.quality_by_weights: dict[str, dict[str, float]] = {}
        self.agreements: dict[str, list[float]] = {}
        self.eval_rows: dict[tuple[str, ...], int] = {}
        self.facts: dict[str, Any] = {}
        self.measurements: dict[str, Measurement] = {}
        self.state: TrainerState | None = None
        self.pixels: int | list[int] | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        train_dataloader: Any = None,
        processing_class: Any = None,
        **_: Any,
    ) -> None:
        """Set up reporting integrations of its own: the Trainer calls its integrations before a user's callbacks.

        Raises:
            UsageError: the model cannot be reported on after training.
        """
        self.state = state
        self.pixels = processor_size(processing_class)
        if state.is_world_process_zero:
            self.reporters = [reporter() for reporter in get_reporting_integration_callbacks(args.report_to)]
            for warning in self.card.warnings:
                progress.warn(warning)
        if use_of(model).classifies:
            require_classes(model.config)
        require_comparable(model, self.teacher)
        self.facts["train_rows"] = _rows(train_dataloader)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        model: Any = None,
        eval_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Compare with the teacher, measure, and log; the agreement is the mean over several evaluation sets."""
        agreement = teacher_agreement(model, self.teacher.to(model.device), eval_dataloader, self.batches)
        numbers = {k.removeprefix("eval_"): v for k, v in (metrics or {}).items() if isinstance(v, (int, float))}
        timed = ("runtime", "per_second", "epoch", "preparation_time")
        quality = {k: float(v) for k, v in numbers.items() if not k.endswith(timed)}
        weights = _fingerprint(model)
        over_sets = self.agreements.setdefault(weights, [])
        over_sets.append(agreement)
        earlier = self.quality_by_weights.get(weights, {})
        self.quality_by_weights[weights] = earlier | quality | {AGREEMENT: statistics.fmean(over_sets)}
        self.eval_rows[tuple(sorted(quality))] = _rows(eval_dataloader)
        with evaluating(model):
            on_first(args, lambda: self._measure(model))
        logs = {f"compression/{k}": v for k, v in self._logs(agreement).items()} if state.is_world_process_zero else {}
        if logs:
            state.log_history.append({**logs, "step": state.global_step})
        for reporter in self.reporters:
            reporter.on_log(args, state, control, model=model, logs=dict(logs))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Write output_dir/report.json."""

        def write() -> None:
            folder = Path(str(args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            if not self.measurements:
                self._measure(model)
            write_report(self.report(args, state, model), folder)

        on_first(args, write)

    def report(self, args: TrainingArguments, state: TrainerState, model: Any) -> Report:
        """Return a report on the current weights; saving the model adds the reload check and the sizes of the folder.

        Weights that were trained further after the last evaluation have no quality in it: "not measured".
        """
        use = use_of(model)
        quality = self.quality_by_weights.get(_fingerprint(model), {})
        metric = (args.metric_for_best_model or AGREEMENT).removeprefix("eval_")
        if metric not in quality:
            metric = AGREEMENT
        counted = parameters(model)
        losses = tuple((int(e["step"]), float(e["loss"])) for e in state.log_history if "loss" in e)
        plan = Plan(
            recipe="distil",
            title=f"training with the Trainer of transformers ({state.global_step} steps)",
            parameters=counted.total,
            parameters_without_embeddings=counted.without_embeddings,
            weight_bytes=weight_bytes(model),
            exact=True,
        )
        stage = StageReport(
            plan=plan,
            settings={"learning_rate": args.learning_rate, "batch_size": args.per_device_train_batch_size},
            seconds=sum(float(e.get("train_runtime", 0)) for e in state.log_history),
            parameters_without_embeddings=counted.without_embeddings,
            weight_bytes=weight_bytes(model),
            layer_bits=layer_bits(model),
            quality=quality,
            losses=losses,
        )
        return Report(
            name=Path(str(args.output_dir)).name,
            task=use.task,
            pipeline_tag=use.pipeline_tag,
            metric=metric,
            metric_description=f"`{AGREEMENT}` is the fraction of its predictions that equal the original's (for "
            "embeddings, the mean cosine). The other metrics are those of the Trainer's evaluation; the original's "
            "were not measured.",
            higher_is_better=True if metric == AGREEMENT else bool(args.greater_is_better),
            hub_metrics={name: hub for name, hub in hub_metrics().items() if name in quality},
            base=provenance.base_facts(self.source, self.teacher, self.base_model, self.license, self.card),
            stages=(stage,),
            before=self.measurements["before"].model_copy(update={"quality": {AGREEMENT: 1.0}}),
            after=self.measurements["after"].model_copy(update={"quality": quality}),
            data=DataFacts(
                train=("(data of the Trainer)",),
                eval=("(evaluation data of the Trainer)",),
                train_rows=self.facts.get("train_rows", 0),
                eval_rows=sum(self.eval_rows.values()),
                fingerprint="not measured",
            ),
            warnings=self.card.warnings,
            machine=provenance.machine(),
            versions=provenance.versions(),
            seed=args.seed,
            command="Trainer(callbacks=[CompressionReport(...)]).train()",
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        )

    def _measure(self, model: Any) -> None:
        self.measurements = measure({"before": self.teacher, "after": model}, batches=(1,), pixels=self.pixels)

    def _logs(self, agreement: float) -> dict[str, float]:
        before, after = self.measurements["before"], self.measurements["after"]
        return {
            "parameters": after.parameters,
            "parameters_ratio": after.parameters / before.parameters,
            AGREEMENT: agreement,
            "latency_ms": after.latency[0].p50_ms,
            "latency_ratio": after.latency[0].p50_ms / before.latency[0].p50_ms,
        }


def use_of(model: Any) -> Use:
    """Return the task of a model by its class.

    Raises:
        UsageError: no auto class loads the model, because it is wrapped or its class is not one of transformers.
    """
    kind = None if brings_code(type(model)) else task_of_class(model.config, type(model))
    if kind is not None:
        return Use(kind.auto_class, kind.name, PIPELINE_TAGS.get(kind.auto_class, kind.pipeline_tag), kind.classifies)
    for name, tag in PIPELINE_TAGS.items():
        mapping = getattr(transformers, name)._model_mapping
        if type(model.config) in mapping and class_for(model.config, name) is type(model):
            return Use(name, tag.replace("-", "_"), tag)
    names = dict.fromkeys([*(task.auto_class for task in TASKS.values()), *PIPELINE_TAGS])
    raise UsageError(
        f"{type(model).__name__} is loaded by none of {', '.join(names)}: expected a stock model. "
        "Merge adapters first: model.merge_and_unload()."
    )


def plain_copy(model: Any) -> PreTrainedModel:
    """Return a stock model with the same weights, without what mixed precision attached to the Trainer's model."""
    loader: Any = type(model)
    state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
    copied = loader.from_pretrained(None, config=copy.deepcopy(model.config), state_dict=state, dtype=main_dtype(model))
    return copied.eval()  # type: ignore[no-any-return]


def _fingerprint(model: Any) -> str:
    """Return a hash of the sums of all tensors, which identifies the weights of an evaluation."""
    sums = [float(p.detach().double().sum()) for p in model.parameters()]
    return hashlib.sha256(repr(sums).encode()).hexdigest()


def _rows(loader: Any) -> int:
    try:
        return len(loader.dataset)
    except (TypeError, AttributeError):  # there is no loader, or it reads a stream
        return 0
