import pytest
import torch

from hf_pe.distill.layer_map import last, similar, uniform


@pytest.mark.parametrize(("student", "teacher"), [(1, 1), (1, 7), (3, 7), (5, 7), (7, 7), (16, 5)])
def test_the_even_map_rises_from_first_to_last(student, teacher):
    pairs = uniform(student, teacher)
    assert len(pairs) == min(student, teacher)
    assert pairs[-1] == (student - 1, teacher - 1)
    assert student == 1 or pairs[0] == (0, 0)
    for side in zip(*pairs, strict=True):
        assert [*side] == sorted({*side})


def test_last_with_last_and_down():
    assert last(3, 7) == [(0, 4), (1, 5), (2, 6)]
    assert last(4, 4) == [(i, i) for i in range(4)]
    assert last(3, 2) == [(1, 0), (2, 1)]


def test_what_is_most_alike_goes_together():
    """The student's layers are rotated and widened copies of the teacher's 0, 1, 4 and 5."""
    draw = torch.Generator().manual_seed(0)
    teacher = [torch.randn(200, 6, generator=draw) for _ in range(6)]
    turn = torch.linalg.qr(torch.randn(9, 9, generator=draw)).Q[:6]
    student = [teacher[i] @ turn * 3 + 1 for i in (0, 1, 4, 5)]
    assert similar(student, teacher) == [(0, 0), (1, 1), (2, 4), (3, 5)]
    assert similar(teacher, student) == [(0, 0), (1, 1), (4, 2), (5, 3)]
    assert similar(student[::-1], teacher) != [(0, 5), (1, 4), (2, 1), (3, 0)]  # rising, whatever is alike
    assert similar(teacher, teacher) == [(i, i) for i in range(6)]
