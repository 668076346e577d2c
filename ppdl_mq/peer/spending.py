"""What a trial has cost of an organisation's privacy budget, and may cost yet.

A turn is charged in the very commit that takes its result into the journal: before that nothing of it can leave the
peer, and a turn that is begun anew comes to the same bits. Before anything begins the whole trial is held to the
budget, so that it does not end in its middle.

Source: docs/PRIVACY.md, "Accounting".
"""

from __future__ import annotations

import logging
from typing import Any, Final

from ppdl_mq.config.manifest import Manifest, Training
from ppdl_mq.config.settings import PeerSettings, Privacy
from ppdl_mq.errors import PeerFileError, PrivacyBudget
from ppdl_mq.peer.driver import has_begun
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.status import epsilon_text
from ppdl_mq.training import order
from ppdl_mq.training.data.samples import Split
from ppdl_mq.training.private import accountant
from ppdl_mq.training.private.accountant import Steps
from ppdl_mq.training.private.gradient import Mechanism

log = logging.getLogger("ppdl_mq.peer")

_FACT: Final = "privacy"


class Spending:
    """The budget of one peer in one trial. Used by the journal's thread.

    Args:
        journal: keeps what is spent, sealed.
        privacy: the settings.
        training: of the manifest: how many steps a turn has.
        rows: the peer's training rows.

    Raises:
        PrivacyBudget: the trial would cost more than the settings allow, or was begun in another way.
    """

    def __init__(self, journal: Journal, privacy: Privacy, training: Training, *, rows: int) -> None:
        self._journal = journal
        self._privacy = privacy
        self._training = training
        self._rows = rows
        self._batch_size = min(training.batch_size, rows)
        is_begun = has_begun(journal)
        kept = self._as_begun() if is_begun else self._anew()
        self._refuse_if_over(kept)
        if not is_begun:
            journal.keep_secret_fact(_FACT, kept)
        self.mechanism = Mechanism(clip=kept["clip"], noise=kept["noise"])

    def _anew(self) -> dict[str, Any]:
        privacy, noise = self._privacy, self._privacy.noise
        if noise is None:
            noise = accountant.least_noise(
                self._steps_from(0),
                batch_size=self._batch_size,
                rows=self._rows,
                budget=privacy.epsilon,
                delta=privacy.delta,
            )
        return {"clip": privacy.clip, "noise": noise, "next": 0, "spent": []}

    def _as_begun(self) -> dict[str, Any]:
        """Return what the trial was begun with, and what was spent.

        Raises:
            PrivacyBudget: it was begun in another way.
        """
        kept = self._kept()
        if kept is None:
            raise PrivacyBudget(
                "This trial was begun without differential privacy, which cannot be had for what was sent already.",
                hint="Take [privacy] out of the settings, or renew the trial: `ppdl-mq trial renew`.",
            )
        for name, given in (("noise", self._privacy.noise), ("clip", self._privacy.clip)):
            if given not in (None, kept[name]):
                raise PrivacyBudget(
                    f"The {name} of this trial is {kept[name]} since it was begun, not {given}.",
                    hint="Put it back: a turn that is trained again must come to the same bits.",
                )
        return kept

    def say(self) -> None:
        """Log what the whole trial costs."""
        kept = self._kept()
        log.info(
            "Differential privacy of each of %d training rows: by its end this trial costs epsilon %s of %g, at delta "
            "%g, with noise of %g times the clip %g in each step.",
            *(self._rows, epsilon_text(self._whole(kept)), self._privacy.epsilon, self._privacy.delta),
            *(self.mechanism.noise, self.mechanism.clip),
        )

    def charge(self, ordinal: int) -> None:
        """Count a turn; to be called in the transaction that journals its result.

        Args:
            ordinal: of the turn among all of this peer, from 0.
        """
        kept = self._kept()
        first, last = order.turn_run(self._training, ordinal, rows=self._rows)
        kind = [self._batch_size, self._rows, self.mechanism.noise]
        for entry in kept["spent"]:
            if entry[1:] == kind:
                entry[0] += last - first
                break
        else:
            kept["spent"].append([last - first, *kind])
        kept["next"] = max(kept["next"], ordinal + 1)
        self._journal.keep_secret_fact(_FACT, kept)

    def facts(self) -> dict[str, Any]:
        """Return what the status says of it."""
        spent = _spent(self._kept())
        return {
            "epsilon": accountant.epsilon(spent, self._privacy.delta),
            "budget": self._privacy.epsilon,
            "delta": self._privacy.delta,
            "noise": self.mechanism.noise,
            "steps": sum(each.count for each in spent),
        }

    def _kept(self) -> dict[str, Any]:
        kept: dict[str, Any] = self._journal.secret_fact(_FACT)
        return kept

    def _whole(self, kept: dict[str, Any]) -> float:
        """Return what the whole trial costs: the turns that are charged, and those that are not yet."""
        count = self._steps_from(kept["next"])
        to_come = Steps(count=count, batch_size=self._batch_size, rows=self._rows, noise=kept["noise"])
        return accountant.epsilon([*_spent(kept), to_come], self._privacy.delta)

    def _steps_from(self, ordinal: int) -> int:
        """Return how many steps the turns from this one on have."""
        turns = self._training.epochs * self._training.turns_per_epoch
        first, _ = order.turn_run(self._training, ordinal, rows=self._rows)
        last, _ = order.turn_run(self._training, turns, rows=self._rows)
        return last - first

    def _refuse_if_over(self, kept: dict[str, Any]) -> None:
        # Once all turns are charged, what is spent is spent, and the others may need this peer's last words.
        whole = self._whole(kept)
        if self._steps_from(kept["next"]) and whole > self._privacy.epsilon:
            raise PrivacyBudget(
                f"By its end this trial would cost epsilon {epsilon_text(whole)} at delta {self._privacy.delta:g}, and "
                f"the settings allow {self._privacy.epsilon:g}.",
                hint="Raise noise or epsilon in [privacy] before the trial begins, or agree on fewer epochs.",
            )


