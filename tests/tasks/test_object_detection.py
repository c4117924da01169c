"""Detection: boxes against boxes as COCO counts them, and detectors of several kinds."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForObjectDetection,
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DetrImageProcessorPil,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessorPil,
)

from hf_pe import BackboneSwap, Distillation, compress
from hf_pe.data import DataConfig, load_examples, load_for_evaluation
from hf_pe.errors import UsageError
from hf_pe.recipe import StageState
from hf_pe.tasks import ObjectDetection
from hf_pe.tasks.object_detection import Precision
from tests.helpers import small_detr, train_student

LABELS = {0: "dark", 1: "light"}
NUMBERS = {"dark": 0, "light": 1}


@pytest.fixture
def folder(tmp_path):
    """Images with one or two boxes and their metadata, as data sets of images have it."""
    draw = np.random.default_rng(0)
    lines = []
    for number in range(24):
        image, objects = Image.new("RGB", (48, 32), (100, 100, 100)), {"bbox": [], "category": []}
        for kind in {number % 2, number % 3 % 2}:
            x, y, side = (int(v) for v in (draw.integers(0, 30), draw.integers(0, 16), draw.integers(8, 16)))
            image.paste((250, 250, 250) if kind else (0, 0, 0), (x, y, x + side, y + side))
            objects["bbox"].append([x, y, side, side])
            objects["category"].append(LABELS[kind])
        image.save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "objects": objects}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    return tmp_path


def data_config(folder):
    return DataConfig(train=str(folder), image="image", label="objects", eval_fraction=0.25)


def ready(folder, processor, config):
    return ObjectDetection().prepare(load_examples(data_config(folder)), processor, config)


def test_boxes_are_shares_of_the_image_and_images_may_have_fewer(folder):
    data = ready(
        folder,
        DetrImageProcessorPil(size={"height": 32, "width": 48}),
        small_detr(id2label=LABELS, label2id=NUMBERS).config,
    )
    rows = [data.train[i] for i in range(len(data.train))]
    labels = data.collate(rows)["labels"]
    assert labels.shape == (len(rows), 2, 5)
    for row, padded in zip(rows, labels, strict=True):
        objects = padded[padded[:, 0] >= 0]
        assert objects[:, 0].tolist() == row["kinds"]
        corners = objects[:, 1:3] - objects[:, 3:] / 2
        boxes = torch.tensor(row["boxes"])
        torch.testing.assert_close(corners * torch.tensor([48.0, 32.0]), boxes[:, :2], atol=1e-3, rtol=0)
        torch.testing.assert_close(objects[:, 3:] * torch.tensor([48.0, 32.0]), boxes[:, 2:], atol=1e-3, rtol=0)


def test_what_is_found_exactly_scores_one_and_what_is_missed_costs(folder):
    def box(image, kind, x, score=None):
        annotation = {"image_id": image, "category_id": kind, "bbox": [x, 0.0, 100.0, 100.0], "area": 1e4, "iscrowd": 0}
        return annotation if score is None else annotation | {"score": score}

    truth = [[box(0, 0, 10.0)], [box(1, 1, 20.0)], []]
    exact = [[box(0, 0, 10.0, 0.9)], [box(1, 1, 20.0, 0.8)], []]
    everything = {"image": np.arange(3)}
    assert Precision(truth, exact, [0, 1])(everything) == pytest.approx({"map": 1.0, "map_50": 1.0})
    missed = Precision(truth, [exact[0], [], []], [0, 1])
    assert missed(everything) == pytest.approx({"map": 0.5, "map_50": 0.5})
    assert missed({"image": np.array([0, 0, 2])}) == pytest.approx({"map": 1.0, "map_50": 1.0})
    assert missed({"image": np.array([1, 2])}) == {"map": 0.0, "map_50": 0.0}
    beside = Precision(truth, [[box(0, 0, 30.0, 0.9)], exact[1], []], [0, 1])(everything)  # overlap 2/3
    assert beside["map_50"] == pytest.approx(1.0) and beside["map"] == pytest.approx(0.7)


def rt_detr():
    backbone = {
        "model_type": "rt_detr_resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1],
        "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
    }  # fmt: skip
    sizes = {"d_model": 32, "encoder_hidden_dim": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 12}
    channels = {"encoder_in_channels": [16, 24, 32], "decoder_in_channels": [32, 32, 32]}
    config = RTDetrConfig(
        backbone_config=backbone,
        **sizes,
        **channels,
        decoder_layers=2,
        num_denoising=4,
        id2label=LABELS,
        label2id=NUMBERS,
    )
    return RTDetrForObjectDetection(config), RTDetrImageProcessorPil(size={"height": 64, "width": 64})


def conditional_detr():
    backbone = small_detr().config.backbone_config
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 6}
    config = ConditionalDetrConfig(
        backbone_config=backbone, use_timm_backbone=False, **sizes, **heads, id2label=LABELS, label2id=NUMBERS
    )
    return ConditionalDetrForObjectDetection(config), DetrImageProcessorPil(size={"height": 32, "width": 48})


@pytest.mark.parametrize(("kind", "losses"), [(conditional_detr, {"kl": 1.0, "task": 1.0}), (rt_detr, {"task": 1.0})])
def test_detectors_of_other_kinds_learn(kind, losses, folder):
    torch.manual_seed(0)
    model, processor = kind()
    data = ready(folder, processor, model.config)
    teacher = model.eval()
    trained, curve = train_student(
        Distillation(steps=12, batch_size=6, learning_rate=2e-3, losses=losses), teacher, replace(data, teacher=teacher)
    )
    assert all(np.isfinite(loss) for _, loss in curve)
    assert set(data.task.evaluate(trained, data).scores()) == {"map", "map_50"}


def test_queries_taken_from_the_image_are_no_logits(folder):
    model, processor = rt_detr()
    data = ready(folder, processor, model.config)
    with pytest.raises(UsageError, match=r"distil\.losses\.kl: task 'object_detection' has no logits"):
        Distillation(steps=1, losses={"kl": 1.0}).plan(StageState(model, replace(data, teacher=model)))


@pytest.mark.slow
def test_a_detector_gets_a_smaller_backbone_is_taught_saved_and_loaded(folder, tmp_path, tmp_path_factory):
    model = small_detr(id2label=LABELS, label2id=NUMBERS)
    source = tmp_path / "detector"
    model.save_pretrained(source)
    DetrImageProcessorPil(size={"height": 32, "width": 48}).save_pretrained(source)
    narrow = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    result = compress(
        str(source),
        [
            BackboneSwap(to="resnet", config=narrow),
            Distillation(losses={"kl": 1.0, "task": 1.0, "hidden": 0.1}, steps=6, batch_size=6),
        ],
        data=data_config(folder),
        task="object_detection",
    )
    small = tmp_path_factory.mktemp("results") / "small"  # not among the data
    result.save(small)
    again = AutoModelForObjectDetection.from_pretrained(small).eval()
    assert again.config.backbone_config.hidden_sizes == [8, 16]
    assert "map_50" in (small / "README.md").read_text()


@pytest.mark.parametrize(
    "objects",
    [
        {"bbox": [[0, 0, 4]], "category": ["dark"]},
        {"bbox": [[0, 0, 4, 4]], "category": []},
        {"bbox": [[0, 0, 0, 4]], "category": ["dark"]},
        ["dark"],
    ],
)
def test_objects_that_are_none_are_refused(objects, folder):
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "objects": objects}) + "\n")
    (folder / "more").mkdir()
    with pytest.raises(UsageError, match="expected objects as"):
        config = DataConfig(train=str(folder), image="image", label="objects")
        ObjectDetection().prepare(
            load_for_evaluation(config), None, small_detr(id2label=LABELS, label2id=NUMBERS).config
        )


def test_unknown_categories_and_moved_images_are_refused(folder):
    model = small_detr(id2label={0: "dark", 1: "red"}, label2id={"dark": 0, "red": 1})
    processor = DetrImageProcessorPil(size={"height": 32, "width": 48})
    with pytest.raises(UsageError, match="label 'light' is none of the model's"):
        ready(folder, processor, model.config)
    model = small_detr(id2label=LABELS, label2id=NUMBERS)
    data = replace(ready(folder, processor, model.config), teacher=model)
    with pytest.raises(UsageError, match="boxes would not move"):
        Distillation(steps=1, augment={}, losses={"kl": 1.0}).check(StageState(model, data))


@pytest.mark.parametrize("way", ["above", "absolute", "link"])
def test_a_file_outside_of_the_data_is_refused(folder, tmp_path_factory, way):
    outside = tmp_path_factory.mktemp("outside") / "private.png"
    (folder / "0.png").rename(outside)
    (folder / "0.png").symlink_to(outside)
    name = {"above": os.path.relpath(outside, folder), "absolute": str(outside), "link": "0.png"}[way]
    row = {"file_name": name, "objects": {"bbox": [[1, 1, 8, 8]], "category": ["dark"]}}
    (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UsageError, match=r"row 1 of .*metadata\.jsonl names '.*0?.png', which is outside of"):
        load_examples(data_config(folder))


def test_a_metadata_file_in_a_split_may_name_files_beside_it_in_the_folder(folder):
    (folder / "train").mkdir()
    text = (folder / "metadata.jsonl").read_text().replace('"file_name": "', '"file_name": "../')
    (folder / "metadata.jsonl").unlink()
    (folder / "train" / "metadata.jsonl").write_text(text)
    assert len(load_examples(data_config(folder)).train) == 18


def test_metadata_without_file_names_is_refused(folder):
    (folder / "metadata.jsonl").write_text(json.dumps({"image": "0.png", "objects": {}}) + "\n")
    with pytest.raises(UsageError, match="no column 'file_name'"):
        load_examples(data_config(folder))
