"""Hold what a run returns, the compressed model and its report, and save or push it."""

import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel

from hf_pe.checkpoints.classes import brings_code
from hf_pe.checkpoints.save import say_left_behind
from hf_pe.checkpoints.source import Source
from hf_pe.hub import Publish, push
from hf_pe.hub.settings import Sent
from hf_pe.measure import weight_bytes
from hf_pe.outputs import replaced, require_space
from hf_pe.plans import Plan
from hf_pe.report import MAIN, Measurement, Report
from hf_pe.run.folder import finish_result, write_result


@dataclass(frozen=True)
class Result:
    """Hold a compressed model with its report; nothing is on disk until `save`.

    Attributes:
        model: The compressed model.
        processor: Its tokenizer or processor.
        report: What was done and measured.
        plans: Plan of each stage.
        source: Source of the original.
        auto_class: Auto class that loads the model.
        recipe: The run as the content of a recipe file.
        variants: Results of the variants, by name.
        inputs: Local paths that the run has read, by a description; no output may touch them.
        run: Id of the run whose stages the result is made from; "" where no stages were kept.
    """

    model: PreTrainedModel
    processor: Any
    report: Report
    plans: tuple[Plan, ...]
    source: Source
    auto_class: str
    recipe: dict[str, Any]
    variants: dict[str, "Result"] = field(default_factory=dict)
    inputs: dict[str, Path] = field(default_factory=dict)
    run: str = ""

    def save(self, folder: str | Path, *, overwrite: bool = False) -> "Result":
        """Write the model, its card and further files, and verify that the folder reloads.

        Earlier content of `folder` is replaced only after all of this has succeeded. With variants, `folder` holds one
        folder for each: "main" and their names.

        Args:
            folder: Folder of the result.
            overwrite: Whether to replace an earlier result in it.

        Raises:
            UsageError: `folder` is not empty and `overwrite` is not given; or its content is no result, it overlaps
                with a path that the run has read, it is in use, it cannot be written, or its disk is too small: see
                `outputs.check_output`.
            RuntimeError: The written folder does not load, or gives other outputs.
        """
        folder = Path(folder)
        require_space(folder, sum(weight_bytes(r.model) for r in (self, *self.variants.values())), "the result")
        say_left_behind(self.source)
        with replaced(folder, overwrite=overwrite, inputs=self.inputs, run=self.run) as fresh:
            if not self.variants:
                return self._written(fresh, folder.name)._finished(fresh)
            main = self._written(fresh / MAIN, folder.name, f"{folder.name}/{MAIN}")
            variants = {
                n: r._written(fresh / n, f"{folder.name}-{n}", f"{folder.name}/{n}") for n, r in self.variants.items()
            }
            table = {name: result.report.after for name, result in {MAIN: main, **variants}.items()}
            variants = {n: r._finished(fresh / n, table) for n, r in variants.items()}
            return replace(main._finished(fresh / MAIN, table), variants=variants)

    def push_to_hub(self, repo: str, **settings: Any) -> list[Sent]:
        """Save into a temporary folder, verify that it reloads, scan it, and push it: private unless `private=False`.

        Args:
            repo: NAME or USER/NAME.
            settings: Fields of `hf_pe.hub.Publish`, such as private, branch, tag or create_pr.

        Raises:
            UsageError: See `hf_pe.hub.push`.
            PushError: See `hf_pe.hub.push`.
        """
        own_code = brings_code(type(self.model))  # it runs already, so the user has allowed it
        publish = Publish(repo=repo, **{"trust_remote_code": own_code, **settings})
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent, repo.rpartition("/")[2])
            self.save(folder)
            return push(folder, publish, verify=False)  # `save` has just verified that it reloads

    def _written(self, folder: Path, name: str, label: str = "") -> "Result":
        """Write all files but the card, which may name variants that are not written yet."""
        extra_files = {
            "plan.json": json.dumps(
                {"format_version": 1, "stages": [plan.model_dump(mode="json") for plan in self.plans]}
            ),
            "recipe.yaml": yaml.safe_dump(self.recipe, sort_keys=False),
        }
        report = self.report.model_copy(update={"folder": label or None})
        report = write_result(
            self.model,
            self.processor,
            folder,
            name,
            report,
            self.auto_class,
            self.source,
            extra_files=extra_files,
            label=label,
        )
        return replace(self, report=report)

    def _finished(self, folder: Path, table: dict[str, Measurement] | None = None) -> "Result":
        """Write the card and seal the folder.

        Args:
            folder: Folder that `_written` has written.
            table: Measurements of each variant, which are complete once all of them are on disk.
        """
        report = self.report.model_copy(update={"variants": table or {}})
        return replace(self, report=finish_result(report, folder))
