"""Defines object detection: a model finds objects in an image, with boxes and labels."""

import contextlib
import copy
import io
from dataclasses import dataclass
from itertools import chain
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.data import Examples
from hf_pe.errors import UsageError
from hf_pe.modes import evaluating
from hf_pe.tasks.base import Task, TaskData
from hf_pe.tasks.batch import Batch, model_inputs, on_device
from hf_pe.tasks.evaluation import EvalResult
from hf_pe.tasks.image_classification import read_image
from hf_pe.tasks.labels import label_column, label_numbers
from hf_pe.tasks.media import with_readable_media

NOTHING = -100
"""The label of rows that pad the boxes of an image."""
SIDE = 1000.0
"""Width and height that every image is scaled to for pycocotools; the overlap of boxes does not depend on it."""


@dataclass(frozen=True)
class ObjectDetection(Task):
    """Find objects in an image: the box and the label of each.

    `data.image` is the image and `data.label` its objects, as detection data sets have them:
    {"bbox": [[x, y, width, height], ...], "category": [...]}, in pixels; categories by name or number.

    A distilled student's queries are compared with the teacher's one by one. So both need learned queries, as DETR has;
    a detector that takes its queries from the image (RT-DETR) has no logits to compare.

    Example:
        >>> ObjectDetection().localizes  # images are not augmented
        True
    """

    name = "object_detection"
    auto_class = "AutoModelForObjectDetection"
    architectures = ("ForObjectDetection",)
    processor_class = "AutoImageProcessor"
    pipeline_tag = "object-detection"
    metric = "map"
    outputs = "logits of each query, where it is a learned one (DETR and the like)"
    needs_label = True
    names_labels = True
    localizes = True
    uncacheable = "its queries are no classes of a row"

    def prepare(self, examples: Examples, processor: Any, config: PretrainedConfig) -> TaskData:
        """Check the boxes and translate the categories into the model's; files are read batch by batch.

        Raises:
            UsageError: pycocotools is missing, a column is not named, or boxes, categories or images cannot be read.
        """
        _coco()
        column, label = examples.config.image, label_column(examples.config)
        names = examples.config.label_names
        if not column:
            raise UsageError("data.image: expected the name of the column with the images, got nothing.")

        def prepared(rows: datasets.Dataset) -> datasets.Dataset:
            boxes, kinds = zip(*(_boxes_and_kinds(objects) for objects in rows[label]), strict=True)
            numbers = [label_numbers(of_image, config, rows.features[label], names) for of_image in kinds]
            return rows.select_columns([column]).add_column("boxes", list(boxes)).add_column("kinds", numbers)

        collate = DetectionCollator(processor, column)
        train, evaluation = prepared(examples.train), prepared(examples.eval)
        return with_readable_media(TaskData(self, processor, train, evaluation, collate, examples), column, read_image)

    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """Return logits of each query, the task loss and, on request, the hidden states of the decoder's layers.

        The loss is that of set prediction (Carion et al. 2020, arXiv:2005.12872, section 3.1).

        Logits are [batch, queries, labels + 1] if the model has a class for "no object". If it decides on each label by
        itself, they are [batch, queries, labels, 2].
        """
        labels = [
            {"class_labels": objects[:, 0].long(), "boxes": objects[:, 1:]}
            for objects in (rows[rows[:, 0] != NOTHING] for rows in batch["labels"])
        ]
        out = model(**model_inputs(batch), labels=labels, output_hidden_states=hidden)
        signals: dict[str, Any] = {"loss": out.loss}
        if getattr(out, "enc_topk_logits", None) is None and getattr(out, "enc_outputs_class", None) is None:
            softmax = out.logits.shape[-1] == (model.config.num_labels or 0) + 1
            signals["logits"] = out.logits if softmax else torch.stack([torch.zeros_like(out.logits), out.logits], -1)
        if hidden:
            states = getattr(out, "decoder_hidden_states", None) or ()
            signals["hidden_states"] = states[1:]  # the first are DETR's queries before any layer: zeros
        return signals

    def describe(self, data: TaskData) -> str:
        """Return a sentence on how boxes are compared."""
        return (
            "`map` is the mean average precision over the labels and over overlaps from 0.5 to 0.95, `map_50` that at "
            "0.5, as COCO counts them, on the evaluation images."
        )

    def chance(self, model: PreTrainedModel, data: TaskData) -> float:
        """Return 0: boxes that do not depend on the image hardly ever overlap an object enough."""
        return 0.0

    def evaluate(self, model: PreTrainedModel, data: TaskData) -> EvalResult:
        """Compute the mean average precision over the images; there is a slice per label."""
        truth, detected = [], []
        with evaluating(model), torch.no_grad():
            for image, batch in enumerate(data.batches(data.eval, 1)):  # alone, no image is padded to another's size
                inputs = on_device(model, model_inputs(batch))
                (outputs,) = data.processor.post_process_object_detection(model(**inputs), threshold=0.0)
                corners = outputs["boxes"].float().cpu() * SIDE
                boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
                detected.append(_annotations(image, outputs["labels"], boxes, outputs["scores"]))
                labels = batch["labels"][0]
                labels = labels[labels[:, 0] != NOTHING]
                boxes = torch.cat([labels[:, 1:3] - labels[:, 3:] / 2, labels[:, 3:]], 1) * SIDE
                truth.append(_annotations(image, labels[:, 0], boxes, None))
        names: dict[Any, str] = model.config.id2label or {}
        kinds_by_image = [{int(box["category_id"]) for box in of_image} for of_image in truth]
        kinds = sorted(set().union(*kinds_by_image))
        slices = {f"label {names.get(k, k)}": np.array([k in of_image for of_image in kinds_by_image]) for k in kinds}
        return EvalResult({"image": np.arange(len(truth))}, Precision(truth, detected, kinds), slices)


