"""Stages of a run: each is planned, carried out, measured and kept; a resumed run loads those that are whole."""

import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field, ValidationError
from transformers import set_seed

from hf_pe import progress
from hf_pe.anatomy import names_depth
from hf_pe.calibration.cache import StatisticsCache
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
    """A stage that is done, as its folder remembers it.

    Attributes:
        identity: of the stage, see `identity.StageId`.
        origin: what all stages of its run were made from, see `identity.origin_of`.
        files: SHA-256 of each of its files.
        own_processor: whether the stage made another processor, which lies in its folder.
    """

    identity: str
    origin: dict[str, str]
    files: dict[str, str] = Field(default_factory=dict)
    plan: Plan
    report: StageReport
    own_processor: bool = False


@dataclass(frozen=True)
class StageFolder:
    """Carries out the stages of a run and keeps the finished ones.

    Attributes:
        folder: where each stage has a folder of its own.
        origin: what they are all made from; None: stages are not kept.
        resume: finished stages of an earlier run are loaded.
        evaluate: the user's own function that stages are measured by.
        seed: everything random in a stage begins with it, whether the stages before were made or loaded.
    """

    folder: Path
    origin: dict[str, str] | None
    resume: bool
    evaluate: Evaluate | None
    seed: int

    def make(self, stage: StageId, recipe: Recipe, state: StageState) -> tuple[StageState, Finished]:
        """Plan and apply one recipe to a state, or load what an earlier run finished."""
        place = self.folder / stage.folder_name
        earlier = finished_stage(place, stage) if self.resume else None
        if earlier is not None:
            damaged = damaged_files(place, earlier)
            if not damaged:
                progress.say(f"stage {stage.name}: finished before, loaded")
                return _loaded(place, state, earlier), earlier
            progress.say(f"stage {stage.name}: finished before, but damaged ({', '.join(damaged)}): made again")
        progress.say(f"stage {stage.name}")
        set_seed(self.seed)
        training = self.folder / f"{stage.folder_name}.training"
        checkpoints = None if self.origin is None else training  # in a folder that goes they help nobody
        before = replace(state, statistics=StatisticsCache(), losses=(), checkpoints=checkpoints, resume=self.resume)
        made, finished = self._made(stage, recipe, before)
        if self.origin is not None:
            finished = _kept(place, before, made, finished)
        shutil.rmtree(training, ignore_errors=True)  # not before the stage is whole: hours may lie in it
        return made, finished

    def _made(self, stage: StageId, recipe: Recipe, state: StageState) -> tuple[StageState, Finished]:
        start = time.perf_counter()
        plan = recipe.plan(state)
        after = recipe.apply(state, plan)
        made = after.model
        report = StageReport(
            plan=_brief(plan),
            settings=recipe.model_dump(mode="json"),
            seconds=time.perf_counter() - start,
            parameters_without_embeddings=parameters(made).without_embeddings,
            weight_bytes=weight_bytes(made),
            layer_bits=layer_bits(made),
            quality=quality(made, after.data, self.evaluate),
            losses=after.losses,
        )
        return after, Finished(identity=stage.identity, origin=self.origin or {}, plan=plan, report=report)


def require_resumable(folder: Path, stages: Iterable[StageId], origin: Mapping[str, str]) -> None:
    """Refuse to resume where finished stages lie of which none is one of this run.

    Raises:
        UsageError: says by what they differ.
    """
    notes = sorted(folder.glob(f"*/{NOTE}"))
    if not notes or any(finished_stage(folder / stage.folder_name, stage) for stage in stages):
        return
    earlier = [found for note in notes if (found := _read(note)) is not None]
    differences = [[what for what in origin if found.origin.get(what) != origin[what]] for found in earlier]
    least = min(differences, key=len, default=["another version of hf_pe"])
    raise UsageError(
        f"--resume: {folder} has finished stages, but none of this run: they were begun with "
        f"{' and '.join(least) or 'another recipe'}. Undo the change, or give --restart to begin anew."
    )


def finished_stage(place: Path, stage: StageId) -> Finished | None:
    """Return what the folder of a stage says of it; None where it is not there or made from something else."""
    found = _read(place / NOTE)
    return found if found is not None and found.identity == stage.identity else None


def damaged_files(place: Path, finished: Finished) -> list[str]:
    """Return which files of a finished stage are missing or not as they were written."""
    return [
        name
        for name, written in finished.files.items()
        if not (place / name).is_file() or sha256(place / name) != written
    ]


def _kept(place: Path, before: StageState, after: StageState, finished: Finished) -> Finished:
    """Write a finished stage; with its processor where that is another one than before."""
    if place.exists():  # damaged, or half removed
        shutil.rmtree(place)
    with replaced(place, overwrite=True) as fresh:
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


def _loaded(place: Path, before: StageState, finished: Finished) -> StageState:
    """Load a stage as any model is loaded; the model before tells whether code of its own was allowed."""
    source = resolve(str(place), trust_remote_code=brings_code(type(before.model)))
    model = load_model(source, class_for(load_config(source)))
    after = before.with_model(model)
    if not finished.own_processor:
        return after
    return after.with_processor(load_processor(source, before.data.task.processor_class))


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _brief(plan: Plan) -> Plan:
    """The plan as a report keeps it: which layers stay; the long lists of units are in plan.json."""
    kept = {name: units for name, units in (plan.kept or {}).items() if names_depth(name)}
    return plan.model_copy(update={"kept": kept or None})
