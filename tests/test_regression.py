"""Ridge regression from moments: sums are those of the rows, the ridge is the one that generalises."""

import pytest
import torch

from hf_pe.regression import DEFAULT_RIDGE, Folds, Moments, fit, pooled


def test_folds_add_up():
    rows, more = torch.randn(7, 3), torch.randn(7, 2)
    weight = torch.rand(7)
    whole = Moments.of(rows, more, weight)
    parts = pooled([Moments.of(rows[:4], more[:4], weight[:4]), Moments.of(rows[4:], more[4:], weight[4:])])
    for key, value in vars(whole).items():
        assert torch.allclose(torch.as_tensor(value), torch.as_tensor(vars(parts)[key]), atol=1e-5)


def test_batches_go_into_their_folds_and_may_go_on_coming():
    rows, more, weight = torch.randn(9, 70), torch.randn(9, 2), torch.rand(9)
    folds = Folds()
    folds.add(1, rows[:3], more[:3], weight[:3])
    assert len(folds.moments()) == 1
    folds.add(2, rows[3:6], more[3:6], weight[3:6])
    folds.add(3, rows[6:], more[6:], weight[6:])
    odd = [0, 1, 2, 6, 7, 8]
    for moments, part in zip(folds.moments(), (odd, [3, 4, 5]), strict=True):
        x, y, w = rows[part], more[part], weight[part, None]
        expected = Moments((w * x).T @ x, (w * x).T @ y, (w * x).sum(0), (w * y).sum(0), float(w.sum()))
        for key, value in vars(expected).items():
            assert torch.allclose(torch.as_tensor(value), torch.as_tensor(vars(moments)[key]), atol=1e-5)


@pytest.mark.parametrize("width", [1, 64, 130, 1000])
def test_a_gram_matrix_made_in_strips_is_the_whole(width):
    x = torch.randn(50, width)
    gram = Moments.of(x).xx
    assert torch.allclose(gram, x.T @ x, atol=1e-3)
    assert torch.equal(gram, gram.T)


@pytest.mark.parametrize(("noise", "expected"), [(0.0, "weak"), (30.0, "strong")])
def test_the_ridge_follows_the_noise(noise, expected):
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 20, generator=draw)
    outputs = inputs @ torch.randn(20, 3, generator=draw) + noise * torch.randn(60, 3, generator=draw)
    folds = [Moments.of(inputs[i::2], outputs[i::2]) for i in range(2)]
    regression = fit(folds, bias=False)
    assert (regression.ridge >= 1) == (expected == "strong")


def test_the_chosen_ridge_generalises_better_than_next_to_none():
    draw = torch.Generator().manual_seed(1)
    true = torch.randn(40, 3, generator=draw)

    def sample(count):
        x = torch.randn(count, 40, generator=draw)
        return x, x @ true + 5 * torch.randn(count, 3, generator=draw)

    few, unseen = sample(60), sample(2000)
    folds = [Moments.of(few[0][i::2], few[1][i::2]) for i in range(2)]
    regression = fit(folds, bias=False)
    plain = torch.linalg.lstsq(few[0], few[1]).solution
    error = lambda move: float((unseen[0] @ move - unseen[1]).square().mean())  # noqa: E731
    assert error(regression.move) < 0.9 * error(plain)


def test_inputs_that_hardly_vary_are_fitted_all_the_same():
    draw = torch.Generator().manual_seed(2)
    inputs = 1 + 1e-4 * torch.randn(200, 30, generator=draw)
    folds = [Moments.of(inputs[i::2], inputs[i::2, :2]) for i in range(2)]
    regression = fit(folds, bias=True)
    assert torch.isfinite(regression.move).all()
    assert torch.allclose(inputs @ regression.move + regression.shift, inputs[:, :2], atol=1e-3)


def test_an_input_that_seldom_speaks_is_held_back_less_by_its_size():
    draw = torch.Generator().manual_seed(3)
    inputs = torch.randn(400, 20, generator=draw)
    inputs[:, 0] *= 0.3 * (torch.arange(400) % 40 == 0)
    outputs = inputs @ torch.ones(20, 3) + 3 * torch.randn(400, 3, generator=draw)
    folds = [Moments.of(inputs[:200], outputs[:200]), Moments.of(inputs[200:], outputs[200:])]
    alike, half, own = (fit(folds, bias=False, by_size=p).move[0].abs().mean() for p in (0.0, 0.5, 1.0))
    assert alike < half < own


def test_one_fold_alone_takes_the_standing_ridge():
    inputs, weight = torch.randn(500, 6), torch.randn(4, 6)
    assert fit([Moments.of(inputs, inputs @ weight.T)], bias=True).ridge == DEFAULT_RIDGE


def test_a_fold_that_no_token_reached_changes_nothing():
    inputs, weight = torch.randn(500, 6), torch.randn(4, 6)
    one = Moments.of(inputs, inputs @ weight.T)
    plain, with_empty = (
        fit(folds, bias=True) for folds in ([one], [one, Moments.of(inputs[:0], inputs[:0] @ weight.T)])
    )
    assert with_empty.ridge == plain.ridge and torch.equal(with_empty.move, plain.move)