def spending_of(journal: Journal, settings: PeerSettings, manifest: Manifest, split: Split) -> Spending | None:
    """Return the budget of a trial, or None where the settings ask for no differential privacy.

    Args:
        journal: of the trial.
        settings: the organisation's own.
        manifest: of the trial.
        split: the samples.

    Raises:
        PrivacyBudget: the trial would cost too much, or was begun in another way.
        PeerFileError: something would give away what the noise is to hide.
    """
    privacy, rows = settings.privacy, len(split.train)
    if privacy is None:
        if journal.secret_fact(_FACT) is None:
            return None
        if has_begun(journal):
            raise PrivacyBudget(
                "This trial was begun with differential privacy, and the settings have no [privacy] any more.",
                hint="Put it back as it was.",
            )
        journal.keep_secret_fact(_FACT, None)  # of a start that came to nothing
        return None
    if privacy.delta * rows >= 1:
        raise PeerFileError(
            f"With {rows} training rows a delta of {privacy.delta:g} promises nothing: it allows one row to be shown.",
            hint=f"Set delta in [privacy] well below {1 / rows:.1g}.",
        )
    if manifest.data.standardise == "own":
        raise PeerFileError(
            'The manifest says standardise = "own": mean and std of all rows then stand in every row, without noise.',
            hint='Agree on standardise = "manifest" or "none", or take [privacy] out.',
        )
    shares_holdout = manifest.averaging is not None and manifest.averaging.evaluate_every > 0 and len(split.holdout) > 0
    if shares_holdout and not privacy.unprotected_holdout:
        raise PeerFileError(
            "The trial shares the figures of all hold-outs, which get no noise: the rows of this one would not be "
            "protected.",
            hint="Set holdout = 0 in [data], agree on evaluate_every = 0, or allow it with unprotected_holdout = true.",
        )
    if settings.sample_seed is not None:
        log.warning("The noise follows from sample_seed, which is easily guessed: this rehearsal protects no row.")
    spending = Spending(journal, privacy, manifest.training, rows=rows)
    spending.say()
    return spending


def _spent(kept: dict[str, Any]) -> list[Steps]:
    return [Steps(count=count, batch_size=size, rows=rows, noise=noise) for count, size, rows, noise in kept["spent"]]
