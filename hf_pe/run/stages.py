"""Plan, apply, measure and keep the stages of a run; a resumed run loads finished stages that are undamaged."""

import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field, ValidationError
from transformers import set_seed

from hf_pe import progress
from hf_pe.anatomy import names_depth
from hf_pe.checkpoints.classes import brings_code, class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.processor import load_processor
from hf_pe.checkpoints.save import save_model
from hf_pe.checkpoints.source import resolve
from hf_pe.errors import UsageError
from hf_pe.files.hashes import sha256
from hf_pe.measure import Evaluate, layer_bits, parameters, quality, weight_bytes
from hf_pe.outputs import replaced
from hf_pe.plans import Frozen, Plan
from hf_pe.recipe import Recipe, StageState
from hf_pe.report import StageReport
from hf_pe.run.identity import StageId

NOTE = "stage.json"


class Finished(Frozen):
    """Hold the record of a finished stage that lies in its folder.

    Attributes:
        identity: Hash over everything that the stage is made from, see `identity.StageId`.
        origin: What all stages of its run were made from, see `identity.origin_of`.
        files: SHA-256 of each of its files.
        plan: What the stage has done.
        report: What was measured after it.
        own_processor: Whether the stage changed the processor, which then lies in its folder.
    """

    identity: str
    origin: dict[str, str]
    files: dict[str, str] = Field(default_factory=dict)
    plan: Plan
    report: StageReport
    own_processor: bool = False


@dataclass(frozen=True)
class StageFolder:
    """Carry out the stages of a run and keep the finished ones.

    Attributes:
        folder: Folder that has one folder per stage.
        origin: What all stages are made from, see `identity.origin_of`; None where stages are not kept.
        resume: Whether to load finished stages of an earlier run.
        evaluate: The user's own function that replaces the task's metrics, or None.
        seed: Seed that is set before each stage, so that it does not matter whether earlier stages were loaded.
    """

    folder: Path
    origin: dict[str, str] | None
    resume: bool
    evaluate: Evaluate | None
    seed: int

    def make(self, stage: StageId, recipe: Recipe, state: StageState) -> tuple[StageState, Finished]:
        """Plan and apply one recipe to a state, or load the stage where an earlier run has finished it."""
        folder = self.folder / stage.folder_name
        earlier = finished_stage(folder, stage) if self.resume else None
        if earlier is not None:
            damaged = damaged_files(folder, earlier)
            if not damaged:
                progress.say(f"stage {stage.name}: finished before, loaded")
                return _loaded(folder, state, earlier), earlier
            progress.say(f"stage {stage.name}: finished before, but damaged ({', '.join(damaged)}): made again")
        progress.say(f"stage {stage.name}")
        set_seed(self.seed)
        training = self.folder / f"{stage.folder_name}.training"
        checkpoints = None if self.origin is None else training  # no use in a folder that does not outlive the run
        fresh = state.with_model(state.model)
        before = replace(fresh, checkpoints=checkpoints, resume=self.resume)
        after, finished = self._carried_out(stage, recipe, before)
        if self.origin is not None:
            finished = _kept(folder, before, after, finished)
        shutil.rmtree(training, ignore_errors=True)  # only now that the stage is written: it may hold hours of work
        return after, finished

    def _carried_out(self, stage: StageId, recipe: Recipe, state: StageState) -> tuple[StageState, Finished]:
        start = time.perf_counter()
        plan = recipe.plan(state)
        after = recipe.apply(state, plan)
        report = StageReport(
            plan=_without_units(plan),
            settings=recipe.model_dump(mode="json"),
            seconds=time.perf_counter() - start,
            parameters_without_embeddings=parameters(after.model).without_embeddings,
            weight_bytes=weight_bytes(after.model),
            layer_bits=layer_bits(after.model),
            quality=quality(after.model, after.data, self.evaluate),
            losses=after.losses,
            curve=after.curve,
            training=after.training,
        )
        return after, Finished(identity=stage.identity, origin=self.origin or {}, plan=plan, report=report)


def require_resumable(folder: Path, stages: Iterable[StageId], origin: Mapping[str, str]) -> None:
    """Refuse to resume where `folder` has finished stages but none of this run.

    Raises:
        UsageError: None of them is of this run; the message says how the runs differ.
    """
    notes = sorted(folder.glob(f"*/{NOTE}"))
    if not notes or any(finished_stage(folder / stage.folder_name, stage) for stage in stages):
        return
    earlier = [finished for note in notes if (finished := _read(note)) is not None]
    differences = [[what for what in origin if finished.origin.get(what) != origin[what]] for finished in earlier]
    fewest = min(differences, key=len, default=["another version of hf_pe"])
    raise UsageError(
        f"--resume: {folder} has finished stages, but none of this run: they were made with "
        f"{' and '.join(fewest) or 'another recipe'}. Undo the change, or give --restart to start again."
    )


def finished_stage(folder: Path, stage: StageId) -> Finished | None:
    """Return the record of a stage in its folder; None where there is none, or of a stage made from something else."""
    finished = _read(folder / NOTE)
    return finished if finished is not None and finished.identity == stage.identity else None


def damaged_files(folder: Path, finished: Finished) -> list[str]:
    """Return which files of a finished stage are missing or have changed since they were written."""
    return [
        name
        for name, written in finished.files.items()
        if not (folder / name).is_file() or sha256(folder / name) != written
    ]


def _kept(folder: Path, before: StageState, after: StageState, finished: Finished) -> Finished:
    """Write a finished stage into its folder, with its processor where the stage has changed it."""
    if folder.exists():  # it is damaged or half removed
        shutil.rmtree(folder)
    with replaced(folder, overwrite=True) as fresh:
        own = after.processor is not before.processor
        save_model(after.model, after.processor if own else None, fresh)
        finished = finished.model_copy(update={"files": _hashes(fresh), "own_processor": own})
        (fresh / NOTE).write_text(finished.model_dump_json(), "utf-8")
    return finished


def _read(note: Path) -> Finished | None:
    try:
        return Finished.model_validate_json(note.read_text("utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return None


def _loaded(folder: Path, before: StageState, finished: Finished) -> StageState:
    """Load a stage like any model; custom code is allowed where the model before the stage already runs it."""
    source = resolve(str(folder), trust_remote_code=brings_code(type(before.model)))
    model = load_model(source, class_for(load_config(source)))
    after = before.with_model(model)
    if not finished.own_processor:
        return after
    return after.with_processor(load_processor(source, before.data.task.processor_class))


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _without_units(plan: Plan) -> Plan:
    """Return the plan as a report keeps it: with the kept layers, without the long lists of units (see plan.json)."""
    kept = {name: units for name, units in (plan.kept or {}).items() if names_depth(name)}
    return plan.model_copy(update={"kept": kept or None})
