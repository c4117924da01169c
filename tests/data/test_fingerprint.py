"""The fingerprint of rows tells whether they are the same rows, and name the same images."""

import json
import shutil

import pytest
from PIL import Image

from hf_pe.data import DataConfig, load_examples


@pytest.fixture
def pictures(tmp_path):
    """A folder with images and a metadata file that names them."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(folder / f"{number}.png")
    rows = [{"file_name": f"{number}.png", "label": f"class {number % 2}"} for number in range(4)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def of(folder, **settings):
    config = DataConfig(train=str(folder), image="image", label="label", eval_fraction=0.5, **settings)
    return load_examples(config).fingerprint


def test_an_image_that_was_exchanged_makes_another_fingerprint(pictures):
    before = of(pictures)
    assert of(pictures) == before
    Image.new("RGB", (8, 8), (0, 255, 0)).save(pictures / "2.png")
    assert of(pictures) != before


def test_the_same_images_elsewhere_have_the_same_fingerprint(pictures, tmp_path):
    assert of(shutil.copytree(pictures, tmp_path / "elsewhere")) == of(pictures)


def test_what_is_trained_on_and_what_is_evaluated_on_are_told_apart(tmp_path):
    for name, rows in {"a": "one\ntwo", "b": "three", "c": "one", "d": "two\nthree"}.items():
        (tmp_path / f"{name}.txt").write_text(rows + "\n")

    def split(train, evaluation):
        config = DataConfig(train=str(tmp_path / f"{train}.txt"), eval=str(tmp_path / f"{evaluation}.txt"))
        return load_examples(config).fingerprint

    assert split("a", "b") != split("c", "d")
