"""What an evaluation says, and whether the trial may end with it. Source: docs/PROTOCOL.md, section 15."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from ppdl_mq.config.manifest import Averaging

_SCALE: Final = 2.0**24
_MOST: Final = 2.0**55


@dataclass(frozen=True, slots=True)
class Outcome:
    """The means over all hold-outs.

    Args:
        loss: None where somebody's was not finite, or nobody has rows.
        accuracy: 0 to 1; None in regression, or where nobody has rows.
    """

    loss: float | None = None
    accuracy: float | None = None

    def remembered(self, lowest_loss: float | None, worse: int) -> dict[str, Any]:
        """Return the fields of a state that keep count of evaluations without a lower loss."""
        if self.loss is not None and (lowest_loss is None or self.loss < lowest_loss):
            return {"lowest_loss": self.loss, "worse": 0}
        return {"lowest_loss": lowest_loss, "worse": worse + 1}

    def is_enough(self, rules: Averaging, worse: int) -> bool:
        """Tell whether the trial ends early."""
        accuracy, loss = self.accuracy, self.loss
        return (
            (rules.stop_at_accuracy is not None and accuracy is not None and accuracy >= rules.stop_at_accuracy)
            or (rules.stop_at_loss is not None and loss is not None and loss <= rules.stop_at_loss)
            or (rules.stop_patience is not None and worse >= rules.stop_patience)
        )


def figures_of(loss: float | None, accuracy: float | None, rows: int) -> tuple[int, ...]:
    """Return the five words that a peer adds to the sum.

    Args:
        loss: mean over its rows; None without any.
        accuracy: share of right answers; None in regression or without rows.
        rows: of its hold-out.
    """
    if loss is None or rows == 0:
        return (0, 0, 0, 0, 0)
    scaled = loss * rows * _SCALE
    is_finite = math.isfinite(scaled) and abs(scaled) < _MOST
    right = (0, 0) if accuracy is None else (round(accuracy * rows), rows)
    # The rows stay: without them the difference to the others' would be this peer's own.
    return (round(scaled) if is_finite else 0, rows, *right, 0 if is_finite else 1)


def outcome_of(total: tuple[int, ...]) -> Outcome:
    """Return what the summed words say."""
    loss, loss_rows, right, right_rows, not_finite = total
    return Outcome(
        loss=loss / _SCALE / loss_rows if loss_rows > 0 and not_finite == 0 else None,
        accuracy=right / right_rows if right_rows > 0 else None,
    )
