"""What this process has trained so far, added up from what `Progress` notes; the log of the past is not read again."""

from __future__ import annotations

from typing import Any, Final

# What stands in the file for a turn, or for the training of a round; a turn's line has its hold-out's figures too.
_TRAINED: Final = ("turn", "trained")
_SUMMED: Final = ("seconds", "steps", "samples")
_LATEST: Final = ("loss", "holdout_loss", "holdout_accuracy")


class Tally:
    """Sums and last figures of one process, empty at its start."""

    def __init__(self) -> None:
        self._training: dict[str, Any] = {"times": 0}
        self._evaluation: dict[str, Any] = {}

    def add(self, event: str, facts: dict[str, Any]) -> None:
        """Take in what was noted; `facts` is plain data.

        Args:
            event: of the line in progress.jsonl.
            facts: the rest of it.
        """
        if event == "evaluation":
            self._evaluation = {name: facts.get(name) for name in ("round", "loss", "accuracy")}
            return
        if event in _TRAINED and "steps" in facts:  # turn 0, the initial weights, was built and not trained
            self._training["times"] += 1
            for name in _SUMMED:
                self._training[name] = round(self._training.get(name, 0) + facts[name], 6)
        self._training |= {name: facts[name] for name in _LATEST if name in facts}

    def facts(self) -> dict[str, Any]:
        """Return what the status says of it, as plain data for JSON.

        `training` holds `times` (turns, or rounds, that were trained), `seconds`, `steps` and `samples` of these
        together, and the last `loss`, `holdout_loss` and `holdout_accuracy`; what is not known is not there.
        `evaluation`, over all hold-outs, holds `round`, `loss` and `accuracy`, and is there once there was one.
        """
        return {"training": dict(self._training)} | ({"evaluation": self._evaluation} if self._evaluation else {})
