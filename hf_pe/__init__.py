"""Make Hugging Face models smaller and faster, and measure what was gained and lost.

result = hf_pe.compress(model, [StructuredPruning(...), Distillation(...)], data=...)
result.save("small/")
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from hf_pe.quantizers.quiet import silence

if TYPE_CHECKING:
    from hf_pe.anatomy import discover as discover
    from hf_pe.backbones import BackboneSwap as BackboneSwap
    from hf_pe.backbones import SeparableConvolutions as SeparableConvolutions
    from hf_pe.callbacks import CompressionReport as CompressionReport
    from hf_pe.callbacks import PublishCallback as PublishCallback
    from hf_pe.callbacks import QualityFloor as QualityFloor
    from hf_pe.data import DataConfig as DataConfig
    from hf_pe.distill import Augment as Augment
    from hf_pe.distill import Cache as Cache
    from hf_pe.distill import Distillation as Distillation
    from hf_pe.distill import DistillationMixin as DistillationMixin
    from hf_pe.distill import DistillationTrainer as DistillationTrainer
    from hf_pe.distill import Lora as Lora
    from hf_pe.distill import Schedule as Schedule
    from hf_pe.distill import Teacher as Teacher
    from hf_pe.errors import NotFiniteError as NotFiniteError
    from hf_pe.errors import PushError as PushError
    from hf_pe.errors import UsageError as UsageError
    from hf_pe.export import export_onnx as export_onnx
    from hf_pe.hub import Publish as Publish
    from hf_pe.hub import push as push
    from hf_pe.plans import Plan as Plan
    from hf_pe.prune import StructuredPruning as StructuredPruning
    from hf_pe.prune import cut_checkpoint as cut_checkpoint
    from hf_pe.quantize import BitsAndBytesQuantization as BitsAndBytesQuantization
    from hf_pe.quantize import Cast as Cast
    from hf_pe.quantize import dequantize_checkpoint as dequantize_checkpoint
    from hf_pe.quantize import quantize_checkpoint as quantize_checkpoint
    from hf_pe.recipe import Recipe as Recipe
    from hf_pe.recipe import StageState as StageState
    from hf_pe.recipe_file import RecipeFile as RecipeFile
    from hf_pe.recipe_file import read_recipe as read_recipe
    from hf_pe.report import Report as Report
    from hf_pe.report import read_report as read_report
    from hf_pe.run.compress import compress as compress
    from hf_pe.run.result import Result as Result
    from hf_pe.surgery import cut as cut
    from hf_pe.verify.equivalence import verify_cut as verify_cut
    from hf_pe.weight_transfer import start_from as start_from

_HOME = {
    "BackboneSwap": "backbones",
    "SeparableConvolutions": "backbones",
    "discover": "anatomy",
    "CompressionReport": "callbacks",
    "PublishCallback": "callbacks",
    "QualityFloor": "callbacks",
    "export_onnx": "export",
    "Publish": "hub",
    "PushError": "errors",
    "push": "hub",
    "Result": "run.result",
    "compress": "run.compress",
    "DataConfig": "data",
    "Augment": "distill",
    "Cache": "distill",
    "Distillation": "distill",
    "DistillationMixin": "distill",
    "DistillationTrainer": "distill",
    "Lora": "distill",
    "NotFiniteError": "errors",
    "Schedule": "distill",
    "Teacher": "distill",
    "UsageError": "errors",
    "Plan": "plans",
    "verify_cut": "verify.equivalence",
    "StructuredPruning": "prune",
    "cut_checkpoint": "prune",
    "BitsAndBytesQuantization": "quantize",
    "Cast": "quantize",
    "dequantize_checkpoint": "quantize",
    "quantize_checkpoint": "quantize",
    "Recipe": "recipe",
    "RecipeFile": "recipe_file",
    "StageState": "recipe",
    "read_recipe": "recipe_file",
    "Report": "report",
    "read_report": "report",
    "cut": "surgery",
    "start_from": "weight_transfer",
}

__all__ = [*_HOME]
__version__ = version("hf-pe")
silence()


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import hf_pe` and `--help` stay fast (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'hf_pe' has no attribute '{name}'")
    value = getattr(import_module(f"hf_pe.{_HOME[name]}"), name)
    globals()[name] = value
    return value
