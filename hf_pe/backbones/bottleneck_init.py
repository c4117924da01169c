"""A random convolutional body fitted to another model's feature maps: block after block, in closed form, one pass."""

from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from hf_pe.progress import advance
from hf_pe.regression import FOLDS, fit_rows
from hf_pe.stitching import BATCH
from hf_pe.tasks import Batch, TaskData, as_map, as_read_by

ROWS = 4096
"""Calibration images that are looked at, at most."""
FEWEST = 32
"""Of fewer images nothing is learned."""
HELD = 2**28
"""Numbers that the largest feature map of all of them together may have: they flow through the body at once."""
LEAST = 1e-3
"""Directions that vary by a smaller share of the first one are noise."""
SPREAD = 0.3
"""Standard deviation of a smoothing kernel, as a share of its side."""

Call = tuple[nn.Module, torch.Tensor, torch.Tensor]
"""A module, what it was given first and what it gave."""


class Bottleneck(NamedTuple):
    """A pointwise convolution to fewer channels with a batch norm and no activation after it (Sandler et al. 2018,
    arXiv:1801.04381, section 3.2).

    Attributes:
        conv, norm: the two.
        block: the module whose input is added to what they give, if any.
        grid: height and width of their map.
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    block: nn.Module | None
    grid: tuple[int, int]


@torch.no_grad()
def grow_(old: PreTrainedModel, new: PreTrainedModel, data: TaskData, seed: int = 0) -> int:
    """Fit the linear bottlenecks of a random body to the original's feature maps, on the calibration rows.

    All rows flow through the body once. Where they reach a bottleneck it becomes the reduced-rank regression of its
    inputs on the original's map at the same share of the depth, averaged to its grid (Izenman 1975): the inputs'
    directions that tell most of that map, as many as it has channels. One whose block adds its input is fitted to what
    the map has left. Batch norms scale each channel by how much of it is explained. Depthwise kernels, and those that
    see the image, begin as what tells something of any image: a smoothing one, its two derivatives and the identity,
    drawn by channel. Running statistics of batch norms are not set.

    Args:
        old: whose hidden states are wanted; stays as it is.
        new: random; changed in place, left in evaluation mode.
        data: its calibration rows go through both.
        seed: of the kernels.

    Returns:
        How many bottlenecks were fitted. Where it is 0 (the body has none, the original gives no maps of its layers, or
        there are hardly any rows) nothing has changed.
    """
    new.eval()
    if len(data.calibration) < FEWEST:
        return 0
    first = next(data.batches(data.calibration, 2))
    found, largest = bottlenecks(new, first)
    ends = [number for number, each in enumerate(found) if each.block is None]
    depth = len(_maps(old, first))
    if not ends or depth < 2:
        return 0
    ends, found = [number - ends[0] for number in ends], found[ends[0] :]
    runs = zip(ends, [*ends[1:], len(found)], strict=True)
    there = {here: 1 + round((after - 1) / max(len(found) - 1, 1) * (depth - 2)) for here, after in runs}
    rows = data.calibration.select(range(min(ROWS, len(data.calibration), max(HELD // largest, BATCH))))
    batches: list[Batch] = []
    wanted: dict[int, list[torch.Tensor]] = {here: [] for here in ends}
    for number, batch in enumerate(data.batches(rows, BATCH)):
        maps = _maps(old, batch)
        for here, layer in there.items():
            height, width = (min(sides) for sides in zip(maps[layer].shape[2:], found[here].grid, strict=True))
            wanted[here].append(functional.adaptive_avg_pool2d(maps[layer], (height, width)).to(new.device))
        batches.append(batch)
        advance("feature maps", min((number + 1) * BATCH, len(rows)), len(rows))
    kernels_(new, torch.Generator().manual_seed(seed))
    fitting = _Fitting({here: torch.cat(maps) for here, maps in wanted.items()})
    whole = {key: torch.cat([each[key] for each in batches]) for key in batches[0]}
    with ExitStack() as hooks:
        for number, each in enumerate(found):
            if each.block is not None:
                keep = partial(fitting.keep, number)
                hooks.enter_context(each.block.register_forward_pre_hook(keep))
            fit = partial(fitting.fit_, number, each)
            hooks.enter_context(each.conv.register_forward_pre_hook(fit))
        for module in new.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
        new(**as_read_by(new, whole))
    new.eval()
    return len(found)


def bottlenecks(model: PreTrainedModel, batch: Batch) -> tuple[list[Bottleneck], int]:
    """Those of a model in evaluation mode, found by what flows through it, in order; and how many numbers the largest
    feature map of an image has."""
    calls: list[Call] = []

    def note(module: nn.Module, given: Any, out: Any) -> None:
        if given and isinstance(given[0], torch.Tensor) and isinstance(out, torch.Tensor):
            calls.append((module, given[0], out))

    with ExitStack() as hooks:
        for module in model.modules():
            hooks.enter_context(module.register_forward_hook(note))
        model(**as_read_by(model, batch))
    found = [each for conv, given, out in calls if (each := _bottleneck(conv, given, out, calls)) is not None]
    return found, max((out[0].numel() for _, _, out in calls), default=1)


def kernels_(model: nn.Module, draw: torch.Generator) -> None:
    """Depthwise kernels, and those that see the image, in place: each a Gaussian, one of its first derivatives or the
    identity, of norm 1; that of the image's channels in one direction among them."""
    first = True
    for module in model.modules():
        if not isinstance(module, nn.Conv2d) or min(module.kernel_size) < 3:
            continue
        if first or module.groups == module.in_channels:
            y, x = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in module.kernel_size), indexing="ij")
            bell = torch.exp(-(x**2 + y**2) / (2 * (2 * SPREAD) ** 2))
            middle = ((x**2 + y**2) == (x**2 + y**2).min()).float()
            kinds = torch.stack([each / each.norm() for each in (bell, bell * x, bell * y, middle)])
            which = torch.randint(len(kinds), (module.out_channels,), generator=draw)
            among = torch.randn(*module.weight.shape[:2], generator=draw)
            among /= among.norm(dim=1, keepdim=True)
            module.weight.copy_(kinds[which][:, None] * among[:, :, None, None])
        first = False


