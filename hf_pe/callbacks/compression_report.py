"""Sizes, teacher agreement and latency while a stock Trainer trains; a report at the end."""

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
from hf_pe.dummies.sizes import processor_size
from hf_pe.errors import UsageError
from hf_pe.files.own_files import require_own_files
from hf_pe.hub.base_card import model_card
from hf_pe.measure import layer_bits, measure, parameters, weight_bytes
from hf_pe.modes import evaluating
from hf_pe.plans import Plan
from hf_pe.report import DataFacts, Measurement, Report, StageReport, write_report
from hf_pe.run import provenance
from hf_pe.surgery import main_dtype
from hf_pe.tasks import TASKS, hub_metrics, require_classes
from hf_pe.tasks.infer import task_of_class

AGREEMENT = "teacher_agreement"
PIPELINE_TAGS = {"AutoModelForSpeechSeq2Seq": "automatic-speech-recognition", "AutoModel": "feature-extraction"}
"""The Hub's names of what models do that a Trainer can train and no task of hf_pe, by their auto class."""


class Use(NamedTuple):
    """What a model is made for.

    Attributes:
        auto_class: of transformers, that loads it.
        task: its name in reports.
        pipeline_tag: the Hub's name of it.
        classifies: whether it chooses one of its labels.
    """

    auto_class: str
    task: str
    pipeline_tag: str
    classifies: bool = False


class CompressionReport(TrainerCallback):
    """Report what a smaller model has gained and lost, at every evaluation, to where `report_to` says.

    Logged under "compression/": parameters, parameters_ratio, teacher_agreement, latency_ms (batch 1, median) and
    latency_ratio (to the teacher's, taken in turns). `output_dir/report.json` is written at the end of training.

    Args:
        teacher: the model as it was before it was made smaller.
        base_model: Hub id of what the teacher is a copy or a fine-tune of; default: where it was loaded from.
        license: of the teacher, where its card does not state it.
        batches: of the evaluation data to compare on.
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
            require_own_files(self.source.folder)  # its licence and the like come along
        self.base_model, self.license, self.batches = base_model, license, batches
        self.card = model_card(self.source.folder, self.source.path)
        self.reporters: list[TrainerCallback] = []
        self.seen: dict[str, dict[str, float]] = {}
        self.agreements: dict[str, list[float]] = {}
        self.eval_rows: dict[tuple[str, ...], int] = {}
        self.facts: dict[str, Any] = {}
        self.found: dict[str, Measurement] = {}
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
        """Prepare the reporting integrations; the Trainer's own have had their turn before a user's callback."""
        self.state = state
        self.pixels = processor_size(processing_class)
        if state.is_world_process_zero:
            self.reporters = [made() for made in get_reporting_integration_callbacks(args.report_to)]
            for warning in self.card.warnings:
                progress.warn(warning)
        if use_of(model).classifies:  # both say before training what cannot be reported after it
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
        """Compare with the teacher, measure, and log; of several evaluation sets the agreement is the mean."""
        agreement = teacher_agreement(model, self.teacher.to(model.device), eval_dataloader, self.batches)
        given = {k.removeprefix("eval_"): v for k, v in (metrics or {}).items() if isinstance(v, (int, float))}
        timed = ("runtime", "per_second", "epoch", "preparation_time")
        kept = {k: float(v) for k, v in given.items() if not k.endswith(timed)}
        weights = _fingerprint(model)
        over_sets = self.agreements.setdefault(weights, [])
        over_sets.append(agreement)
        self.seen[weights] = self.seen.get(weights, {}) | kept | {AGREEMENT: statistics.fmean(over_sets)}
        self.eval_rows[tuple(sorted(kept))] = _rows(eval_dataloader)
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
            if not self.found:
                self._measure(model)
            write_report(self.report(args, state, model), folder)

        on_first(args, write)

    def report(self, args: TrainingArguments, state: TrainerState, model: Any) -> Report:
        """What is known of these very weights, as a report; the proof and the folder's facts come when it is saved.

        Weights that no evaluation has seen (training went on after it) have no quality: "not measured".
        """
        use = use_of(model)
        quality = self.seen.get(_fingerprint(model), {})
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
            metric_description=f"`{AGREEMENT}`: how often (for embeddings: how closely, as cosine) it answers as the "
            "original. The other metrics are those of the Trainer's evaluation; the original's were not measured.",
            higher_is_better=True if metric == AGREEMENT else bool(args.greater_is_better),
            hub_metrics={name: hub for name, hub in hub_metrics().items() if name in quality},
            base=provenance.base_facts(self.source, self.teacher, self.base_model, self.license, self.card),
            stages=(stage,),
            before=self.found["before"].model_copy(update={"quality": {AGREEMENT: 1.0}}),
            after=self.found["after"].model_copy(update={"quality": quality}),
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
        self.found = measure({"before": self.teacher, "after": model}, batches=(1,), pixels=self.pixels)

    def _logs(self, agreement: float) -> dict[str, float]:
        before, after = self.found["before"], self.found["after"]
        return {
            "parameters": after.parameters,
            "parameters_ratio": after.parameters / before.parameters,
            AGREEMENT: agreement,
            "latency_ms": after.latency[0].p50_ms,
            "latency_ratio": after.latency[0].p50_ms / before.latency[0].p50_ms,
        }


def use_of(model: Any) -> Use:
    """Return what a model is made for, by its class.

    Raises:
        UsageError: no auto class loads it: it is wrapped, or no stock class.
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
    """The same weights in a stock model of its own: what mixed precision hung on the Trainer's model is gone."""
    loader: Any = type(model)
    state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
    made = loader.from_pretrained(None, config=copy.deepcopy(model.config), state_dict=state, dtype=main_dtype(model))
    return made.eval()  # type: ignore[no-any-return]


def _fingerprint(model: Any) -> str:
    """Tells whether weights are those of an evaluation; a sum for each tensor is enough for that."""
    sums = [float(p.detach().double().sum()) for p in model.parameters()]
    return hashlib.sha256(repr(sums).encode()).hexdigest()


def _rows(loader: Any) -> int:
    try:
        return len(loader.dataset)
    except (TypeError, AttributeError):  # none, or a stream
        return 0
