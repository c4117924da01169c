import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)
from typer.main import get_command

from hf_pe.backbones.listing import Candidate
from hf_pe.checkpoints.save import save_model
from hf_pe.cli import app
from hf_pe.distill import Distillation
from hf_pe.report import Latency
from tests.helpers import TEXTS, call

HF_PE = [sys.executable, "-m", "hf_pe.cli"]


@pytest.fixture
def recipe(bert_folder, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    content = {
        "model": str(bert_folder),
        "task": "embedding",
        "data": {"train": str(tmp_path / "text.txt")},
        "recipes": [{"recipe": "prune", "keep": {"ffn": 0.5}}, {"recipe": "distil", "steps": 3}],
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "tiny.yaml"


COMMANDS = get_command(app).commands


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_an_example_in_its_help(command):
    result = call(command, "--help")
    assert result.exit_code == 0
    assert f"Example: hf-pe {command}" in result.output


def test_the_list_of_commands_shows_the_first_sentence_of_each_completely():
    lines = call("--help", columns=80).output.partition("Commands:")[2].split("\n")
    sentences = dict(line.split(maxsplit=1) for line in lines if line.strip())
    assert sentences == {name: command.help.split("\n")[0] for name, command in COMMANDS.items()}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_values_of_arguments_and_options_are_words_of_users_and_not_types(command):
    for parameter in COMMANDS[command].params:
        is_switch, is_choice = getattr(parameter, "is_flag", False), parameter.type_descriptor.is_choice
        assert is_switch or is_choice or parameter.metavar.isupper(), parameter.name
    assert not re.search(r"<(str|path|int|float|list)\b", call(command, "--help").output)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_argument_and_option_has_a_help_that_says_where_it_may_be_repeated(command):
    for parameter in COMMANDS[command].params:
        assert parameter.help, parameter.name
        assert getattr(parameter, "multiple", False) == ("May be repeated." in parameter.help), parameter.name


def test_an_old_spelling_in_a_recipe_file_is_one_line_of_warning(recipe):
    content = yaml.safe_load(recipe.read_text())
    content["recipes"][0]["repair"] = "none"
    recipe.write_text(yaml.safe_dump(content))
    ended = subprocess.run([*HF_PE, "plan", str(recipe)], capture_output=True, text=True, check=True)
    warning = "Warning: prune: 'repair' is the old name of 'refit'; version 0.2 will refuse it."
    assert ended.stderr.count("old name") == 1 and warning in ended.stderr.splitlines()


@pytest.mark.parametrize(("option", "warnings"), [("--multiple 16", 1), ("--multiple=16", 1), ("--round-to 16", 0)])
def test_an_old_option_is_read_with_a_warning(bert_folder, tmp_path, option, warnings):
    cut = call("cut", bert_folder, "--keep", "ffn=0.5", *option.split(), "--output", tmp_path / "cut")
    assert cut.exit_code == 0
    assert cut.stderr.count("'--multiple' is the old name of '--round-to'") == warnings


def test_inspect_lists_the_axes(bert_folder):
    result = call("inspect", bert_folder)
    assert result.exit_code == 0
    rows = {line.split("│")[1].strip(): line for line in result.output.splitlines() if line.startswith("│")}
    assert "yes (verified" in rows["ffn"]
    assert "yes (verified" in rows["layers"]
    assert "with hf_pe.cut, not" in rows["vocabulary"]
    assert "no: the stock config" in rows["heads"]
    assert "128" in rows["ffn"]


def test_swap_lists_at_the_size_of_the_images_that_the_processor_makes(tmp_path, monkeypatch):
    sizes = []

    def candidates(config, model_class, *, pixels, **options):
        sizes.append(pixels)
        taken = Latency(batch=1, length=None, threads=1, rounds=2, p50_ms=1.0, p90_ms=1.0, pixels=pixels)
        return [Candidate("", 10, 10, taken, ())]

    monkeypatch.setattr("hf_pe.backbones.candidates", candidates)
    ResNetForImageClassification(ResNetConfig(depths=[1], hidden_sizes=[8], embedding_size=8)).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 48, "width": 48}).save_pretrained(tmp_path)
    result = call("swap", tmp_path)
    assert result.exit_code == 0 and "(batch 1, 48 pixels)" in result.output
    assert "(batch 1, 64 pixels)" in call("swap", tmp_path, "--image-size", 64).output
    assert sizes == [48, 64]


