"""Run by `measure.sentence_difference` as a program of its own: opens a folder with SentenceTransformer.

It must not import hf_pe: that the folder needs none of it is what it shows.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer


def main(work: Path) -> None:
    """Encode the texts in texts.json with the model in the folder that it names; write embeddings.safetensors."""
    transformers.logging.disable_progress_bar()
    order = json.loads((work / "texts.json").read_text("utf-8"))
    model = SentenceTransformer(order["folder"], device=order["device"])
    found = model.encode(order["texts"], convert_to_tensor=True, show_progress_bar=False)
    assert "hf_pe" not in sys.modules, "the folder imported hf_pe"
    save_file({"embeddings": torch.as_tensor(found).float().cpu().contiguous()}, work / "embeddings.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
