"""A container's limit counts where it is below the machine's memory."""

from types import SimpleNamespace

import pytest
from transformers import LlamaConfig, LlamaModel

from hf_pe import machine_memory
from hf_pe.checkpoints.config_checks import require_memory
from hf_pe.errors import UsageError
from hf_pe.machine_memory import all_memory, available_memory

GB = 10**9
VERSION_1 = {"group": "4:memory:/pods/one\n1:cpu:/\n0::/\n", "memory/pods/memory.limit_in_bytes": f"{6 * GB}\n",
             "memory/pods/one/memory.limit_in_bytes": "9223372036854771712\n",
             "memory/pods/memory.usage_in_bytes": f"{3 * GB}\n",
             "memory/pods/memory.stat": f"cache 7\ntotal_inactive_file {GB}\n"}  # fmt: skip
VERSION_2 = {"group": "0::/\n", "memory.max": f"{6 * GB}\n", "memory.current": f"{3 * GB}\n", "memory.swap.max": "0\n",
             "memory.stat": f"anon 5\ninactive_file {GB}\n"}  # fmt: skip
NO_LIMIT = {"group": "0::/\n", "memory.max": "max\n"}


@pytest.fixture
def with_groups(tmp_path, monkeypatch):
    """Lays out the files of control groups on a machine of 64 GB, of which 32 are free, and 8 GB of swap."""

    def lay_out(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(machine_memory, "GROUPS", tmp_path)
        monkeypatch.setattr(machine_memory, "OWN", tmp_path / "group")
        memory = SimpleNamespace(total=64 * GB, available=32 * GB)
        monkeypatch.setattr(machine_memory.psutil, "virtual_memory", lambda: memory)
        monkeypatch.setattr(machine_memory.psutil, "swap_memory", lambda: SimpleNamespace(total=8 * GB))

    return lay_out


@pytest.mark.parametrize(
    ("files", "whole", "available"),
    [(VERSION_1, 14, 4), (VERSION_2, 6, 4), (NO_LIMIT, 72, 32), ({}, 72, 32), ({"group": "0::/../x\nno"}, 72, 32)],
    ids=["version 1", "version 2", "no limit", "no groups", "elsewhere"],
)
def test_the_lower_of_machine_and_container_counts(with_groups, files, whole, available):
    with_groups(files)
    assert (all_memory(), available_memory()) == (whole * GB, available * GB)


def test_a_model_larger_than_the_container_is_refused(with_groups, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with_groups(NO_LIMIT)
    require_memory(LlamaConfig(), LlamaModel, "it")  # 26 GB
    with_groups(VERSION_2)
    with pytest.raises(UsageError, match=r"6 GB of memory in all \(less where a container limits it"):
        require_memory(LlamaConfig(), LlamaModel, "it")