class _Fitting:
    """Sets each bottleneck as the rows reach it.

    Attributes:
        wanted: maps of the original, by number of the bottleneck that is fitted to it.
        left: of the last of them in the coordinates of its bottleneck, scaled as its batch norm gives it, [places, n].
        added: what is added to what a bottleneck gives, by its number.
    """

    def __init__(self, wanted: dict[int, torch.Tensor]) -> None:
        self.wanted = wanted
        self.left = torch.zeros(0)
        self.added: dict[int, torch.Tensor] = {}

    def keep(self, number: int, module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        self.added[number] = given[0]

    def fit_(self, number: int, at: Bottleneck, module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        inputs = _places(given[0])
        if at.block is None:
            wanted = functional.interpolate(self.wanted.pop(number), at.grid, mode="bilinear")
            self._begin_(at, inputs, _places(wanted))
        else:
            self._add_(at, inputs, _places(self.added.pop(number)))

    def _begin_(self, at: Bottleneck, inputs: torch.Tensor, wanted: torch.Tensor) -> None:
        inputs, wanted = inputs - inputs.mean(0), wanted - wanted.mean(0)
        move = _regressed(inputs, wanted)
        told = inputs @ move
        turn, spread = _principal(told, at.conv.out_channels)
        turn = turn[:, spread > LEAST * spread[0]]
        weight, told, self.left = (move @ turn).T, told @ turn, wanted @ turn
        self.left /= self.left.std(0)
        at.norm.weight[: len(weight)] = (told / told.std(0) * self.left).mean(0)
        missing = at.conv.out_channels - len(weight)
        if missing:  # the original's map is narrower, or tells no more: what else varies most
            basis = torch.linalg.qr(weight.T)[0]
            inputs -= inputs @ basis @ basis.T
            weight = torch.cat([weight, _principal(inputs, missing)[0].T])
        at.conv.weight.copy_(weight[:, :, None, None])

    def _add_(self, at: Bottleneck, inputs: torch.Tensor, added: torch.Tensor) -> None:
        """Channels of which nothing is wanted give nothing yet: their scale is 0, and may learn."""
        rank = self.left.shape[1]
        missing = self.left - added[:, :rank]
        move = _regressed(inputs, missing)
        at.conv.weight[:rank] = move.T[:, :, None, None]
        at.norm.weight.zero_()
        at.norm.weight[:rank] = (inputs @ move).std(0)
        at.norm.bias[:rank] = missing.mean(0)


def _principal(rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The directions in which centred rows vary most, [width, count], and their standard deviations, falling."""
    values, vectors = torch.linalg.eigh(rows.T.double() @ rows.double())
    return vectors.flip(1)[:, :count].float(), values.flip(0)[:count].clamp_min(0).sqrt().float()


def _regressed(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """[inputs, outputs]."""
    parts = zip(x.tensor_split(4 * FOLDS), y.tensor_split(4 * FOLDS), strict=True)
    return fit_rows(parts, bias=True)[0].move


def _maps(model: PreTrainedModel, batch: Batch) -> list[torch.Tensor]:
    """Hidden states as maps [batch, width, height, width]; none where the model gives none, or some are no maps."""
    states = getattr(model.eval()(**as_read_by(model, batch), output_hidden_states=True), "hidden_states", None) or ()
    maps = [as_map(state) for state in states]
    return [m.float() for m in maps if m is not None] if all(m is not None for m in maps) else []


def _places(maps: torch.Tensor) -> torch.Tensor:
    """Rows [places, width]."""
    return maps.movedim(1, -1).flatten(0, 2).float()


def _bottleneck(conv: nn.Module, given: torch.Tensor, out: torch.Tensor, calls: list[Call]) -> Bottleneck | None:
    if not isinstance(conv, nn.Conv2d) or conv.kernel_size != (1, 1) or conv.groups != 1:
        return None
    norm, scaled = next(((m, o) for m, i, o in calls if isinstance(m, nn.BatchNorm2d) and i is out), (None, out))
    if norm is None or conv.out_channels >= conv.in_channels:
        return None
    found = Bottleneck(conv, norm, None, (out.shape[2], out.shape[3]))
    around = [call for call in calls if call[0] is not conv and any(m is conv for m in call[0].modules())]
    linear = False
    for module, entered, left in around:  # inner ones end first
        if left.shape == scaled.shape and torch.equal(left, scaled):
            linear = True
        elif left.shape == scaled.shape == entered.shape and torch.allclose(left, scaled + entered, atol=1e-5):
            return found._replace(block=module)
        else:
            return (
                found if linear and entered is not given else None
            )  # else it is a shortcut that something is added to
    return found if linear else None
