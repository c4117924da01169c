"""What ONNX Runtime gives is what the model gives, at sizes that were not traced."""

import json

import pytest
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification
from typer.testing import CliRunner

from hf_pe import export_onnx, quantize_checkpoint
from hf_pe.cli import app
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.export import TOLERANCE
from tests.helpers import needs_package

pytestmark = pytest.mark.filterwarnings("ignore")  # of what torch.onnx calls


@pytest.fixture(autouse=True)
def _installed():
    for name in ("onnx", "onnxscript", "onnxruntime"):
        needs_package(name)


@pytest.mark.parametrize("kind", ["llama_folder", "classifier_folder", "images"])
def test_exported_is_the_model(kind, request, tmp_path):
    if kind == "images":
        net = randomize_weights_(
            MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=0.35, image_size=32))
        )
        net.save_pretrained(tmp_path / "model")
    folder = tmp_path / "model" if kind == "images" else request.getfixturevalue(kind)
    exported = export_onnx(str(folder), tmp_path / "onnx")
    assert exported.difference < TOLERANCE and exported.bytes > 1000
    assert (tmp_path / "onnx" / "model.onnx").is_file() and (tmp_path / "onnx" / "config.json").is_file()
    assert kind == "images" or (tmp_path / "onnx" / "tokenizer.json").is_file()
    assert str(tmp_path) not in (tmp_path / "onnx" / "config.json").read_text()


def test_in_8_bits_it_is_smaller_and_near(classifier_folder, tmp_path):
    whole = export_onnx(str(classifier_folder), tmp_path / "whole")
    done = CliRunner().invoke(
        app, ["export", str(classifier_folder), "--output", str(tmp_path / "int8"), "--weights", "int8"]
    )
    assert done.exit_code == 0, done.output
    size = sum(f.stat().st_size for f in (tmp_path / "int8").glob("model.onnx*"))
    assert size < 0.6 * whole.bytes
    assert "Its outputs in ONNX Runtime differ by at most" in done.output


def test_packed_weights_are_refused_with_the_way_out(llama_folder, tmp_path):
    quantize_checkpoint(str(llama_folder), tmp_path / "small")
    assert json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]
    with pytest.raises(UsageError, match=r"quantized already \(bitsandbytes\).*hf-pe dequantize"):
        export_onnx(str(tmp_path / "small"), tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_without_the_extra_it_is_said(llama_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_pe.export.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install \"hf-pe\[export\]\""):
        export_onnx(str(llama_folder), tmp_path / "onnx")
