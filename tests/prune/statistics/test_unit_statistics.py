import torch

from hf_pe.anatomy import EVERYWHERE, Axis, Layout, Slot
from hf_pe.calibration.gradients import Gradients
from hf_pe.prune.statistics.unit_statistics import unit_statistics
from hf_pe.regression import Moments

WIDTH = 4


def reader(name, layout=None):
    return Slot(name, 1, EVERYWHERE, consumes=True, layout=layout or Layout())


def test_two_widths_side_by_side_are_read_as_by_a_map_each():
    draw = torch.Generator().manual_seed(0)
    one, both = torch.randn(3, WIDTH, generator=draw), torch.randn(5, 2 * WIDTH, generator=draw)
    inputs, felt = torch.randn(20, 2 * WIDTH, generator=draw), torch.randn(9, 5, generator=draw)
    gates = torch.randn(6, 2 * WIDTH, generator=draw)
    left, right = slice(0, WIDTH), slice(WIDTH, None)
    outputs = felt.T @ felt
    joined = unit_statistics(
        {"one": one, "both": both},
        Axis("hidden", "hidden_size", WIDTH, (reader("one"), reader("both", Layout((1, 1))))),
        EVERYWHERE,
        2,
        {"one": [Moments.of(inputs[:, left])], "both": [Moments.of(inputs)]},
        {"one": Gradients(gates[:, left], torch.eye(3)), "both": Gradients(gates, outputs)},
    )
    apart = unit_statistics(
        {"one": one, "first": both[:, left], "second": both[:, right]},
        Axis("hidden", "hidden_size", WIDTH, (reader("one"), reader("first"), reader("second"))),
        EVERYWHERE,
        2,
        {
            "one": [Moments.of(inputs[:, left])],
            "first": [Moments.of(inputs[:, left])],
            "second": [Moments.of(inputs[:, right])],
        },
        {
            "one": Gradients(gates[:, left], torch.eye(3)),
            "first": Gradients(gates[:, left], outputs),
            "second": Gradients(gates[:, right], outputs),
        },
    )
    assert torch.allclose(joined.gram, apart.gram, atol=1e-5)
    assert torch.allclose(joined.gradients, apart.gradients, atol=1e-5)
    here, there = (statistics.consumer.squeeze(2).T @ statistics.consumer.squeeze(2) for statistics in (joined, apart))
    assert torch.allclose(here, there, atol=1e-4)
