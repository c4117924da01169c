import torch

from hf_pe.anatomy import Anatomy, Axis, Layout, Slot


def test_plain_blocks_and_chunks_point_at_the_right_places():
    units = torch.tensor([0, 2])
    assert Layout().positions(units, 4).tolist() == [0, 2]
    assert Layout((3,)).positions(units, 4).tolist() == [0, 1, 2, 6, 7, 8]
    assert Layout((1, 1)).positions(units, 4).tolist() == [0, 2, 4, 6]
    assert Layout((2, 1)).positions(units, 4).tolist() == [0, 1, 4, 5, 8, 10]
    assert Layout((1, 1, 1), blocks=2).positions(units, 4).tolist() == [0, 2, 4, 6, 8, 10]
    assert Layout((1, 1, 1), blocks=2).part_positions(1, 4).tolist() == [2, 3, 8, 9]


def test_a_share_stands_for_all_parts_and_blocks_have_one_each():
    """Inputs of a convolution in two groups; keys of two heads, each shared by two query heads of two places."""
    assert Layout(share=2).positions(torch.tensor([0, 2, 3, 5]), 6).tolist() == [0, 2]
    assert Layout(share=2).by_unit(torch.arange(3.0)[:, None], 6).flatten().tolist() == [0, 1, 2, 0, 1, 2]
    keys = Layout(blocks=2, share=2)
    assert keys.length(8) == 4
    assert keys.positions(torch.tensor([4, 5, 6, 7]), 8).tolist() == [2, 3]
    assert keys.by_unit(torch.arange(4.0)[:, None], 8).flatten().tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


def test_by_unit_puts_the_places_of_a_unit_together():
    rows = torch.arange(12.0)[:, None]
    assert Layout((2, 1)).by_unit(rows, 4).tolist() == [[0, 1, 8], [2, 3, 9], [4, 5, 10], [6, 7, 11]]


def test_an_axis_is_found_by_its_name_with_and_without_the_tower():
    slots = (Slot("a.0.w", 0, "a.0"), Slot("a.1.w", 0, "a.1"))
    one, two = Axis("encoder.ffn", "x", 4, slots), Axis("decoder.ffn", "y", 4, slots)
    anatomy = Anatomy((one, two), 10)
    assert anatomy.named("ffn") == (one, two)
    assert anatomy.named("decoder.ffn") == (two,)
    assert one.kind.name == "ffn"
    assert one.groups == ("a.0", "a.1")
    assert one.in_group("a.1") == slots[1:]


def test_parts_that_are_alike_keep_the_same_places():
    axis = Axis("hidden", "x", 6, (Slot("w", 0, "model"), Slot("c", 1, "model", layout=Layout(share=2))))
    assert axis.size_multiple == axis.equal_parts("model") == 2
    assert axis.top_units("model", torch.tensor([5.0, 0.0, 1.0, 0.0, 2.0, 7.0]), 4) == [0, 2, 3, 5]
    assert axis.first_units("model", 4) == [0, 1, 3, 4]


def test_each_head_keeps_the_same_number_of_units():
    axis = Axis("hidden", "x", 6, (Slot("w", 0, "model"), Slot("q", 0, "attention", subgroups=2)))
    scores = torch.tensor([5.0, 6.0, 7.0, 1.0, 2.0, 3.0])
    assert axis.size_multiple == 2
    assert axis.top_units("model", scores, 4) == [0, 1, 2, 5]
    assert axis.top_units("attention", scores, 4) == [1, 2, 4, 5]
    assert axis.first_units("attention", 4) == [0, 1, 3, 4]
