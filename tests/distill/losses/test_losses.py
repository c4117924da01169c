"""Properties every loss has: zero when the student equals the teacher, never negative, padding without a say."""

import re
from pathlib import Path

import pytest
import torch

from hf_pe.distill.attention import Attention
from hf_pe.distill.losses.attention import relations
from hf_pe.distill.losses.embeddings import cosine, mse, similarity
from hf_pe.distill.losses.hidden import hidden
from hf_pe.distill.losses.logits import TopKLogits, agrees, jsd, kl, reverse_kl
from hf_pe.distill.losses.registry import LOSSES, LossSettings

DISTILLATION = [name for name in LOSSES if name != "task"]


def signals(seed, tokens=5):
    draw = torch.Generator().manual_seed(seed)
    mask = torch.ones(3, tokens)
    mask[0, 3:] = 0
    return {
        "logits": torch.randn(3, tokens, 7, generator=draw, requires_grad=True),
        "embeddings": torch.randn(3, 8, generator=draw, requires_grad=True),
        "features": torch.randn(3, tokens, 8, generator=draw, requires_grad=True),
        "hidden_states": tuple(torch.randn(3, tokens, 8, generator=draw, requires_grad=True) for _ in range(4)),
        "attentions": [attention(draw, mask) for _ in range(2)],
        "mask": mask,
        "tokens": mask,
    }


def attention(draw, mask, heads=4, size=3):
    parts = [torch.randn(3, heads, mask.shape[1], size, generator=draw, requires_grad=True) for _ in range(3)]
    allowed = mask.bool()[:, None, None, :]
    weights = (parts[0] @ parts[1].transpose(2, 3)).masked_fill(~allowed, -1e30).softmax(-1)
    return Attention(*parts, weights, allowed.expand(-1, -1, mask.shape[1], -1))


@pytest.mark.parametrize("name", DISTILLATION)
def test_zero_when_equal_and_positive_when_not(name):
    compute = LOSSES[name].compute
    assert compute(signals(0), signals(0), LossSettings(2.0)).item() == pytest.approx(0, abs=1e-6)
    for seed in range(1, 6):
        assert compute(signals(seed), signals(0), LossSettings(2.0)) > 1e-4


def detached(states):
    return [Attention(*(t.detach() for t in s)) if isinstance(s, Attention) else s.detach() for s in states]


@pytest.mark.parametrize("name", DISTILLATION)
def test_gradients_reach_the_student_only(name):
    student, teacher = signals(1), signals(0)
    with torch.no_grad():
        frozen = {k: v.detach() if isinstance(v, torch.Tensor) else detached(v) for k, v in teacher.items()}
    LOSSES[name].compute(student, frozen, LossSettings(2.0)).backward()
    leaves = [*student["hidden_states"][1:], student["logits"], student["embeddings"], student["attentions"][-1].query]
    leaves += [student["features"]]
    assert any(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jsd", "dist", "hidden", "features", "attention", "relations"])
def test_padding_has_no_say(name):
    student, teacher = signals(1), signals(0)
    before = LOSSES[name].compute(student, teacher, LossSettings(1.0))
    with torch.no_grad():
        student["logits"][0, 3:] += 100
        student["features"][0, 3:] += 100
        for states in student["hidden_states"]:
            states[0, 3:] += 100
        for layer in student["attentions"]:
            for part in layer[:3]:
                part[0, :, 3:] += 100
            layer.weights[0, :, 3:] = 1
    assert torch.equal(before, LOSSES[name].compute(student, teacher, LossSettings(1.0)))


def test_kl_is_the_textbook_formula():
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.5]])
    p, q = (torch.softmax(x / 4, -1) for x in (teacher, student))
    assert float(kl(student, teacher, 4.0)) == pytest.approx(float(16 * (p * (p / q).log()).sum()), rel=1e-4)


