"""Runs the cases of on_device.py in a process of its own that has an accelerator: a device changes a whole process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ENTRY_POINT = "[torch.backends]\nfake = fake_accelerator:register\n"


def compiled() -> str:
    """The compiled extension; made once by torch, in its own cache."""
    if shutil.which(os.environ.get("CXX", "c++")) is None or shutil.which("ninja") is None:
        pytest.skip("needs a C++ compiler and ninja to compile the fake accelerator")
    from torch.utils.cpp_extension import load

    source = str(HERE / "device.cpp")
    return load("hf_pe_fake_device", [source], extra_cflags=["-O0", "-g0"], is_python_module=False)


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Variables under which every process has the device, as if its backend were installed."""
    backend = tmp_path / "site"
    (backend / "fake_accelerator-1.dist-info").mkdir(parents=True)
    (backend / "fake_accelerator-1.dist-info" / "entry_points.txt").write_text(ENTRY_POINT, "utf-8")
    (backend / "fake_accelerator-1.dist-info" / "METADATA").write_text("Name: fake_accelerator\nVersion: 1\n", "utf-8")
    shutil.copy(HERE / "fake_accelerator.py", backend)
    root = str(HERE.parents[1])
    return {
        **os.environ,
        "FAKE_ACCELERATOR_LIBRARY": compiled(),
        "PYTHONPATH": os.pathsep.join([str(backend), root]),
        "ACCELERATE_TORCH_DEVICE": "fake:0",
        "TORCH_COMPILE_DISABLE": "1",  # bitsandbytes compiles what it has no kernels for
    }


@pytest.mark.slow
def test_every_recipe_runs_on_an_accelerator(environment):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "on_device.py")],
        env={name: value for name, value in environment.items() if not name.startswith("PYTEST_XDIST")},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
