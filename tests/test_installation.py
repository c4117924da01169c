"""How the package is installed from a clone."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.helpers import needs_package

ROOT = Path(__file__).parents[1]
IMPORT = "import site, sys; site.addsitedir(sys.argv[1]); import hf_pe; print(hf_pe.__file__)"


def test_a_program_beside_the_clone_imports_the_package_and_not_the_clone_as_a_namespace(tmp_path):
    """Python takes a folder `hf_pe` without __init__.py in the current folder for a namespace package, unless the
    editable installation puts the clone on the import path."""
    needs_package("setuptools")
    clone, site = tmp_path / "hf_pe", tmp_path / "site"
    shutil.copytree(ROOT / "hf_pe", clone / "hf_pe", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    build = "import sys; from setuptools.build_meta import build_editable; build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, site], cwd=clone, check=True, capture_output=True)
    with zipfile.ZipFile(next(site.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    command = [sys.executable, "-E", "-S", "-c", IMPORT, str(site)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(clone / "hf_pe" / "__init__.py")
