"""A small .gguf file to test on."""

import numpy as np
import pytest


def gguf_file(path, kind="F32"):
    """Write a Llama of one layer whose matrices are stored as `kind`. Returns the path."""
    gguf = pytest.importorskip("gguf")
    stored = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(96)
    random = np.random.default_rng(0)
    shapes = {"attn_q": 64, "attn_k": 32, "attn_v": 32, "attn_output": 64, "ffn_gate": 128, "ffn_up": 128}
    matrices = {f"blk.0.{name}.weight": (rows, 64) for name, rows in shapes.items()}
    matrices |= {"blk.0.ffn_down.weight": (64, 128), "token_embd.weight": (96, 64), "output.weight": (96, 64)}
    for name, shape in matrices.items():
        values = random.normal(size=shape).astype(np.float32) / 8
        writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        writer.add_tensor(name, np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)