def test_swap_lists_what_is_smaller_with_measured_latency(tmp_path):
    config = ViTConfig(image_size=32, patch_size=8, hidden_size=144, num_hidden_layers=2, intermediate_size=512)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    result = call("swap", tmp_path, "--list")
    assert result.exit_code == 0, result.output
    assert "backbones that are smaller (batch 1, 32 pixels)" in result.output
    rows = [line for line in result.output.splitlines() if line.startswith("│")]
    assert "the model itself" in rows[0] and "mobilenet_v1_0.25" in rows[-1]
    assert not any("efficientnet_b0" in row for row in rows), "it is larger"
    assert "mobilenet_v2_0.35: output_stride changed from 32 to 8" in result.output
    assert call("swap", tmp_path / "none").exit_code == 2


def test_plan_states_sizes_and_loads_no_weights(recipe, monkeypatch):
    monkeypatch.setattr("hf_pe.checkpoints.load._require_loadable", lambda *_, **__: pytest.fail("weights were loaded"))
    result = call("plan", recipe, "--set", "recipes.0.keep.layers=3")
    assert result.exit_code == 0
    assert "ffn 128 -> 64" in result.output
    assert "layers 4 -> 3" in result.output
    assert "exact" in result.output


def test_run_measure_and_card(recipe, tmp_path):
    target = tmp_path / "out"
    result = call("run", recipe, "--output", target)
    assert result.exit_code == 0, result.output
    assert "Parameters" in result.output
    assert f"Wrote {target}" in result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "text.txt", "tiny.yaml"]

    refused = call("run", recipe, "--output", target)
    assert refused.exit_code == 2
    assert "is not empty" in refused.output
    assert "--overwrite" in refused.output

    before = (target / "README.md").read_bytes()
    (target / "README.md").unlink()
    assert call("card", target).exit_code == 0
    assert (target / "README.md").read_bytes() == before

    measured = call("measure", target, "--json", "--task", "embedding")
    assert json.loads(measured.stdout)["parameters"] == AutoModel.from_pretrained(target).num_parameters()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SafetensorError("No space left on device (os error 28)")])
def test_a_stop_half_way_leaves_the_old_output_and_resume_goes_on(recipe, tmp_path, monkeypatch, stop):
    target = tmp_path / "out"
    target.mkdir()
    for name in ("mine.txt", "report.json"):
        (target / name).write_text('{"format_version": 0}')

    def fail(*_, **__):
        raise stop

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "apply", fail)
        result = call("run", recipe, "--output", target, "--overwrite")
    assert result.exit_code in (1, 130)
    assert "--resume" in result.output
    assert sorted(p.name for p in target.iterdir()) == ["mine.txt", "report.json"]

    result = call("run", recipe, "--output", target, "--overwrite", "--resume")
    assert result.exit_code == 0, result.output
    assert "1-prune: finished before" in result.output
    assert (target / "model.safetensors").is_file()
    assert not (target / "mine.txt").exists()


