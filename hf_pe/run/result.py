"""What a run returns: the compressed model, its report and how it is saved and pushed."""

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
    """A compressed model with its report; nothing is on disk until `save`."""

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
        """Write the model, its card and its papers; prove that it reloads. Old content stays until all is well.

        With variants, `folder` holds one folder for each: "main" and their names.

        Raises:
            UsageError: `folder` is not empty and `overwrite` is not given; or it is no result, overlaps what was read,
                is in use, cannot be written, or its disk is too small: see `outputs.check_output`.
            RuntimeError: what was written does not load or is not equal.
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
            table = {name: each.report.after for name, each in {MAIN: main, **variants}.items()}
            variants = {n: r._finished(fresh / n, table) for n, r in variants.items()}
            return replace(main._finished(fresh / MAIN, table), variants=variants)

    def push_to_hub(self, repo: str, **settings: Any) -> list[Sent]:
        """Save into a folder of its own, prove and scan it, and push it: private unless `private=False`.

        Args:
            repo: NAME or USER/NAME.
            settings: fields of `hf_pe.hub.Publish`, such as private, branch, tag or create_pr.

        Raises:
            UsageError, PushError: see `hf_pe.hub.push`.
        """
        own_code = brings_code(type(self.model))  # it runs already: the user has allowed it
        wanted = Publish(repo=repo, **{"trust_remote_code": own_code, **settings})
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place, repo.rpartition("/")[2])
            self.save(folder)
            return push(folder, wanted, verify=False)  # saving has just proved it

    def _written(self, folder: Path, name: str, place: str = "") -> "Result":
        """Write all but the card, which may name other variants."""
        papers = {
            "plan.json": json.dumps(
                {"format_version": 1, "stages": [plan.model_dump(mode="json") for plan in self.plans]}
            ),
            "recipe.yaml": yaml.safe_dump(self.recipe, sort_keys=False),
        }
        report = self.report.model_copy(update={"folder": place or None})
        report = write_result(
            self.model,
            self.processor,
            folder,
            name,
            report,
            self.auto_class,
            self.source,
            papers=papers,
            place=place,
        )
        return replace(self, report=report)

    def _finished(self, folder: Path, table: dict[str, Measurement] | None = None) -> "Result":
        """Write the card and seal the folder.

        Args:
            folder: written before.
            table: what was measured of each variant, known once all of them are on disk.
        """
        report = self.report.model_copy(update={"variants": table or {}})
        return replace(self, report=finish_result(report, folder))
