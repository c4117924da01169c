"""Reports: frozen data of what was done and measured, where and how. The card is a pure function of the report."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from hf_pe.data_facts import DataFacts
from hf_pe.errors import UsageError
from hf_pe.files.atomic import write_whole
from hf_pe.files.json_files import read_object
from hf_pe.files.own_files import require_own
from hf_pe.loading import Loading, loading_of_task
from hf_pe.nearness_records import Forgetting, Nearness
from hf_pe.outputs import MAIN as MAIN
from hf_pe.plans import Frozen, Plan
from hf_pe.training_curve import TrainingCurve

REPORT_FORMAT: Literal[1] = 1
WRITE_AGAIN = "Restore the file as hf-pe wrote it, or make the result again."
PROBLEMS = 3
"""How many wrong values a message names."""
LICENSE_ID = re.compile(r"[\w.-]+")


def pixels_named(pixels: int | Sequence[int] | None) -> str:
    """Return ", 32 pixels" or ", 224 x 160 pixels" for a setting; "" where there are no images."""
    if pixels is None:
        return ""
    return f", {pixels if isinstance(pixels, int) else ' x '.join(map(str, pixels))} pixels"


def percent(fraction: float) -> str:
    """Return a fraction in whole percent, such as "12%"; "below 1%" for a small fraction that is not zero."""
    return "below 1%" if 0 < fraction < 0.01 else f"{fraction:.0%}"


class Latency(Frozen):
    """Times of one forward pass at a stated setting, after warm-up."""

    batch: int
    length: int | None = Field(description="tokens; None for other inputs")
    threads: int
    device: str | None = Field(None, description="on which it was measured; None in older reports")
    dtype: str | None = Field(None, description="of the weights; None in older reports")
    rounds: int
    p50_ms: float
    p90_ms: float
    pixels: int | tuple[int, int] | None = Field(None, description="a side, or height and width; None without images")

    @property
    def inputs(self) -> str:
        """Return the size of the pass: "batch 1, length 128" or "batch 1, 32 pixels"."""
        length = f", length {self.length}" if self.length else ""
        return f"batch {self.batch}{length}{pixels_named(self.pixels)}"

    @property
    def threads_named(self) -> str:
        """Return "1 thread" or "2 threads"."""
        return f"{self.threads} thread{'s' * (self.threads != 1)}"

    @property
    def throughput(self) -> float:
        """Return the examples per second at the median latency."""
        return self.batch / self.p50_ms * 1000


class Measurement(Frozen):
    """The measurements of one model; None where something was not measured."""

    parameters: int
    parameters_without_embeddings: int
    dtype: str
    disk_bytes: int | None = None
    flops: int | None = Field(None, description="of one forward pass; one multiply-add counts 2")
    flops_setting: str | None = None
    latency: tuple[Latency, ...] = ()
    peak_memory_bytes: int | None = Field(None, description="of loading and one forward pass, above the imports")
    quality: dict[str, float] = Field(default_factory=dict)
    general_quality: dict[str, float] = Field(default_factory=dict, description="metrics on the general text")
    nearness: tuple[Nearness, ...] = Field(
        (), description="to the original, on the evaluation rows and the general text"
    )
    forgetting: Forgetting | None = Field(None, description="None without a general text")


class SliceChange(Frozen):
    """A metric on a part of the examples, before and after, with the 95 % interval of the change."""

    name: str
    examples: int
    before: float
    after: float
    low: float = Field(description="of after - before")
    high: float


class MetricChange(Frozen):
    """A metric on the same examples before and after, with the 95 % interval of the change by paired bootstrap."""

    metric: str
    examples: int
    before: float
    after: float
    low: float = Field(description="of after - before")
    high: float
    slices: tuple[SliceChange, ...] = ()


class BaseModelFacts(Frozen):
    """The origin of the compressed model, and the parts of its card that apply to its copies too."""

    id: str = Field(description="Hub id or a name; never a path")
    compressed: str | None = Field(
        None, description="name of the model that was compressed, where it is not `id` itself but may derive from it"
    )
    revision: str | None = None
    license: str | None = None
    licenses: tuple[str, ...] = Field((), description="each licence, where its card states several")
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    intended_use: str | None = Field(None, description="the section of its card on intended use, Markdown")
    limits: str | None = Field(None, description="the sections of its card on limits, bias and risks, Markdown")
    citation: str | None = Field(None, description="BibTeX")
    model_class: str
    model_type: str

    @model_validator(mode="before")
    @classmethod
    def _list_licenses(cls, values: Any) -> Any:
        """Split the ids of several licences, which older reports state in one text."""
        if not isinstance(values, dict) or "licenses" in values:
            return values
        ids = str(values.get("license") or "").split(", ")
        return values | {"licenses": ids if len(ids) > 1 and all(LICENSE_ID.fullmatch(each) for each in ids) else ()}

    @property
    def descent(self) -> str:
        """Return the name of the compressed model and, where it is not `id` itself, the model that it derives from."""
        return self.id if self.compressed is None else f"{self.compressed}, which derives from {self.id}"


class Training(Frozen):
    """How a stage trained the model."""

    steps: int = Field(description="optimizer steps")
    seconds: float = Field(description="from the first step to the end, with checkpoints and evaluations")
    teacher_share: float | None = Field(
        None, description="fraction of the time that the outputs of the teachers took; None if no loss needs them"
    )

    @property
    def sentence(self) -> str:
        """Return how long the training took, for the card and the progress of a run."""
        share = "" if self.teacher_share is None else f", {percent(self.teacher_share)} of the time for the teacher"
        return f"{self.steps:,} optimizer steps in {self.seconds:,.0f} s{share}"


class StageReport(Frozen):
    """One stage as it was carried out."""

    plan: Plan
    settings: dict[str, Any]
    seconds: float
    parameters_without_embeddings: int
    weight_bytes: int
    quality: dict[str, float] = Field(description="metrics right after the stage")
    losses: tuple[tuple[int, float], ...] = Field((), description="(optimizer step, loss) of a stage that trains")
    curve: TrainingCurve | None = Field(None, description="quality during the training of the stage")
    training: Training | None = Field(None, description="None if the stage did not train, and in older reports")
    layer_bits: tuple[float, ...] = Field((), description="mean bits per parameter of each layer after the stage")


class Reload(Frozen):
    """The check that a fresh process loads the result; it imports hf_pe only where the model has custom modules."""

    status: Literal["native", "plug-in", "no"]
    reason: str = ""
    loading: Loading | None = Field(None, description="the classes that loaded it; None in older reports")
    parameters: int
    max_difference: float = Field(description="largest relative difference of its outputs to those before saving")
    sha256: dict[str, str] = Field(default_factory=dict, description="of the weight files that were loaded")
    sentence_difference: float | None = Field(
        None,
        description="largest relative difference of the embeddings that SentenceTransformer gives for the folder; None "
        "where it was not opened so",
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_snippet(cls, values: Any) -> Any:
        """Leave out the Python lines that older reports have: text of a file is never run or copied to a card."""
        return {key: value for key, value in values.items() if key != "snippet"} if isinstance(values, dict) else values


class Report(Frozen):
    """The report of a run, which has all facts of the card."""

    format_version: Literal[1] = REPORT_FORMAT
    name: str
    folder: str | None = Field(
        None, description="folder of the result, such as small/main, if it is not its name; None on the Hub"
    )
    task: str
    pipeline_tag: str
    metric: str
    metric_description: str
    higher_is_better: bool
    hub_metrics: dict[str, str] = Field(
        default={"spearman": "spearmanr", "f1_macro": "f1"},
        description="the Hub's names of metrics where they differ from ours; older reports do not state them",
    )
    base: BaseModelFacts
    stages: tuple[StageReport, ...]
    before: Measurement
    after: Measurement
    reload: Reload | None = None
    changes: tuple[MetricChange, ...] = Field((), description="empty where a function of the user measured quality")
    variants: dict[str, Measurement] = Field(
        default_factory=dict, description="measurements of all results of the run, this one included"
    )
    data: DataFacts
    warnings: tuple[str, ...] = Field((), description="sentences shown before the run that matter for the result")
    unread_parts: tuple[str, ...] = Field(
        (), description="parts of the original's files that its class does not read, such as another task's head"
    )
    library_name: str = "transformers"
    machine: str
    versions: dict[str, str]
    seed: int
    command: str
    date: str
    files: dict[str, str] = Field(
        default_factory=dict, description="SHA-256 of all files of the result except report.json; empty in older ones"
    )
    seal: str | None = Field(
        None, description="SHA-256 of all other fields, see `hf_pe.hub.seal`; None in older reports"
    )

    @property
    def loading(self) -> Loading:
        """Return how the result is loaded: as its reload check states; in older reports, by its task."""
        stated = self.reload.loading if self.reload else None
        plugin = self.reload is not None and self.reload.status == "plug-in"
        return stated or loading_of_task(self.pipeline_tag, plugin=plugin)

    @property
    def loading_lines(self) -> str:
        """Return the Python lines that load the result, for its card."""
        return self.loading.lines(self.folder or self.name)

    @property
    def sentence_call(self) -> str:
        """Return the call that opens the result with sentence-transformers, for its card."""
        return f"SentenceTransformer({self.loading.arguments(self.folder or self.name)})"


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json` into `folder`."""
    write_whole(folder / "report.json", report.model_dump_json(indent=2) + "\n")


def read_report(folder: str | Path) -> Report:
    """Read `report.json` of a result folder.

    Raises:
        UsageError: the file does not exist, has another format, or is a link to a file outside of the folder.
    """
    path = require_own(Path(folder), Path(folder) / "report.json")
    if not path.is_file():
        raise UsageError(f"{folder} has no report.json: expected a folder that hf-pe wrote.")
    content = read_object(path, WRITE_AGAIN)
    if content.get("format_version") != REPORT_FORMAT:
        raise UsageError(f"{path}: expected format_version {REPORT_FORMAT}, got {content.get('format_version')!r:.80}.")
    try:
        return Report.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{path} is not a report: {first_problems(error)}. {WRITE_AGAIN}") from error


def first_problems(error: ValidationError) -> str:
    """Return one line that names the first wrong values, and what was expected in their place."""
    problems = [f"{'.'.join(map(str, entry['loc'])) or 'all'}: {entry['msg']}" for entry in error.errors()]
    more = f" and {len(problems) - PROBLEMS} more" if len(problems) > PROBLEMS else ""
    return "; ".join(problems[:PROBLEMS]) + more
