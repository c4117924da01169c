"""Object detection: a model finds objects in an image, with boxes and labels."""

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
from hf_pe.tasks.image_classification import opened
from hf_pe.tasks.labels import label_column, label_numbers
from hf_pe.tasks.media import with_readable_media

NOTHING = -100
"""The label of rows of a batch that are no box."""
SIDE = 1000.0
"""Units a side that boxes are compared in: overlap does not depend on them."""


@dataclass(frozen=True)
class ObjectDetection(Task):
    """Find objects in an image: the box and the label of each.

    `data.image` is the image and `data.label` its objects, as detection data sets have them:
    {"bbox": [[x, y, width, height], ...], "category": [...]}, in pixels; categories by name or number.

    A distilled student's queries are compared with the teacher's one by one. So both need learned queries, as DETR has;
    a detector that takes its queries from the image (RT-DETR) gives no logits.

    Example:
        >>> ObjectDetection().has_places  # so that images are not augmented
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
    has_places = True
    uncacheable = "what its queries find is no class of a row"

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

        def rows(found: datasets.Dataset) -> datasets.Dataset:
            boxes, kinds = zip(*(_objects(each) for each in found[label]), strict=True)
            numbers = [label_numbers(some, config, found.features[label], names) for some in kinds]
            return found.select_columns([column]).add_column("boxes", list(boxes)).add_column("kinds", numbers)

        collate = Boxes(processor, column)
        train, evaluation = rows(examples.train), rows(examples.eval)
        return with_readable_media(TaskData(self, processor, train, evaluation, collate, examples), column, opened)

    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """Return logits of each query, the task loss and, on request, the hidden states of the decoder's layers.

        The loss is that of set prediction (Carion et al. 2020, arXiv:2005.12872, section 3.1).

        Logits are [batch, queries, labels + 1] where one class is "nothing", else (labels each for itself)
        [batch, queries, labels, 2].
        """
        labels = [
            {"class_labels": each[found, 0].long(), "boxes": each[found, 1:]}
            for each, found in ((rows, rows[:, 0] != NOTHING) for rows in batch["labels"])
        ]
        out = model(**model_inputs(batch), labels=labels, output_hidden_states=hidden)
        signals: dict[str, Any] = {"loss": out.loss}
        if getattr(out, "enc_topk_logits", None) is None and getattr(out, "enc_outputs_class", None) is None:
            softmax = out.logits.shape[-1] == (model.config.num_labels or 0) + 1
            signals["logits"] = out.logits if softmax else torch.stack([torch.zeros_like(out.logits), out.logits], -1)
        if hidden:
            states = getattr(out, "decoder_hidden_states", None) or ()
            signals["hidden_states"] = states[1:]  # DETR's queries begin as zeros
        return signals

    def describe(self, data: TaskData) -> str:
        """Return how boxes are compared."""
        return (
            "`map` is the mean average precision over the labels and over overlaps from 0.5 to 0.95, `map_50` that at "
            "0.5, as COCO counts them, on the evaluation images."
        )

    def chance(self, model: PreTrainedModel, data: TaskData) -> float:
        """Return 0: boxes without a look at the image hardly ever overlap an object enough."""
        return 0.0

    def evaluate(self, model: PreTrainedModel, data: TaskData) -> EvalResult:
        """Return the mean average precision over the images; a slice per label."""
        wanted, found = [], []
        with evaluating(model), torch.no_grad():
            for number, batch in enumerate(data.batches(data.eval, 1)):  # alone, no image is padded to another's size
                inputs = on_device(model, model_inputs(batch))
                (seen,) = data.processor.post_process_object_detection(model(**inputs), threshold=0.0)
                corners = seen["boxes"].float().cpu() * SIDE
                sizes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
                found.append(_detections(number, seen["labels"], sizes, seen["scores"]))
                labels = batch["labels"][0]
                labels = labels[labels[:, 0] != NOTHING]
                corner = torch.cat([labels[:, 1:3] - labels[:, 3:] / 2, labels[:, 3:]], 1) * SIDE
                wanted.append(_detections(number, labels[:, 0], corner, None))
        names: dict[Any, str] = model.config.id2label or {}
        there = [{int(each["category_id"]) for each in some} for some in wanted]
        kinds = sorted(set().union(*there))
        slices = {f"label {names.get(k, k)}": np.array([k in some for some in there]) for k in kinds}
        return EvalResult({"image": np.arange(len(wanted))}, Precision(wanted, found, kinds), slices)


@dataclass(frozen=True)
class Boxes:
    """Makes a batch of rows with images and objects."""

    processor: Any
    column: str

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """What the image processor makes of them, and labels [batch, most objects, 5]: label, then centre, width and
        height as shares of the image; `NOTHING` where an image has fewer."""
        told = [
            {
                "image_id": number,
                "annotations": [
                    {"bbox": box, "category_id": kind, "area": box[2] * box[3], "iscrowd": 0}
                    for box, kind in zip(row["boxes"], row["kinds"], strict=True)
                ],
            }
            for number, row in enumerate(rows)
        ]
        images = [opened(row[self.column]) for row in rows]
        found = dict(self.processor(images=images, annotations=told, return_tensors="pt"))
        labels = found.pop("labels")
        most = max(len(each["class_labels"]) for each in labels)
        packed = torch.full((len(rows), most, 5), float(NOTHING))
        for row, each in zip(packed, labels, strict=True):
            count = len(each["class_labels"])
            row[:count, 0], row[:count, 1:] = each["class_labels"], each["boxes"]
        return {**found, "labels": packed}


class Precision:
    """Mean average precision of any sample of the images, by pycocotools; overlaps are found once."""

    def __init__(self, wanted: list[list[dict[str, Any]]], found: list[list[dict[str, Any]]], kinds: list[int]) -> None:
        coco = _coco()
        with contextlib.redirect_stdout(io.StringIO()):
            truth = coco.coco.COCO()
            truth.dataset = {
                "images": [{"id": number} for number in range(len(wanted))],
                "annotations": [each | {"id": i + 1} for i, each in enumerate(chain(*wanted))],
                "categories": [{"id": kind} for kind in kinds],
            }
            truth.createIndex()
            said = coco.coco.COCO()
            said.dataset = truth.dataset | {"annotations": [e | {"id": i + 1} for i, e in enumerate(chain(*found))]}
            said.createIndex()
            self.judge = coco.cocoeval.COCOeval(truth, said, "bbox")
            self.judge.params.areaRng, self.judge.params.areaRngLbl = self.judge.params.areaRng[:1], ["all"]
            self.judge.params.maxDets = self.judge.params.maxDets[-1:]
            self.judge.evaluate()
        self.images = len(wanted)
        self.by_image = np.array(self.judge.evalImgs, dtype=object).reshape(len(kinds), self.images)

    def __call__(self, columns: dict[str, np.ndarray[Any, Any]]) -> dict[str, float]:
        """`map` and `map_50` of the images in the column `image`, each as often as it is there."""
        rows = columns["image"]
        judge = copy.copy(self.judge)
        judge.params = copy.deepcopy(self.judge.params)
        judge._paramsEval = copy.deepcopy(self.judge.params)
        judge.params.imgIds = judge._paramsEval.imgIds = list(range(len(rows)))
        judge.evalImgs = list(self.by_image[:, rows].flatten())
        with contextlib.redirect_stdout(io.StringIO()):
            judge.accumulate(judge.params)
        precision = judge.eval["precision"][..., 0, 0]  # [overlaps, recalls, labels]; -1 where a label is absent
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
        raise UsageError('Detection is judged by pycocotools: pip install "hf_pe[detection]".') from error
    return pycocotools


def _detections(image: int, kinds: Any, boxes: Any, scores: Any) -> list[dict[str, Any]]:
    """As pycocotools has them."""
    found = [
        {"image_id": image, "category_id": int(kind), "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for kind, box in zip(kinds.tolist(), boxes.tolist(), strict=True)
    ]
    return found if scores is None else [e | {"score": s} for e, s in zip(found, scores.tolist(), strict=True)]


def _objects(found: Any) -> tuple[list[list[float]], list[Any]]:
    """Boxes and categories of an image.

    Raises:
        UsageError: they are not as expected.
    """
    kinds = (found.get("category", found.get("categories")) if isinstance(found, dict) else None) or []
    boxes = (found.get("bbox") if isinstance(found, dict) else None) or []
    good = isinstance(found, dict) and "bbox" in found and len(boxes) == len(kinds)
    if not good or any(len(box) != 4 or min(box[2:]) <= 0 for box in boxes):
        raise UsageError(
            'Data: expected objects as {"bbox": [[x, y, width, height], ...], "category": [...]}, a category for each '
            f"box and no box without width or height; got {str(found)[:120]}."
        )
    return [[float(value) for value in box] for box in boxes], list(kinds)
