import logging

import hf_pe  # noqa: F401


def test_of_bitsandbytes_only_the_message_on_a_missing_cpu_kernel_is_left_out(caplog):
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    with caplog.at_level(logging.WARNING, logger="bitsandbytes"):
        logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please", "offline")
        logger.warning("Something else")
    assert caplog.messages == ["Something else"]
