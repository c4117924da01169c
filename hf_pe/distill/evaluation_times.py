"""Decides at which steps a student is evaluated, so that evaluations take a stated share of the training time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

PARTS = 16
"""Number of equal parts of a training; evaluations lie between two of them."""
SPACINGS = (1, 2, 4, 8)
"""Parts from one evaluation to the next. Only few spacings exist, so that times that differ a little from run to run
mostly lead to the same steps."""
STATE = ("training_seconds", "evaluation_seconds", "last_seconds", "part")
"""Attributes that a checkpoint has."""
Clock = Callable[[], float]
"""Returns a time in seconds."""


class EvaluationTimes:
    """Measures the seconds of training and of evaluations, and decides which evaluations the share allows.

    The first evaluation and, if it is allowed, the last one belong to each training; as many as the share pays for
    besides these are spread evenly over the training. How long it takes is estimated from the fraction that is done,
    and each evaluation is expected to take as long as the one before it.

    Args:
        share: most seconds of evaluations per second of training.
        clock: that measures both.

    Example:
        >>> seconds = iter([0.0, 0.0, 1.0, 41.0, 42.0])
        >>> times = EvaluationTimes(share=0.05, clock=lambda: next(seconds))
        >>> times.begin()
        >>> with times.evaluation():  # takes one second
        ...     pass
        >>> times.is_due(fraction=0.5)  # 80 seconds of training pay for 4 evaluations
        True
    """

    def __init__(self, share: float, clock: Clock) -> None:
        self.share = share
        self.clock = clock
        self.training_seconds = 0.0
        self.evaluation_seconds = 0.0
        self.last_seconds = 0.0
        self.part = 0
        self._since: float | None = None

    def begin(self) -> None:
        """Measure the training from now on."""
        self._since = self.clock()

    def _measure_training(self) -> float:
        """Add the training since the last call, and return the current time."""
        now = self.clock()
        self.training_seconds += now - (now if self._since is None else self._since)
        self._since = None if self._since is None else now
        return now

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Count the seconds of the block as those of an evaluation."""
        start = self._measure_training()
        try:
            yield
        finally:
            self._since = self.clock()
            self.last_seconds = self._since - start
            self.evaluation_seconds += self.last_seconds

    def is_due(self, fraction: float) -> bool:
        """Return whether to evaluate now; asked after each step but the last one.

        Args:
            fraction: of the training that is done.
        """
        part = int(fraction * PARTS + 1e-9)
        if part == self.part:
            return False
        self.part = part
        self._measure_training()
        seconds = self.share * self.training_seconds / fraction
        if self.evaluation_seconds + 2 * self.last_seconds > seconds:  # this one and the last one
            return False
        spacing = next((s for s in SPACINGS if (PARTS // s + 1) * self.last_seconds <= seconds), PARTS)
        return part % spacing == 0

    def allows_last(self) -> bool:
        """Return whether the share allows an evaluation after the last step."""
        self._measure_training()
        return self.evaluation_seconds + self.last_seconds <= self.share * self.training_seconds

    def state(self) -> dict[str, float]:
        """Return the seconds so far, for a checkpoint."""
        self._measure_training()
        return {name: getattr(self, name) for name in STATE}

    def restore(self, state: dict[str, float]) -> None:
        """Continue with the seconds of a checkpoint."""
        for name in STATE:
            setattr(self, name, state[name])
