import pytest
import torch

from hf_pe.distill import Augment


def test_nothing_asked_for_changes_nothing():
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(Augment(crop=0, flip=False).changed(images), images)


def test_images_are_shifted_and_flipped_each_by_itself_and_only_that():
    torch.manual_seed(0)
    images = torch.zeros(64, 1, 8, 8)
    images[:, :, 3, 3] = 1
    shifted = Augment(crop=0.25).changed(images)
    assert shifted.shape == images.shape
    places = shifted.nonzero()
    assert len(places) == 64, "the dot never leaves the image, and is never there twice"
    assert {int(y) for y in places[:, 2]} == {1, 2, 3, 4, 5}
    assert {int(x) for x in places[:, 3]} == {1, 2, 3, 4, 5, 6}, "3 and its mirror 4, shifted by at most 2"


def test_a_batch_keeps_all_else():
    batch = {"pixel_values": torch.randn(2, 3, 8, 8), "labels": torch.tensor([1, 2])}
    augmented = Augment().over(lambda rows: batch)([])
    assert torch.equal(augmented["labels"], batch["labels"])


@pytest.mark.parametrize("settings", [{"crop": 1.0}, {"crop": -0.1}, {"blur": 1}])
def test_wrong_values_are_refused(settings):
    with pytest.raises(ValueError, match=r"crop|blur"):
        Augment(**settings)
