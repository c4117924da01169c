import pytest
import torch
from bitsandbytes import functional as bnb

from hf_pe.quantize.grid import nearest, refitted
from hf_pe.quantizers.bnb import BLOCK


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_nearest_is_what_bitsandbytes_rounds_to(kind):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 128, generator=draw)
    halves, state = bnb.quantize_4bit(weight, quant_type=kind, blocksize=BLOCK)
    scales = state.absmax.view(32, 2).repeat_interleave(BLOCK, 1)
    codes = nearest(weight / scales, state.code.float())
    stored_codes = torch.stack([halves >> 4, halves & 15], -1).view(32, 128)
    same = state.code[codes] == state.code[stored_codes.long()]
    assert same.float().mean() > 0.995  # but for values in the middle of two levels


def kept_error(weight, gram, codes, scales, levels):
    gap = weight - levels[codes] * scales.repeat_interleave(BLOCK, 1)
    return float(((gap @ gram) * gap).sum())


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("width", [64, 256])
def test_refitted_codes_change_outputs_far_less_than_rounding(kind, width):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(48, width, generator=draw)
    mixed = torch.randn(512, width, generator=draw) @ torch.randn(width, width, generator=draw)
    inputs = mixed * torch.logspace(0, -2, width)
    gram, levels = inputs.T @ inputs / 512, bnb.get_4bit_type(kind, device="cpu").float()
    scales = weight.view(48, -1, BLOCK).abs().amax(-1)
    plain = nearest(weight / scales.repeat_interleave(BLOCK, 1), levels)
    codes, better = refitted(weight, gram, levels, lambda s: s, BLOCK)
    assert codes.min() >= 0 and codes.max() <= 15
    assert kept_error(weight, gram, codes, better, levels) < 0.4 * kept_error(weight, gram, plain, scales, levels)


def test_weights_on_the_grid_stay_where_they_are():
    draw = torch.Generator().manual_seed(0)
    levels = bnb.get_4bit_type("nf4", device="cpu").float()
    codes = torch.randint(0, 16, (8, 128), generator=draw)
    codes[:, ::BLOCK] = 15  # the largest of each block
    weight = levels[codes] * 0.5
    refitted_codes, scales = refitted(weight, torch.eye(128), levels, lambda s: s, BLOCK)
    assert torch.equal(refitted_codes, codes)
    assert torch.allclose(scales, torch.full_like(scales, 0.5))


def test_inputs_that_are_never_there_do_no_harm():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    gram = torch.zeros(64, 64)
    gram[0, 0] = 1.0
    codes, scales = refitted(weight, gram, bnb.get_4bit_type("nf4", device="cpu").float(), lambda s: s, BLOCK)
    assert torch.isfinite(scales).all() and codes.max() <= 15
