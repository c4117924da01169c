"""Registers the device of device.cpp with PyTorch under the name "fake", as an accelerator.

`register` is an entry point of the group torch.backends, so that `import torch` calls it in every process that finds it.
"""

import importlib.util
import os
import sys
import types
from importlib.abc import MetaPathFinder

LIBRARY, NAME = "FAKE_ACCELERATOR_LIBRARY", "hf_pe_fake_device"
"""The variable that says where the compiled extension lies, and what it is called."""
PACKERS = {
    "transformers.quantizers.quantizer_bnb_4bit": "Bnb4BitHfQuantizer",
    "transformers.quantizers.quantizer_bnb_8bit": "Bnb8BitHfQuantizer",
}
"""What puts packed models on CUDA where there is CUDA; on this device likewise."""


def register() -> None:
    """Make the device known to PyTorch, and to transformers once it is imported."""
    import torch

    spec = importlib.util.spec_from_file_location(NAME, os.environ[LIBRARY])
    device = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(device)
    torch.utils.rename_privateuse1_backend("fake")
    torch._register_device_module("fake", _module(torch, device))
    torch.utils.generate_methods_for_privateuse1_backend()
    torch.__future__.set_swap_module_params_on_conversion(True)  # as CUDA, whose tensors take the place of the CPU's
    torch.Tensor.__deepcopy__ = _deepcopy(torch, torch.Tensor.__deepcopy__)
    sys.meta_path.insert(0, _PackOnDevice())


def _module(torch, device):
    """What torch.cuda is for CUDA."""
    module = types.ModuleType("torch.fake")
    sys.modules["torch.fake"] = module
    module.synchronizations = device.synchronizations
    constants = {
        "is_available": True, "is_initialized": True, "_is_compiled": True, "_is_in_bad_fork": False, "device_count": 1,
        "current_device": 0, "is_bf16_supported": True, "memory_allocated": 0, "max_memory_allocated": 0,
        "get_amp_supported_dtype": [torch.bfloat16, torch.float16],
    }  # fmt: skip
    for name, value in constants.items():
        setattr(module, name, lambda *_, value=value, **__: value)
    for name in ("set_device", "manual_seed", "manual_seed_all", "set_rng_state", "set_rng_state_all", "empty_cache",
                 "synchronize", "reset_peak_memory_stats"):  # fmt: skip
        setattr(module, name, lambda *_, **__: None)
    module.get_rng_state = lambda *_, **__: torch.get_rng_state()
    module.get_rng_state_all = lambda: [torch.get_rng_state()]
    return module


def _deepcopy(torch, original):
    """As CUDA tensors are copied; torch copies those of unknown devices through NumPy."""

    def copied(self, memo):
        if type(self) is not torch.Tensor or self.device.type != "fake":
            return original(self, memo)
        if id(self) not in memo:
            memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
        return memo[id(self)]

    return copied


class _PackOnDevice(MetaPathFinder):
    """Puts packed models on the device where no device is named, as transformers does on CUDA."""

    def find_spec(self, name, path=None, target=None):
        if name not in PACKERS:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            packer = getattr(module, PACKERS[name])
            packer.update_device_map = lambda self, device_map: {"": "fake:0"} if device_map is None else device_map

        spec.loader.exec_module = exec_module
        return spec
