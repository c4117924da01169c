"""What a recipe is, and what a run hands from one recipe to the next."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from transformers import PreTrainedModel

from hf_pe.calibration.cache import StatisticsCache
from hf_pe.errors import UsageError
from hf_pe.model_spec import ModelSpec
from hf_pe.plans import Frozen, Plan
from hf_pe.tasks import TaskData, prepare


@dataclass(frozen=True)
class StageState:
    """A model on its way through a run, with all that a recipe may look at or hand on.

    Attributes:
        model: in evaluation mode; a recipe never changes it but returns another.
        task_data: tokenized rows, the processor, and the untouched original as the teacher; None where there are none.
        statistics: calibration results that `plan` and `apply` share.
        losses: the training curve of the stage [(optimizer step, loss)].
        checkpoints: folder for checkpoints of a training, which an interrupted run finds again; None: nothing is kept.
        resume: go on from the last whole checkpoint there.
    """

    model: PreTrainedModel
    task_data: TaskData | None = None
    statistics: StatisticsCache = field(default_factory=StatisticsCache, compare=False, repr=False)
    losses: tuple[tuple[int, float], ...] = ()
    checkpoints: Path | None = None
    resume: bool = False

    @property
    def data(self) -> TaskData:
        """The rows.

        Raises:
            UsageError: there are none.
        """
        if self.task_data is None:
            raise UsageError("This recipe needs calibration rows, and got no data. Give data.")
        return self.task_data

    @property
    def processor(self) -> Any:
        """The tokenizer or processor that goes with the model."""
        return None if self.task_data is None else self.task_data.processor

    @property
    def teacher(self) -> PreTrainedModel | None:
        """The untouched original."""
        return None if self.task_data is None else self.task_data.teacher

    @property
    def spec(self) -> ModelSpec:
        """What is known of the model without its weights."""
        if self.task_data is None:
            return ModelSpec(config=self.model.config, model_class=type(self.model))
        return self.task_data.spec(self.model)

    def with_model(self, model: PreTrainedModel, losses: Sequence[tuple[int, float]] = ()) -> "StageState":
        """Return the state after a stage that made `model`; statistics of the model before are not handed on."""
        return replace(self, model=model, statistics=StatisticsCache(), losses=tuple(losses))

    def with_processor(self, processor: Any) -> "StageState":
        """Return the state with another processor, by which the examples are tokenized anew, without statistics.

        Raises:
            UsageError: the examples do not fit the task, or the processor not the model.
        """
        data = prepare(self.data.task, self.data.examples, processor, self.model.config)
        return replace(self, task_data=replace(data, teacher=self.teacher), statistics=StatisticsCache())


@dataclass(frozen=True)
class ModelRead:
    """A model or adapter that a recipe reads beside the one that it changes.

    Attributes:
        what: it is, for messages: "the teacher".
        name: Hub id, folder, .gguf file or package:NAME.
        is_adapter: whether it is an adapter of PEFT without its base.
    """

    what: str
    name: str
    is_adapter: bool = False


class Recipe(Frozen):
    """One technique with its settings.

    A subclass has a field `recipe: Literal["name"] = "name"`, which is its name in recipe files, one line in
    `hf_pe.recipes.RECIPES`, and the class attributes below. The order of recipes, recipe files and their schema, the
    command line, cards and the documentation follow from these.
    """

    recipe: str

    tag: ClassVar[str]
    """The Hub tag of results, such as "pruned"."""
    changes: ClassVar[Literal["structure", "weights", "precision"]]
    """What it changes. A recipe that changes the precision comes last; variants of a result are such recipes."""
    needs_plain_weights: ClassVar[str]
    """The reason why it cannot come after a change of precision, as a clause: "quantized weights cannot be cut"."""
    takes_custom_modules: ClassVar[bool] = True
    """Whether it can come after a recipe that leaves modules which a stock config cannot express."""
    width_multiple: ClassVar[int] = 1
    """What widths of linear layers have to be multiples of, so that it reaches all of them."""

    @classmethod
    def kind(cls) -> str:
        """Return its name in recipe files."""
        return str(cls.model_fields["recipe"].default)

    @property
    def leaves_precision_changed(self) -> bool:
        """Whether the weights afterwards are no plain ones, so that nothing can come after."""
        return self.changes == "precision"

    def planned(self, **facts: Any) -> Plan:
        """Return a plan of this recipe.

        Args:
            facts: fields of `Plan`, without those that say which recipe it is; `tag` where it depends on the settings.
        """
        return Plan(**{"tag": self.tag, **facts}, recipe=self.recipe, changes=self.changes)

    def models_read(self) -> tuple[ModelRead, ...]:
        """Return the models that it reads beside the one that it changes: a run is resumed only with the same ones."""
        return ()

    def folders_used(self) -> dict[str, Path]:
        """Return folders that it reads or writes, by what they are: no result may be written there."""
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
        """Find out what cannot work, with the original model, before the first stage begins.

        Raises:
            UsageError: something cannot work.
        """

    @abstractmethod
    def plan(self, state: StageState) -> Plan:
        """Decide everything, and change nothing.

        Raises:
            UsageError: see the recipe.
        """

    @abstractmethod
    def apply(self, state: StageState, plan: Plan) -> StageState:
        """Carry out the plan, which decides everything; return the state with a new model."""

    def carry_out(self, state: StageState) -> StageState:
        """Plan and apply.

        Args:
            state: with the model to change.

        Returns:
            The state after it, with a new model.

        Raises:
            UsageError: see `plan` and `apply`.
        """
        return self.apply(state, self.plan(state))