def test_a_full_disk_while_saving_leaves_the_old_output(recipe, tmp_path, monkeypatch):
    target = tmp_path / "out"
    target.mkdir()
    for name in ("mine.txt", "report.json"):
        (target / name).write_text('{"format_version": 0}')
    save = save_model

    def full(model, processor, folder, source=None):
        if folder.parent.name.startswith(".out.hf_pe-"):
            raise OSError(28, "No space left on device")
        save(model, processor, folder, source)

    monkeypatch.setattr("hf_pe.run.folder.save_model", full)
    result = call("run", recipe, "--output", target, "--overwrite")
    assert result.exit_code == 1
    assert "No space left" in result.output
    assert sorted(p.name for p in target.iterdir()) == ["mine.txt", "report.json"]


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_real_ctrl_c_and_what_a_scheduler_sends(recipe, tmp_path, stop, code):
    """The process gets the signal while it trains; its stages stay, and meanwhile no other one writes there."""
    target = tmp_path / "out"
    command = [*HF_PE, "run", str(recipe), "--output", str(target)]
    process = subprocess.Popen(
        [*command, "--set", "recipes.1.steps=100000"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell may have it ignored
    )
    for line in process.stderr:
        if "2-distil" in line:
            break
    refused = call("run", recipe, "--output", target)
    assert refused.exit_code == 2
    assert f"is in use by process {process.pid}" in refused.output
    process.send_signal(stop)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == code
    assert "Finished stages are in" in rest and "continue with --resume" in rest
    assert not target.exists()
    assert len(list(tmp_path.glob(".out.hf_pe-*/1-*/stage.json"))) == 1
    assert not (tmp_path / ".out.hf_pe.lock").exists()


@pytest.mark.parametrize(
    ("stop", "code"),
    [
        (KeyboardInterrupt(), 130),
        (OSError(28, "No space left on device"), 1),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), 1),
        (Exception("No space left on device (os error 28)"), 1),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), 1),
    ],
)
def test_every_command_says_that_it_was_stopped(tmp_path, monkeypatch, stop, code):
    def fail(*_, **__):
        raise stop

    for command, function in (
        ("cut", "hf_pe.prune.cut_checkpoint"),
        ("quantize", "hf_pe.quantize.quantize_checkpoint"),
        ("dequantize", "hf_pe.quantize.dequantize_checkpoint"),
        ("export", "hf_pe.export.export_onnx"),
    ):
        monkeypatch.setattr(function, fail)
        keep = ["--keep", "ffn=0.5"] if command == "cut" else []
        result = call(command, "model", "--output", tmp_path / "out", *keep)
        assert result.exit_code == code
        assert "Stopped" in result.output and "Nothing was written as a result" in result.output
        assert isinstance(result.exception, SystemExit)  # no traceback


def stopped(recipe, target, monkeypatch):
    """A run that was stopped after its first stage, without having done it."""

    def stop(*_, work, **__):
        (work / "1-prune-12345678").mkdir()
        (work / "1-prune-12345678" / "stage.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hf_pe.run.compress.compress", stop)
        assert call("run", recipe, "--output", target).exit_code == 130
    (folder,) = target.parent.glob(f".{target.name}.hf_pe-*")
    return folder


def test_a_run_that_cannot_begin_removes_no_finished_stage(recipe, tmp_path, monkeypatch):
    folder = stopped(recipe, tmp_path / "out", monkeypatch)
    refused = call("run", recipe, "--output", tmp_path / "out")
    assert refused.exit_code == 2
    assert "--resume" in refused.output and "--restart" in refused.output
    (tmp_path / "text.txt").rename(tmp_path / "elsewhere.txt")
    for flags in (["--restart"], ["--restart", "--set", "recipes.0.keep.layers=99"], ["--set", "data.train=typo.txt"]):
        failed = call("run", recipe, "--output", tmp_path / "out", *flags)
        assert failed.exit_code == 2, failed.output
        assert (folder / "1-prune-12345678" / "stage.json").is_file()
    (tmp_path / "elsewhere.txt").rename(tmp_path / "text.txt")

    def begin(*_):
        assert not (folder / "1-prune-12345678").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_pe.run.stages.StageFolder.make", begin)
    assert call("run", recipe, "--output", tmp_path / "out", "--restart").exit_code == 130


