"""Open a folder with SentenceTransformer; `measure.sentence_difference` runs this file as a program of its own.

It must not import hf_pe, since it checks that the folder loads without it.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer


def main(work: Path) -> None:
    """Encode the texts in texts.json with the model in the folder that it names, and write embeddings.safetensors."""
    transformers.logging.disable_progress_bar()
    order = json.loads((work / "texts.json").read_text("utf-8"))
    model = SentenceTransformer(order["folder"], device=order["device"])
    embeddings = model.encode(order["texts"], convert_to_tensor=True, show_progress_bar=False)
    assert "hf_pe" not in sys.modules, "the folder imported hf_pe"
    save_file({"embeddings": torch.as_tensor(embeddings).float().cpu().contiguous()}, work / "embeddings.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
