import pytest
import torch

from hf_pe.prune.criteria import CRITERIA, UnitStatistics, obs

ROWS = torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]])
SLOPES = torch.tensor([[1.0, -2.0, 0.0], [-3.0, 0.0, 0.0]])
OUTPUTS = torch.tensor([[1.0, 0.5], [0.5, 2.0]])


def unit_statistics(scale=1.0, second_moments=(1.0, 4.0, 0.0), keep=1):
    return UnitStatistics(
        [ROWS * scale], ROWS.T[:, :, None] * scale, keep, torch.tensor(second_moments).diag(), SLOPES, OUTPUTS
    )


def turned(given, order):
    return UnitStatistics(
        [given.weights[0][order]],
        given.consumer[:, order],
        given.keep,
        given.gram[order][:, order],
        given.gradients[:, order],
        given.outputs,
    )


@pytest.mark.parametrize("name", CRITERIA)
def test_one_score_per_unit_never_negative(name):
    scores = CRITERIA[name].score(unit_statistics())
    assert scores.shape == (3,)
    assert (scores >= 0).all()


@pytest.mark.parametrize("name", CRITERIA)
def test_blind_to_the_scale_of_weights(name):
    assert torch.equal(
        CRITERIA[name].score(unit_statistics()).argsort(), CRITERIA[name].score(unit_statistics(7.0)).argsort()
    )


@pytest.mark.parametrize("name", CRITERIA)
def test_a_permutation_of_units_permutes_the_scores(name):
    order = torch.tensor([2, 0, 1])
    given = unit_statistics()
    assert torch.allclose(CRITERIA[name].score(turned(given, order)), CRITERIA[name].score(given)[order])


def test_by_hand():
    assert CRITERIA["magnitude_l2"].score(unit_statistics()).tolist() == [5, 1, 10]
    assert CRITERIA["activation_weight"].score(unit_statistics()).tolist() == [5, 2, 0]
    assert CRITERIA["taylor"].score(unit_statistics()).tolist() == [2, 1, 0]
    assert CRITERIA["fisher"].score(unit_statistics()).tolist() == [2.5, 1, 0]


def lost(consumer, gram, kept):
    """Squared error of the output after the kept inputs have taken over what they can."""
    gone = [i for i in range(len(gram)) if i not in kept]
    rest = gram[gone][:, gone] - gram[gone][:, kept] @ torch.linalg.solve(gram[kept][:, kept], gram[kept][:, gone])
    return float(torch.trace(consumer[:, gone] @ rest @ consumer[:, gone].T))


@pytest.mark.parametrize("places", [1, 2])
def test_obs_removes_what_others_can_stand_in_for(places):
    draw = torch.Generator().manual_seed(0)
    units, outputs = 8, 5
    inputs = torch.randn(400, units * places, generator=draw)
    inputs[:, places : 2 * places] = inputs[:, :places] + 0.01 * inputs[:, places : 2 * places]  # unit 1 copies 0
    gram = inputs.T @ inputs / 400
    consumer = torch.randn(outputs, units, places, generator=draw)
    consumer[:, :2] *= 3  # both loud, one of them needless

    def kept(name):
        scores = CRITERIA[name].score(UnitStatistics([ROWS], consumer, units - 1, gram))
        chosen = sorted(scores.topk(units - 1).indices.tolist())
        return [u * places + p for u in chosen for p in range(places)]

    flat = consumer.flatten(1)
    assert len({0, places} & set(kept("obs"))) == 1
    assert lost(flat, gram, kept("obs")) < 0.1 * lost(flat, gram, kept("activation_weight"))


def test_obs_costs_are_those_of_least_squares():
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(300, 6, generator=draw) @ (torch.eye(6) + 0.3 * torch.randn(6, 6, generator=draw))
    gram, consumer = inputs.T @ inputs / 300, torch.randn(4, 6, 1, generator=draw)
    scores = obs(UnitStatistics([ROWS], consumer, 5, gram))
    true = torch.tensor([lost(consumer.flatten(1), gram, [i for i in range(6) if i != gone]) for gone in range(6)])
    assert scores.argmin() == true.argmin()


def test_surgeon_spares_what_the_loss_feels():
    draw = torch.Generator().manual_seed(0)
    gram, consumer = torch.eye(4), torch.zeros(2, 4, 1)
    consumer[0, :2, 0], consumer[1, 2:, 0] = 1.1, 1.0  # the first output is fed by louder units
    given = UnitStatistics(
        [torch.randn(4, 2, generator=draw)], consumer, 2, gram, outputs=torch.diag(torch.tensor([0.1, 9.0]))
    )
    assert set(CRITERIA["obs"].score(given).topk(2).indices.tolist()) == {0, 1}
    assert set(CRITERIA["obs_kfac"].score(given).topk(2).indices.tolist()) == {2, 3}