def test_an_output_that_overlaps_what_is_read_is_refused_before_work(recipe, bert_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_pe.run.compress.compress", lambda *_, **__: pytest.fail("work began"))
    for output, message in (
        (bert_folder, "is the model's own folder"),
        (bert_folder / "small", "lies inside the model"),
        (tmp_path, "holds data.train text.txt"),
    ):
        result = call("run", recipe, "--output", output, "--overwrite")
        assert result.exit_code == 2
        assert message in result.output
    (tmp_path / "teacher").mkdir()
    settings = [
        f"recipes.1.teachers=[{{model: {tmp_path / 'teacher'}}}]",
        f"recipes.1.cache={{folder: {tmp_path / 'a'}}}",
    ]
    for output, message in (
        ("teacher", "is the teacher teacher's own folder"),
        ("a/small", "lies inside distil.cache"),
    ):
        flags = [part for each in settings for part in ("--set", each)]
        result = call("run", recipe, "--output", tmp_path / output, "--overwrite", *flags)
        assert result.exit_code == 2
        assert message in result.output


def test_a_source_with_the_name_of_a_work_folder_is_read(bert_folder, tmp_path):
    shutil.copytree(bert_folder, tmp_path / "small.new")
    result = call("cut", tmp_path / "small.new", "--keep", "layers=0,1", "--output", tmp_path / "small")
    assert result.exit_code == 0, result.output
    assert AutoConfig.from_pretrained(tmp_path / "small").num_hidden_layers == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "small.new"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "./no/such/model"], "does not exist"),
        (["inspect", "someone/no-such-model"], "could not be loaded from the Hub"),
        (["plan", "no-such.yaml"], "does not exist"),
        (["card", "."], "no report.json"),
        (["measure", "./no/such/model"], "does not exist"),
    ],
)
def test_mistakes_end_in_one_message_and_code_2(arguments, message):
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_mistake_in_the_recipe_stops_before_the_output_is_touched(recipe, tmp_path):
    result = call("run", recipe, "--output", tmp_path / "out", "--set", "recipes.0.keep.fnn=0.5")
    assert result.exit_code == 2
    assert "Did you mean 'ffn'" in result.output
    assert not (tmp_path / "out").exists()


def test_a_mistake_is_all_that_a_fresh_process_says(recipe):
    done = subprocess.run([*HF_PE, "run", str(recipe), "--set", "seed=x"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Error:")  # not what libraries say of this processor


@pytest.mark.slow
def test_inspect_of_a_7b_config_is_light(tmp_path):
    """The figures are measured by scripts/bench/ground_inspect.py; here only that no weights are ever made."""
    AutoConfig.for_model("llama", architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    program = (
        "import resource, sys; from hf_pe.cli import app\n"
        f"sys.argv = ['hf-pe', 'inspect', {str(tmp_path)!r}]\n"
        "try: app()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    assert done.returncode == 0, done.stderr
    assert "6,738,415,616 parameters" in done.stdout
    assert int(done.stdout.split("PEAK ")[1]) * 1024 < 2e9


def test_a_result_is_a_folder_beside_which_nothing_is_left(recipe, tmp_path):
    target = tmp_path / "results" / "out"
    assert call("run", recipe, "--output", target).exit_code == 0
    assert [p.name for p in Path(tmp_path / "results").iterdir()] == ["out"]


def test_a_disk_that_is_too_small_is_refused_before_a_result_is_written(bert_folder, tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    quantized = tmp_path / "quantized"
    assert call("quantize", bert_folder, "--output", quantized).exit_code == 0
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    for command in (
        ["cut", bert_folder, "--keep", "layers=0,1"],
        ["quantize", bert_folder],
        ["dequantize", quantized],
    ):
        result = call(*command, "--output", tmp_path / "out")
        assert result.exit_code == 2
        assert re.search(r"the result takes about 0\.\d MB, and that disk has 0\.0 MB free", result.output), (
            result.output
        )
    assert [path.name for path in tmp_path.iterdir()] == ["quantized"]