@dataclass(frozen=True)
class DetectionCollator:
    """Makes a batch of rows with images and objects."""

    processor: Any
    column: str

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the image processor's inputs for the model, and `labels` [batch, most objects, 5].

        A row of `labels` is the number of the class, then the centre, width and height of the box as fractions of the
        image; rows of an image with fewer objects are filled up with `NOTHING`.
        """
        annotations = [
            {
                "image_id": number,
                "annotations": [
                    {"bbox": box, "category_id": kind, "area": box[2] * box[3], "iscrowd": 0}
                    for box, kind in zip(row["boxes"], row["kinds"], strict=True)
                ],
            }
            for number, row in enumerate(rows)
        ]
        images = [read_image(row[self.column]) for row in rows]
        inputs = dict(self.processor(images=images, annotations=annotations, return_tensors="pt"))
        objects_by_image = inputs.pop("labels")
        most = max(len(objects["class_labels"]) for objects in objects_by_image)
        labels = torch.full((len(rows), most, 5), float(NOTHING))
        for row, objects in zip(labels, objects_by_image, strict=True):
            count = len(objects["class_labels"])
            row[:count, 0], row[:count, 1:] = objects["class_labels"], objects["boxes"]
        return {**inputs, "labels": labels}


class Precision:
    """Computes the mean average precision of any sample of the images by pycocotools.

    The overlaps of boxes are computed only once, when it is created.

    Args:
        truth: the annotations of each image.
        detected: the predicted annotations of each image, with scores.
        kinds: the classes in `truth`.
    """

    def __init__(
        self, truth: list[list[dict[str, Any]]], detected: list[list[dict[str, Any]]], kinds: list[int]
    ) -> None:
        coco = _coco()
        with contextlib.redirect_stdout(io.StringIO()):
            truth_set = coco.coco.COCO()
            truth_set.dataset = {
                "images": [{"id": number} for number in range(len(truth))],
                "annotations": [box | {"id": i + 1} for i, box in enumerate(chain(*truth))],
                "categories": [{"id": kind} for kind in kinds],
            }
            truth_set.createIndex()
            detected_set = coco.coco.COCO()
            annotations = [box | {"id": i + 1} for i, box in enumerate(chain(*detected))]
            detected_set.dataset = truth_set.dataset | {"annotations": annotations}
            detected_set.createIndex()
            self.evaluation = coco.cocoeval.COCOeval(truth_set, detected_set, "bbox")
            params = self.evaluation.params
            params.areaRng, params.areaRngLbl = params.areaRng[:1], ["all"]
            params.maxDets = params.maxDets[-1:]
            self.evaluation.evaluate()
        self.images = len(truth)
        self.by_image = np.array(self.evaluation.evalImgs, dtype=object).reshape(len(kinds), self.images)

    def __call__(self, columns: dict[str, np.ndarray[Any, Any]]) -> dict[str, float]:
        """Return `map` and `map_50` of the images in the column `image`, which may contain an image several times."""
        rows = columns["image"]
        evaluation = copy.copy(self.evaluation)
        evaluation.params = copy.deepcopy(self.evaluation.params)
        evaluation._paramsEval = copy.deepcopy(self.evaluation.params)
        evaluation.params.imgIds = evaluation._paramsEval.imgIds = list(range(len(rows)))
        evaluation.evalImgs = list(self.by_image[:, rows].flatten())
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.accumulate(evaluation.params)
        precision = evaluation.eval["precision"][..., 0, 0]  # [overlaps, recalls, labels]; -1 where a label is absent
        precision = np.where(precision < 0, np.nan, precision)
        present = ~np.isnan(precision).all((0, 1))
        if not present.any():
            return {"map": 0.0, "map_50": 0.0}
        return {"map": float(precision[..., present].mean()), "map_50": float(precision[0][:, present].mean())}


def _coco() -> Any:
    try:
        import pycocotools.coco
        import pycocotools.cocoeval
    except ImportError as error:
        raise UsageError('Detection is evaluated by pycocotools: pip install "hf_pe[detection]".') from error
    return pycocotools


def _annotations(image: int, kinds: Any, boxes: Any, scores: Any) -> list[dict[str, Any]]:
    """Return the boxes of an image as annotations of pycocotools, with scores unless `scores` is None."""
    annotations = [
        {"image_id": image, "category_id": int(kind), "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for kind, box in zip(kinds.tolist(), boxes.tolist(), strict=True)
    ]
    if scores is None:
        return annotations
    return [box | {"score": score} for box, score in zip(annotations, scores.tolist(), strict=True)]


def _boxes_and_kinds(objects: Any) -> tuple[list[list[float]], list[Any]]:
    """Return the boxes and the categories of an image.

    Raises:
        UsageError: `objects` has another form than detection data sets have.
    """
    kinds = (objects.get("category", objects.get("categories")) if isinstance(objects, dict) else None) or []
    boxes = (objects.get("bbox") if isinstance(objects, dict) else None) or []
    good = isinstance(objects, dict) and "bbox" in objects and len(boxes) == len(kinds)
    if not good or any(len(box) != 4 or min(box[2:]) <= 0 for box in boxes):
        raise UsageError(
            'Data: expected objects as {"bbox": [[x, y, width, height], ...], "category": [...]}, a category for each '
            f"box and no box without width or height; got {str(objects)[:120]}."
        )
    return [[float(value) for value in box] for box in boxes], list(kinds)
