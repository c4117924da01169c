"""The module tree holds: imports go up only, `import hf_pe` is fast, no stray paths in what is committed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hf_pe
import hf_pe.front_matter
import hf_pe.yaml_files

ROOT = Path(hf_pe.__file__).parent
LEVELS = [
    {"errors", "files", "progress", "papers", "quiet"},
    {"own_files"},
    {"outputs", "terminal", "json_files", "yaml_files", "hub_errors", "fresh", "front_matter"},
    {"anatomy", "regression", "hashes", "shards", "cards"},
    {"plans"},
    {"loading"},
    {"report", "plugin"},
    {"surgery", "data", "transplant", "instance", "sentence_files", "padding", "seal"},
    {"generation", "adapters", "config_checks", "overflow"},
    {"proof", "packing", "weight_checks"},
    {"tasks", "checkpoints", "loaded"},
    {"measure", "provenance", "bridge", "calibration", "export"},
    {"prune", "distill", "quantize", "backbones"},
    {"hub"},
    {"results", "inputs", "identity"},
    {"stages"},
    {"pipeline", "callbacks"},
    {"recipe_file"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
ALONE = {"__init__", "fresh_process", "fresh_sentences", "fresh_server"}  # the public list; programs of their own


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_pe"):
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("hf_pe.")}
    return found


def test_imports_go_up_only():
    wrong = []
    for file in ROOT.rglob("*.py"):
        name = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if name in ALONE:
            continue
        wrong += [f"{file.name} ({name}) imports {i}" for i in imported(file) - {name} if LEVEL[i] >= LEVEL[name]]
    assert not wrong


def test_every_module_has_a_level():
    names = {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in ROOT.rglob("*.py")}
    assert names - ALONE == set(LEVEL)


@pytest.mark.parametrize("name", ["fresh_process.py", "fresh_sentences.py", "fresh_server.py"])
def test_programs_of_fresh_processes_need_nothing_of_hf_pe(name):
    assert not imported(ROOT / name)


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
    "fresh.py": {"subprocess.run", "subprocess.Popen"},  # programs of this package
    "fresh_server.py": {"runpy.run_path"},  # these
    "front_matter.py": {"yaml.load"},  # by a safe loader, which makes strings alone
    "fresh_process.py": {"importlib.import_module"},  # hf_pe.plugin, by name
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
    wrong = {file.name: calls(file) - ALLOWED.get(file.name, set()) for file in ROOT.rglob("*.py")}
    assert not {name: found for name, found in wrong.items() if found}
    assert issubclass(hf_pe.yaml_files._Loader, yaml.SafeLoader)
    assert issubclass(hf_pe.front_matter._Loader, yaml.BaseLoader)
