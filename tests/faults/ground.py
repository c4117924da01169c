"""What the broken inputs are made from: tiny models, data, recipes, an adapter, a result and a run that was stopped."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.killing import TEXTS, forked, make_model, measure_quickly
from tests.gguf_files import gguf_file

LABELS = ("calm", "loud")
ROWS = [{"text": text, "label": LABELS[number % 2]} for number, text in enumerate(TEXTS)]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
PRUNE = {"recipe": "prune", "keep": {"ffn": 0.5}}
DATA = {
    "texts": {"train": "data/text.txt", "max_length": 16},
    "csv": {"train": "data/rows.csv", "label": "label", "max_length": 16},
    "json": {"train": "data/rows.json", "label": "label", "max_length": 16},
    "jsonl": {"train": "data/rows.jsonl", "label": "label", "max_length": 16},
    "parquet": {"train": "data/rows.parquet", "label": "label", "max_length": 16},
    "images": {"train": "data/images", "image": "image", "label": "label"},
    "audio": {"train": "data/audio", "audio": "audio", "label": "label"},
    "causal": {"train": "data/text.txt", "max_length": 16},
    "adapter": {"train": "data/text.txt", "max_length": 16},
    "stopped": {"train": "data/text.txt", "max_length": 16},
}
"""The data of each recipe file, by its name."""
MODELS = {
    "texts": "encoder",
    "stopped": "encoder",
    "images": "vit",
    "audio": "wav2vec2",
    "causal": "llama",
    "adapter": "llama",
}
TASKS = {"texts": "embedding", "stopped": "embedding", "images": "image_classification", "audio": "audio_classification",
         "causal": "causal_lm", "adapter": "causal_lm"}  # fmt: skip


def make_ground(place: Path) -> None:
    """Write all whole files, paths in them relative to `place`, which has to be the working directory."""
    make_model(place / "encoder")
    _make_models(place)
    _make_data(place / "data")
    for name in DATA:
        (place / f"{name}.yaml").write_text(json.dumps(recipe(name), indent=1))
    (place / "encoder" / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n\n# Encoder\n\nA text.\n")


def make_results(place: Path) -> None:
    """Carry out two recipes, the second up to its training, in the working directory."""
    measure_quickly()
    from hf_pe.cli import app
    from hf_pe.distill import Distillation

    status = forked(lambda: app(["run", "texts.yaml", "--output", "result"]), place / "making.log")
    assert status == 0, (place / "making.log").read_text()

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def stopped() -> None:
        Distillation.apply = stop  # type: ignore[method-assign,assignment]
        app(["run", "stopped.yaml", "--output", "stopped"])

    assert forked(stopped, place / "making.log") == 130, (place / "making.log").read_text()
    (place / "making.log").unlink()


def recipe(name: str) -> dict[str, Any]:
    """Return the recipe file of one kind of data, with all that it needs."""
    steps: list[dict[str, Any]] = [PRUNE]
    if name == "stopped":
        steps.append({"recipe": "distil", "steps": 1, "batch_size": 2})
    if name == "adapter":
        teacher = {"model": "llama", "adapter": "adapter"}
        steps = [{"recipe": "distil", "steps": 1, "batch_size": 2, "teachers": [teacher]}]
    return {
        "model": MODELS.get(name, "classifier"),
        "task": TASKS.get(name, "text_classification"),
        "data": DATA[name],
        "recipes": steps,
    }


def _make_models(place: Path) -> None:
    import peft
    import transformers as hf
    from transformers import AutoTokenizer

    from hf_pe.dummies.tiny import randomize_weights_

    tokenizer = AutoTokenizer.from_pretrained(place / "encoder")
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    bert = hf.BertConfig(vocab_size=64, max_position_embeddings=32, pad_token_id=0, **SIZES, **names)
    randomize_weights_(hf.BertForSequenceClassification(bert)).save_pretrained(place / "classifier")
    llama = hf.LlamaConfig(
        vocab_size=64, max_position_embeddings=64, **SIZES, pad_token_id=0, bos_token_id=2, eos_token_id=3
    )
    causal = randomize_weights_(hf.LlamaForCausalLM(llama))
    causal.save_pretrained(place / "llama", max_shard_size="30kB")
    learner = peft.get_peft_model(causal, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    learner.peft_config["default"].base_model_name_or_path = "llama"
    learner.save_pretrained(place / "adapter")
    for folder in ("classifier", "llama"):
        tokenizer.save_pretrained(place / folder)
    vit = hf.ViTConfig(**SIZES, image_size=16, patch_size=8, **names)
    randomize_weights_(hf.ViTForImageClassification(vit)).save_pretrained(place / "vit")
    hf.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(place / "vit")
    wave = hf.Wav2Vec2Config(
        **SIZES, conv_dim=(16, 16), conv_stride=(8, 8), conv_kernel=(10, 8), num_feat_extract_layers=2,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, classifier_proj_size=16, mask_time_prob=0.0,
        layerdrop=0.0, **names,
    )  # fmt: skip
    randomize_weights_(hf.Wav2Vec2ForSequenceClassification(wave)).save_pretrained(place / "wav2vec2")
    hf.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(place / "wav2vec2")
    if importlib.util.find_spec("gguf") is not None:
        gguf_file(place / "model.gguf")


def _make_data(folder: Path) -> None:
    import pandas as pd
    from PIL import Image
    from scipy.io import wavfile

    folder.mkdir()
    table = pd.DataFrame(ROWS)
    (folder / "text.txt").write_text("\n".join(TEXTS))
    table.to_csv(folder / "rows.csv", index=False)
    (folder / "rows.json").write_text(json.dumps(ROWS))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    table.to_parquet(folder / "rows.parquet")
    times = np.arange(1600) / 16000
    for number in range(24):
        name = LABELS[number % 2]
        for kind in ("images", "audio"):
            (folder / kind / name).mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (20, 24), (20 + number % 2 * 200, 50 + number, 50))
        image.save(folder / "images" / name / f"{number}.png")
        sound = np.sin(6.28 * (200 + number % 2 * 600 + number) * times) * 30000
        wavfile.write(folder / "audio" / name / f"{number}.wav", 16000, sound.astype(np.int16))
