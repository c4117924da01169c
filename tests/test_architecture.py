"""The module tree holds: imports go up only, `import hf_pe` is fast, no stray paths in what is committed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hf_pe
import hf_pe.files.front_matter
import hf_pe.files.yaml_files
from tests.import_graph import Levels, circle, contents, lowest_levels, read_graph, upward_imports

ROOT = Path(hf_pe.__file__).parent
LEVELS: Levels = {
    "": [
        {
            "errors",
            "layer_dtypes",
            "machine_memory",
            "modes",
            "overflow",
            "padding",
            "papers",
            "progress",
            "regression",
        },
        {"anatomy", "files", "fresh", "hub_errors", "registered_names"},
        {"model_spec", "outputs", "plans", "plugin"},
        {
            "data_facts",
            "dummies",
            "loading",
            "nearness_records",
            "settings",
            "surgery",
            "training_curve",
            "weight_transfer",
        },
        {"adapters", "report", "verify"},
        {"quantizers"},
        {"checkpoints", "data"},
        {"tasks"},
        {"calibration"},
        {"measure", "stitching"},
        {"export", "hub"},
        {"recipe"},
        {"backbones", "distill", "prune", "quantize"},
        {"recipes"},
        {"run"},
        {"callbacks", "recipe_file"},
        {"cli"},
    ],
    "anatomy": [
        {"custom_modules", "fields", "module_names", "numbered"},
        {"meta", "resize"},
        {"kinds", "label_head"},
        {"axis", "config_edit"},
        {"attention", "depth", "generation_config", "norms", "scales", "slots"},
        {"discover"},
    ],
    "backbones": [
        {"bottleneck_init", "presets", "separable", "strides"},
        {"resolve"},
        {"listing", "recipe"},
    ],
    "calibration": [
        {"blockwise", "cache", "consumers", "token_weights"},
        {"gradients", "hooks"},
        {"coverage", "experts", "moments", "output_distance"},
        {"influence"},
    ],
    "callbacks": [
        {"agreement", "ranks"},
        {"compression_report", "quality_floor"},
        {"publish"},
    ],
    "checkpoints": [
        {"config_checks", "mixed_dtypes", "reload", "sentence_modules", "weight_checks"},
        {"classes", "live_model", "sentence_transformers"},
        {"source"},
        {"config", "processor", "sentence_source", "stored"},
        {"load"},
        {"save"},
    ],
    "cli": [
        {"terminal"},
        {"display", "main", "options"},
        {"__main__", "convert", "run", "share"},
    ],
    "data": [
        {"builtin", "config"},
        {"files", "fingerprint", "select"},
        {"folders"},
        {"sources"},
        {"load"},
        {"general"},
    ],
    "distill": [
        {
            "attention",
            "augment",
            "counts",
            "duration",
            "evaluation_times",
            "kept_weights",
            "layer_map",
            "lora",
            "precision",
            "sample",
            "sampling",
            "schedule",
        },
        {"checkpoint", "losses"},
        {"evaluation", "layer_states", "logit_source"},
        {"chunked", "signals", "stopwatch"},
        {"teachers"},
        {"checks", "student_outputs"},
        {"objective"},
        {"build", "not_finite", "projections", "term_log"},
        {"settings", "trainer"},
        {"held_out", "learner", "limited_trainer", "teaching"},
        {"training"},
        {"recipe"},
    ],
    "distill/losses": [
        {"embeddings", "logits"},
        {"masked_mean"},
        {"attention", "hidden"},
        {"registry"},
    ],
    "distill/teachers": [
        {"compatible", "live", "packed_logits", "source"},
        {"cached", "load"},
        {"cache_files"},
    ],
    "dummies": [
        {"fields", "outputs", "sizes"},
        {"inputs", "shrink"},
        {"tiny"},
    ],
    "files": [
        {"atomic", "front_matter", "json_files", "yaml_files"},
        {"hashes", "own_files"},
        {"shards"},
    ],
    "fresh": [
        {"open_model", "open_sentences", "run", "server"},
    ],
    "hub": [
        {
            "base_card",
            "markdown",
            "merge",
            "nearness_table",
            "patience",
            "pictures",
            "private_facts",
            "refs",
            "scan_text",
            "seal",
            "secret_forms",
        },
        {"scan", "settings", "tables", "template"},
        {"compare", "metadata"},
        {"card"},
        {"outgoing"},
        {"remote"},
        {"publish"},
    ],
    "measure": [
        {"bootstrap", "devices", "flops", "memory", "sentences", "size"},
        {"forgetting", "latency", "nearness", "quality"},
    ],
    "outputs": [
        {"lock", "marker"},
        {"noted_runs", "place"},
        {"replace", "stages"},
        {"run"},
    ],
    "prune": [
        {"criteria", "sizes"},
        {"plan_sizes", "statistics"},
        {"choose", "refit"},
        {"basis", "on_disk"},
        {"execute"},
        {"recipe"},
    ],
    "prune/basis": [
        {"attention_heads", "residual"},
    ],
    "prune/on_disk": [
        {"tensors"},
        {"cut"},
    ],
    "prune/refit": [
        {"experts", "least_squares", "norm_warnings", "norms", "observed_norm"},
        {"observed_block"},
        {"sequential"},
    ],
    "prune/sizes": [
        {"layers", "search"},
        {"allowed", "sensitivity"},
        {"costs"},
        {"budget"},
    ],
    "prune/statistics": [
        {"moments", "residual", "unit_statistics"},
        {"cached"},
    ],
    "quantize": [
        {"cast", "coverage", "grid", "inputs", "layers"},
        {"mix", "refit", "sensitivity"},
        {"recipe"},
        {"checkpoint"},
    ],
    "quantizers": [
        {"layers", "quiet"},
        {"base"},
        {"bnb"},
        {"registry"},
    ],
    "run": [
        {"folder", "inputs", "measure_model", "order", "provenance"},
        {"dry_run", "identity", "recipe_content", "result"},
        {"original", "stages"},
        {"beside_original", "stage_chain"},
        {"side_by_side"},
        {"compress"},
    ],
    "tasks": [
        {"batch", "evaluation", "labels", "texts", "tokens"},
        {"base", "blocks", "head"},
        {"embedding", "likelihood", "media", "prepare", "question_answering", "token_classification"},
        {"causal_lm", "classification", "masked_lm", "seq2seq"},
        {"audio_classification", "image_classification", "text_classification"},
        {"object_detection"},
        {"registry"},
        {"infer"},
    ],
    "verify": [
        {"ablate", "generation", "wrong_cuts"},
        {"comparison"},
        {"equivalence"},
    ],
}
"""By folder, what lies in it: a module imports from lower levels only. Where it is refused, `lowest_levels` helps."""
NEIGHBOURS: set[tuple[str, str]] = set()
"""Pairs (importing, imported) of the same level, as paths below `hf_pe`, each with its reason beside it."""
GRAPH = read_graph(ROOT)


def test_modules_import_from_lower_levels_only():
    assert not upward_imports(GRAPH, LEVELS, NEIGHBOURS)


def test_every_pair_of_neighbours_is_needed():
    assert not [pair for pair in NEIGHBOURS if not upward_imports(GRAPH, LEVELS, NEIGHBOURS - {pair})]


def test_no_imports_run_in_a_circle():
    assert not circle(GRAPH)


@pytest.mark.parametrize("folder", sorted(contents(ROOT).keys() | LEVELS.keys()))
def test_every_module_has_one_level(folder):
    names = contents(ROOT).get(folder, set())
    listed = sorted(name for row in LEVELS.get(folder, []) for name in row)
    assert listed == sorted(names), f"levels that would do: {lowest_levels(GRAPH, folder, names)}"


@pytest.mark.parametrize("name", ["fresh/open_model", "fresh/open_sentences", "fresh/server"])
def test_programs_of_fresh_processes_need_nothing_of_hf_pe(name):
    assert not GRAPH[name]


def test_import_pulls_in_no_torch():
    program = "import sys, hf_pe, hf_pe.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_every_public_name_resolves():
    for name in hf_pe.__all__:
        assert getattr(hf_pe, name).__name__ == name


def test_no_public_name_is_hidden_by_a_module():
    modules = {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in ROOT.rglob("*.py")}
    assert not modules & set(hf_pe.__all__)


UNSAFE = {
    "exec", "eval", "compile", "__import__", "pickle.load", "pickle.loads", "torch.load", "np.load", "numpy.load",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "import_module", "subprocess.run",
    "subprocess.Popen", "subprocess.check_output", "importlib.import_module", "runpy.run_path", "runpy.run_module",
}  # fmt: skip
"""Calls that run, import or unpickle what a text or a file says."""
ALLOWED = {
    "__init__.py": {"import_module"},  # names of the public list
    "fresh/run.py": {"subprocess.run", "subprocess.Popen"},  # programs of this package
    "fresh/server.py": {"runpy.run_path"},  # these
    "files/front_matter.py": {"yaml.load"},  # by a safe loader, which makes strings alone
    "fresh/open_model.py": {"importlib.import_module"},  # hf_pe.plugin, by name
}


def calls(file: Path) -> set[str]:
    """The unsafe calls of a module; torch.load is safe where it reads tensors only."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in UNSAFE:
            tensors = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            found |= set() if name == "torch.load" and tensors else {name}
    return found


def test_no_module_runs_text_of_a_file():
    files = {file.relative_to(ROOT).as_posix(): file for file in ROOT.rglob("*.py")}
    wrong = {name: calls(file) - ALLOWED.get(name, set()) for name, file in files.items()}
    assert not {name: found for name, found in wrong.items() if found}
    assert issubclass(hf_pe.files.yaml_files._Loader, yaml.SafeLoader)
    assert issubclass(hf_pe.files.front_matter._Loader, yaml.BaseLoader)
