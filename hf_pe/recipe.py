"""Define what a recipe is, and the state that a run hands from one recipe to the next."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from transformers import PreTrainedModel

from hf_pe.calibration.cache import StatisticsCache
from hf_pe.errors import UsageError
from hf_pe.model_spec import ModelSpec
from hf_pe.plans import Plan
from hf_pe.report import Training
from hf_pe.settings import Settings
from hf_pe.tasks import TaskData, prepare
from hf_pe.training_curve import TrainingCurve


@dataclass(frozen=True)
class StageState:
    """A model between two stages of a run, with everything that a recipe may use or hand on.

    Attributes:
        model: the model, in evaluation mode. A recipe never changes it but returns a new one.
        task_data: tokenized rows, the processor, and the unchanged original as the teacher; None without data.
        statistics: calibration results that `plan` and `apply` share.
        losses: of the training of the stage, [(optimizer step, loss)].
        curve: quality during the training of the stage; None without training or without evaluations during it.
        training: how the stage trained the model; None if it did not.
        checkpoints: folder for training checkpoints, from which an interrupted run can resume; None to keep none.
        resume: whether training resumes from the last complete checkpoint in that folder.
    """

    model: PreTrainedModel
    task_data: TaskData | None = None
    statistics: StatisticsCache = field(default_factory=StatisticsCache, compare=False, repr=False)
    losses: tuple[tuple[int, float], ...] = ()
    curve: TrainingCurve | None = None
    training: Training | None = None
    checkpoints: Path | None = None
    resume: bool = False

    @property
    def data(self) -> TaskData:
        """Return the tokenized rows.

        Raises:
            UsageError: there are no data.
        """
        if self.task_data is None:
            raise UsageError("This recipe expects calibration rows, but there are no data. Give data.")
        return self.task_data

    @property
    def processor(self) -> Any:
        """Return the tokenizer or processor of the model; None without data."""
        return None if self.task_data is None else self.task_data.processor

    @property
    def teacher(self) -> PreTrainedModel | None:
        """Return the original model as it was before the run; None without data."""
        return None if self.task_data is None else self.task_data.teacher

    @property
    def spec(self) -> ModelSpec:
        """Return the spec of the model: config, class, and bits per parameter."""
        if self.task_data is None:
            return ModelSpec(config=self.model.config, model_class=type(self.model))
        return self.task_data.spec(self.model)

    def with_model(
        self,
        model: PreTrainedModel,
        losses: Sequence[tuple[int, float]] = (),
        curve: TrainingCurve | None = None,
        training: Training | None = None,
    ) -> "StageState":
        """Return the state after a stage that made `model`, without the statistics of the previous model."""
        statistics = StatisticsCache()
        return replace(self, model=model, statistics=statistics, losses=tuple(losses), curve=curve, training=training)

    def with_processor(self, processor: Any) -> "StageState":
        """Return the state with another processor, with the examples tokenized again and without statistics.

        Raises:
            UsageError: the examples do not fit the task, or the processor does not fit the model.
        """
        data = prepare(self.data.task, self.data.examples, processor, self.model.config)
        return replace(self, task_data=replace(data, teacher=self.teacher), statistics=StatisticsCache())


@dataclass(frozen=True)
class ModelRead:
    """A model or adapter that a recipe reads besides the model that it changes.

    Attributes:
        what: the role of the model, for messages, such as "the teacher".
        name: Hub id, folder, .gguf file or package:NAME.
        is_adapter: whether it is a PEFT adapter without its base model.
    """

    what: str
    name: str
    is_adapter: bool = False


class Recipe(Settings):
    """One technique with its settings.

    A subclass has a field `recipe: Literal["name"] = "name"`, which is its name in recipe files, one line in
    `hf_pe.recipes.RECIPES`, and the class attributes below. The order of recipes, recipe files and their schema, the
    command line, cards and the documentation follow from these.

    A stage of a run is a recipe's turn: `plan` decides, `apply` carries out.
    """

    recipe: str

    tag: ClassVar[str]
    """The Hub tag of results, such as "pruned"."""
    changes: ClassVar[Literal["structure", "weights", "precision"]]
    """What it changes. A recipe that changes the precision comes last; variants of a result are such recipes."""
    needs_plain_weights: ClassVar[str]
    """The reason why it cannot come after a change of precision, as a clause: "quantized weights cannot be cut"."""
    takes_custom_modules: ClassVar[bool] = True
    """Whether it can come after a recipe whose models have custom modules, which a stock config cannot express."""
    width_multiple: ClassVar[int] = 1
    """The number that widths of linear layers have to be multiples of, so that the recipe applies to all layers."""

    @classmethod
    def kind(cls) -> str:
        """Return its name in recipe files."""
        return str(cls.model_fields["recipe"].default)

    @property
    def leaves_precision_changed(self) -> bool:
        """Return whether the weights are quantized or cast afterwards, so that no other recipe can follow."""
        return self.changes == "precision"

    def planned(self, **facts: Any) -> Plan:
        """Return a plan of this recipe.

        Args:
            facts: fields of `Plan` other than `recipe` and `changes`; `tag` only where it depends on the settings.
        """
        return Plan(**{"tag": self.tag, **facts}, recipe=self.recipe, changes=self.changes)

    def models_read(self) -> tuple[ModelRead, ...]:
        """Return the models that it reads besides the one that it changes; a run resumes only with the same ones."""
        return ()

    def folders_used(self) -> dict[str, Path]:
        """Return the folders that it reads or writes, by their roles; no result may be written there."""
        return {}

    def before(self, later: Sequence["Recipe"]) -> "Recipe":
        """Return the recipe with the defaults that fit the recipes after it."""
        return self

    @abstractmethod
    def dry_run(self, spec: ModelSpec) -> tuple[Plan, ModelSpec]:
        """Return the plan as far as it follows from the config alone, and the spec of the model afterwards.

        Raises:
            UsageError: the recipe cannot work on such a model.
        """

    def check(self, state: StageState) -> None:
        """Check the settings against the original model and the data, before the first stage begins.

        Raises:
            UsageError: the recipe cannot work with them.
        """

    @abstractmethod
    def plan(self, state: StageState) -> Plan:
        """Return the plan with all decisions made, and leave the model unchanged.

        Raises:
            UsageError: the recipe cannot do what its settings state; see the recipe.
        """

    @abstractmethod
    def apply(self, state: StageState, plan: Plan) -> StageState:
        """Carry out the plan, and return the state with a new model."""

    def carry_out(self, state: StageState) -> StageState:
        """Plan and apply the recipe, and return the state with a new model.

        Raises:
            UsageError: see `plan` and `apply`.
        """
        return self.apply(state, self.plan(state))
