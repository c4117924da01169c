import pytest
import torch

from hf_pe.prune.criteria import CRITERIA, Evidence

ROWS = torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]])


def evidence(scale=1.0, second_moment=(1.0, 4.0, 0.0)):
    return Evidence([ROWS * scale], ROWS.T * scale, torch.tensor(second_moment))


@pytest.mark.parametrize("name", CRITERIA)
def test_one_score_per_unit_never_negative_and_blind_to_scale(name):
    scores = CRITERIA[name].score(evidence())
    assert scores.shape == (3,)
    assert (scores >= 0).all()
    assert torch.equal(scores.argsort(), CRITERIA[name].score(evidence(7.0)).argsort())


@pytest.mark.parametrize("name", CRITERIA)
def test_a_permutation_of_units_permutes_the_scores(name):
    order = torch.tensor([2, 0, 1])
    given = evidence()
    turned = Evidence([given.weights[0][order]], given.consumer[:, order], given.second_moment[order])
    assert torch.equal(CRITERIA[name].score(turned), CRITERIA[name].score(given)[order])


def test_by_hand():
    assert CRITERIA["magnitude"].score(evidence()).tolist() == [5, 1, 10]
    assert CRITERIA["activation_weight"].score(evidence()).tolist() == [5, 2, 0]