def test_divergences_turn_into_each_other():
    """GKD, section 3: the generalised divergence over beta tends to forward KL, over 1 - beta to reverse KL."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 7, generator=draw, dtype=torch.float64).unbind()
    small = 1e-4
    torch.testing.assert_close(
        jsd(student, teacher, 1.0, small) / small, kl(student, teacher, 1.0), rtol=5e-2, atol=5e-2
    )
    torch.testing.assert_close(
        jsd(student, teacher, 1.0, 1 - small) / small, reverse_kl(student, teacher, 1.0), rtol=5e-2, atol=5e-2
    )
    torch.testing.assert_close(kl(student, teacher, 2.0), reverse_kl(teacher, student, 2.0))
    torch.testing.assert_close(jsd(student, teacher, 2.0), jsd(teacher, student, 2.0))


def test_correlation_does_not_mind_scale_and_shift_of_the_probabilities():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=draw)
    one = {"logits": logits}
    assert LOSSES["dist"].compute(one, {"logits": logits + 3}, LossSettings(1.0)) == pytest.approx(0, abs=1e-6)
    single = {"logits": logits[:1]}
    assert LOSSES["dist"].compute(single, {"logits": -logits[:1]}, LossSettings(1.0)) > 0.5


def test_embedding_losses_by_hand():
    one, other = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert cosine(one, other) == pytest.approx(0.5)
    assert mse(one, other) == pytest.approx(1.0)
    assert similarity(one, other) == pytest.approx(0.5)


def test_widths_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"expected equal widths, got 4 .* and 8"):
        hidden((torch.zeros(1, 2, 4),), (torch.zeros(1, 2, 8),), torch.ones(1, 2))


def test_pairs_and_projections_are_used():
    student = tuple(torch.full((1, 2, 4), float(i)) for i in range(3))
    teacher = tuple(torch.full((1, 2, 4), float(i + 1)) for i in range(5))
    mask = torch.ones(1, 2)
    value = hidden(student, teacher, mask, [(0, 0), (2, 1)])
    assert value == pytest.approx((1.0 + 0.0) / 2)
    wide = tuple(torch.cat([t, t], -1) for t in teacher)
    double = torch.nn.Linear(4, 8, bias=False)
    double.weight.data = torch.eye(4).repeat(2, 1)
    assert hidden(student, wide, mask, [(2, 1)], [double]).detach() == pytest.approx(0)


def test_feature_maps_are_compared_on_the_coarser_grid():
    draw = torch.Generator().manual_seed(0)
    fine, coarse = torch.randn(2, 3, 8, 8, generator=draw), torch.randn(2, 3, 4, 4, generator=draw)
    own = fine.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    by_hand = (own - coarse).square().mean() / coarse.square().mean()
    assert hidden((fine,), (coarse,), None) == pytest.approx(float(by_hand), rel=1e-5)
    last = (fine.movedim(1, -1),)
    assert hidden(last, (coarse,), None) == pytest.approx(float(by_hand), rel=1e-5), "channels last"
    assert hidden(last, (fine,), None) == pytest.approx(0, abs=1e-9)


def test_relations_need_neither_the_same_width_nor_the_same_heads():
    mask = torch.ones(3, 5)
    draw = torch.Generator().manual_seed(0)
    student, teacher = attention(draw, mask, heads=2, size=3), attention(draw, mask, heads=4, size=6)
    assert relations(student, teacher, mask) > 1e-3


def test_relations_across_packed_sequences_have_no_say():
    draw = torch.Generator().manual_seed(0)
    mask = torch.ones(3, 6)
    allowed = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)).tril().bool().expand(3, 1, 6, 6)
    student, teacher = (attention(draw, mask)._replace(allowed=allowed) for _ in range(2))
    first = torch.ones(3, 6)
    first[:, 3:] = 0
    before = relations(student, teacher, first)
    with torch.no_grad():
        student.query[:, :, 3:] += 5
        student.key[:, :, 3:] *= 3
    torch.testing.assert_close(relations(student, teacher, first), before)


def test_all_classes_kept_are_the_whole_distribution():
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 9, generator=draw).unbind()
    for name in ("kl", "reverse_kl", "jsd"):
        whole = LOSSES[name].by_position(student, teacher, None, LossSettings(2.0))
        for k, close in ((9, 1e-4), (8, 1e-4), (3, None)):
            logs, classes = torch.log_softmax(teacher / 2, -1).topk(k)
            part = LOSSES[name].by_position(student, TopKLogits(logs, classes), None, LossSettings(2.0))
            assert (part <= whole + 1e-4).all()  # joining classes loses information, never adds any
            if close:
                torch.testing.assert_close(part, whole, rtol=1e-3, atol=close)
        own = TopKLogits(*torch.log_softmax(student / 2, -1).topk(3))
        assert LOSSES[name].by_position(student, own, None, LossSettings(2.0)).abs().max() < 1e-5
    top = TopKLogits(*torch.log_softmax(teacher, -1).topk(3))
    assert torch.equal(agrees(student, top), agrees(student, teacher))


def test_rows_that_pad_one_vocabulary_have_no_say():
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 9, generator=draw).unbind()
    padded = torch.cat([teacher, torch.full((4, 3), 50.0)], -1)
    for name in ("kl", "reverse_kl", "jsd"):
        torch.testing.assert_close(
            LOSSES[name].by_position(student, padded, None, LossSettings(2.0)),
            LOSSES[name].by_position(student, teacher, None, LossSettings(2.0)),
        )


def test_the_table_of_the_documentation_lists_each_loss_with_its_paper():
    text = (Path(__file__).parents[3] / "docs" / "distillation.md").read_text("utf-8")
    table = text[text.index("| loss | compares |") :].split("\n\n")[0].splitlines()[2:]
    rows = {name: row for row in table for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert list(rows) == list(LOSSES)
    assert all(loss.reference in rows[name] for name, loss in LOSSES.items())
