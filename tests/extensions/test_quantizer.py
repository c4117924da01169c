"""A quantizer takes one class and one line: recipe files, schema, plan, result, card and dequantize follow from these."""

import json
import os
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from transformers import BertModel

from hf_pe import BitsAndBytesQuantization, Distillation, UsageError
from hf_pe.distill import Lora, Teacher
from hf_pe.measure import parameters, weight_bytes
from hf_pe.quantizers.base import Method, QuantizationSettings, Quantizer
from hf_pe.quantizers.registry import QUANTIZERS
from hf_pe.recipe import StageState
from hf_pe.recipe_file import json_schema, read_recipe
from tests.extensions.row_int8 import RowInt8Config, RowInt8Linear
from tests.helpers import call

PAPER = "https://arxiv.org/abs/2208.07339"


class Rows(Quantizer):
    """8 bits with a scale for each row."""

    name = "rows"
    tag = "row-int8"
    config_names = ("row_int8",)
    methods: ClassVar = {"row_int8": Method("row-wise int8", PAPER)}

    def bits(self, settings: QuantizationSettings) -> float:
        return 8.0

    def config(self, settings: QuantizationSettings) -> RowInt8Config:
        return RowInt8Config(settings.modules_to_not_convert)

    def is_quantized(self, module: torch.nn.Module) -> bool:
        return isinstance(module, RowInt8Linear)

    def weight(self, module: torch.nn.Module) -> torch.Tensor:
        return module.dequantized()


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(QUANTIZERS, Rows.name, Rows())  # the one line


@pytest.fixture
def known_to_transformers(monkeypatch, tmp_path):
    """A fresh process has the library installed: transformers knows its format, as it knows that of bitsandbytes."""
    beside = Path(__file__).parent
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        f"import sys\nsys.path.append({str(beside)!r})\nimport row_int8\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


@pytest.fixture
def file(write_recipe, bert_folder):
    return write_recipe(bert_folder, {"recipe": "quantize", "method": "row_int8"})


def methods_in_schema() -> list[str]:
    return json.loads(json_schema())["$defs"]["BitsAndBytesQuantization"]["properties"]["method"]["enum"]


def test_recipe_files_and_their_schema_accept_its_methods_once_it_is_registered(file, request):
    with pytest.raises(UsageError, match=r"method: expected one of nf4, fp4, int8; got 'row_int8'"):
        read_recipe(file)
    assert methods_in_schema() == ["nf4", "fp4", "int8"]
    request.getfixturevalue("registered")
    assert read_recipe(file).recipes == (BitsAndBytesQuantization(method="row_int8"),)
    assert methods_in_schema() == ["nf4", "fp4", "int8", "row_int8"]
    with pytest.raises(UsageError, match=r"got 'row_int'. Did you mean 'row_int8'\?"):
        read_recipe(file, ["recipes.0.method=row_int"])
    with pytest.raises(UsageError, match="expected method nf4 or fp4 with it, got row_int8"):
        read_recipe(file, ["recipes.0.refit=gptq"])


@pytest.mark.usefixtures("registered")
def test_adapters_and_teachers_are_quantized_by_it_too():
    recipe = Distillation(lora=Lora(base="row_int8"), teachers=(Teacher(model="x", quantize="row_int8"),))
    assert recipe.lora.base == "row_int8"


@pytest.mark.usefixtures("registered")
def test_sizes_and_weights_are_those_of_the_layers_that_it_quantized(bert_folder):
    model = BertModel.from_pretrained(bert_folder).eval()
    recipe = BitsAndBytesQuantization(method="row_int8")
    plan = recipe.plan(StageState(model))
    small = recipe.apply(StageState(model), plan).model
    assert plan.tag == "row-int8" and plan.references == (PAPER,)
    assert plan.title == "row-wise int8 quantization by rows"
    assert plan.parameters == parameters(model).total
    assert plan.weight_bytes == pytest.approx(weight_bytes(small), rel=0.05)
    layer = small.encoder.layer[0].output.dense
    assert isinstance(layer, RowInt8Linear)
    assert torch.allclose(layer.dequantized(), model.encoder.layer[0].output.dense.weight, atol=0.01)


@pytest.mark.usefixtures("registered", "known_to_transformers")
def test_the_command_line_quantizes_by_it_and_dequantizes_again(file, tmp_path):
    assert call("plan", file).exit_code == 0
    done = call("run", file, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- row-int8" in card and "row-wise int8 quantization by rows" in card and PAPER in card
    refused = call("run", file, "--output", tmp_path / "again", "--set", f"model={tmp_path / 'out'}")
    assert refused.exit_code == 2 and "quantized already (row_int8)" in " ".join(refused.output.split())
    back = call("dequantize", tmp_path / "out", "--output", tmp_path / "plain", "--dtype", "float32")
    assert back.exit_code == 0, back.output
    quantized = BertModel.from_pretrained(tmp_path / "out")
    plain = BertModel.from_pretrained(tmp_path / "plain")
    name = "encoder.layer.0.output.dense"
    assert torch.equal(plain.get_submodule(name).weight, quantized.get_submodule(name).dequantized())
