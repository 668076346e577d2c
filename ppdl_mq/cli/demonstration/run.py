"""The demonstration from beginning to end.

Data dealt out, comparisons in this process, one real trial for each protocol, and what came of it in three files.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from ppdl_mq import __version__
from ppdl_mq.cli.demonstration.datasets import Dataset, Rows, Shares, deal, load
from ppdl_mq.cli.demonstration.folder import (
    OUTPUTS,
    RELAY_NAME,
    SEED,
    Organisation,
    taken,
    write_manifest,
    write_organisations,
)
from ppdl_mq.cli.demonstration.inspection import Secrets, inspect
from ppdl_mq.cli.demonstration.screen import Screen
from ppdl_mq.cli.demonstration.trial import Ran, run_trial
from ppdl_mq.config import writing
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.reading import EMBEDDED
from ppdl_mq.errors import ConfigError
from ppdl_mq.report.averaging import Tally, largest_difference, rounds_in_clear
from ppdl_mq.report.comparison import Comparer, Comparison, differing_bits
from ppdl_mq.report.page import page
from ppdl_mq.report.result import MASKED, Averaged, Curve, Outcome, Result, Share
from ppdl_mq.training import baselines
from ppdl_mq.training.data.prepare import load_split, prepare
from ppdl_mq.training.data.samples import Samples, Split
from ppdl_mq.training.order import rehearsal_seed
from ppdl_mq.training.worker import Worker

_TWO_PEERS: Final = (
    "With two organisations, masked-average hides neither from the other: each can subtract its own part."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked for on the command line.

    Args:
        organisations: how many.
        dataset: its name.
        protocols: at least one.
        activation: of the model.
        epochs: of each trial.
        broker: URL of a relay; None for an embedded one of its own.
        password_env: environment variable of its password.
        out: the folder.
    """

    organisations: int
    dataset: str
    protocols: Sequence[str]
    activation: str
    epochs: int
    broker: str | None
    password_env: str | None
    out: Path


def demonstrate(request: Request, screen: Screen) -> Result:
    """Run the whole demonstration; writes the model, the page and the result.

    Raises:
        PpdlError: what keeps it from ending well.
    """
    dataset = load(request.dataset, seed=SEED)
    with taken(request.out):
        shares = deal(dataset, request.organisations, seed=SEED)
        relay = _relay_url(request)
        organisations = write_organisations(request.out, shares, relay=relay, password_env=request.password_env)
        manifests = {
            request.out / f"{protocol}.toml": write_manifest(
                request.out / f"{protocol}.toml",
                dataset,
                shares,
                organisations,
                protocol=protocol,
                activation=request.activation,
                epochs=request.epochs,
            )
            for protocol in request.protocols
        }
        comparers = {
            manifest.protocol: comparer_for(manifest, organisations, shares.public) for manifest in manifests.values()
        }
        # The order of turns is that of a trial that has turns, if there is one.
        comparer = next((each for name, each in comparers.items() if name != MASKED), next(iter(comparers.values())))
        comparison = comparer.compare(lambda text: screen.say(f"Training: {text}"))
        screen.say("Training: other turn lengths")
        turn_lengths = () if comparer.manifest.averaging else tuple(comparer.turn_lengths())
        round_lengths = tuple(comparers[MASKED].turn_lengths()) if MASKED in comparers else ()
        secrets = _secrets(comparison, comparer, organisations, shares)
        broker = BrokerAddress.from_settings(next(iter(organisations.values())).settings.broker)
        outcomes: dict[str, Outcome] = {}
        curves = list(comparison.curves)
        model = b""
        for path, manifest in manifests.items():
            layout = next(iter(comparer.workers.values())).layout
            ran = run_trial(path, manifest, organisations, broker, layout, screen)
            averaged = None
            if manifest.averaging is not None:
                screen.say("Training: federated averaging in plain PyTorch, and the trial's rounds once more")
                averaged, curve = _averaged(ran, comparers[MASKED], secrets)
                curves.insert(0, curve)
            outcomes[manifest.protocol] = _outcome(ran, comparison, comparer, secrets, averaged)
            model = model or next(iter(ran.model_paths.values())).read_bytes()
        result = Result(
            dataset=dataset.name,
            title=dataset.title,
            skew=dataset.skew,
            classes=dataset.classes,
            public_rows=len(shares.public.labels),
            shares=_shares(dataset, shares, comparer),
            activation=request.activation,
            model_bytes=len(comparison.weights),
            relay=str(broker) if request.broker else "a SQLite file of this machine",
            pooled_accuracy=comparison.shuffled,
            pooled_same_order_accuracy=comparison.same_order,
            alone=comparison.alone,
            protocols=outcomes,
            curves=tuple(curves),
            turn_lengths=turn_lengths,
            round_lengths=round_lengths,
            cautions=(_TWO_PEERS,) if MASKED in outcomes and request.organisations == 2 else (),
            software=f"ppdl-mq {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        )
        _write(request.out, model, result)
    return result


def _relay_url(request: Request) -> str:
    if request.broker is None:
        return f"{EMBEDDED}{(request.out / RELAY_NAME).absolute()}"
    address = BrokerAddress.parse(request.broker)
    return f"{EMBEDDED}{address.path.absolute()}" if address.path is not None else request.broker


def comparer_for(manifest: Manifest, organisations: Mapping[str, Organisation], public: Rows) -> Comparer:
    """Build for each organisation the worker that its own process will build from the same files."""
    workers, seeds = {}, {}
    cpu = torch.device("cpu")
    for name, organisation in organisations.items():
        settings = organisation.settings
        assert settings.sample_seed is not None, "a rehearsal"
        seeds[name] = rehearsal_seed(settings.sample_seed, name)
        split = load_split(settings.data, manifest, seeds[name], folder=organisation.folder)
        workers[name] = Worker(manifest, split, device=cpu)
    samples = Samples(torch.from_numpy(public.inputs), torch.from_numpy(public.labels))
    prepared = prepare(Split(samples, samples), manifest, bytes(32), holdout=0)
    return Comparer(manifest, workers, seeds, prepared.holdout)


def _secrets(
    comparison: Comparison, comparer: Comparer, organisations: Mapping[str, Organisation], shares: Shares
) -> Secrets:
    """Collect what the relay must not see."""
    secrets = Secrets()
    for state in comparison.states:
        secrets.add_weights(state)
    for name, rows in shares.private.items():
        secrets.add_floats(rows.inputs)
        secrets.add_floats(comparer.workers[name].split.train.inputs.numpy())
        secrets.add_integers(rows.inputs.astype(np.int64))
        secrets.add_integers(rows.labels)
        secrets.add_key(organisations[name].identity.secret.reveal())
        secrets.add_key(comparer.seeds[name])
    return secrets


def _averaged(ran: Ran, comparer: Comparer, secrets: Secrets) -> tuple[Averaged, Curve]:
    """Hold a trial of masked-average to what it promises.

    Args:
        ran: the trial.
        comparer: with its manifest.
        secrets: gets what each organisation trained and nobody may see, once an epoch.

    Returns:
        What was found, and the average's accuracy over epochs.
    """
    manifest, workers, seeds = comparer.manifest, comparer.workers, comparer.seeds
    turns = manifest.training.turns_per_epoch
    models = tuple(ran.models.values())
    tally = Tally(agreed=ran.agreed, models=models, rounds=manifest.training.epochs * turns)
    points = [(0.0, comparer.accuracy(next(iter(workers.values())).initial()))]
    for each in rounds_in_clear(manifest, workers, seeds):
        tally.add(each)
        if each.number % turns:
            continue
        points.append((each.number / turns, comparer.accuracy(each.average)))
        secrets.add_weights(each.average)
        for own, words in zip(each.own.values(), each.words.values(), strict=True):
            secrets.add_weights(own)
            secrets.add(words)
    plain = baselines.federated_averaging(manifest, workers, seeds)
    share = "its whole epoch" if turns == 1 else f"1/{turns} of its epoch"
    averaged = Averaged(
        a_round=f"A round: each organisation trains {share}, then the mean counts for all.",
        largest_difference=max(largest_difference(model, plain) for model in models),
        values=tally.values,
        values_off=tally.values_off,
        holdouts=ran.holdouts,
    )
    return averaged, Curve(name=MASKED, points=tuple(points))


def _outcome(
    ran: Ran, comparison: Comparison, comparer: Comparer, secrets: Secrets, averaged: Averaged | None
) -> Outcome:
    seen = inspect(ran.passed, secrets) if ran.passed is not None else None
    return Outcome(
        accuracy=comparer.accuracy(next(iter(ran.models.values()))),
        differing_bits=None
        if averaged
        else max(differing_bits(model, comparison.weights) for model in ran.models.values()),
        averaged=averaged,
        distinct_models=len({path.read_bytes() for path in ran.model_paths.values()}),
        relay_messages=seen.messages if seen else ran.published_messages,
        relay_bytes=seen.bytes if seen else ran.published_bytes,
        relay_readable=seen.readable if seen else None,
        relay_counted_by="tap" if seen else "peers",
        relay_findings={"unsealed": seen.unsealed, "shrinkable": seen.shrinkable, "known": seen.known} if seen else {},
        seconds=round(ran.seconds, 3),
        turns=ran.turns,
        seconds_a_turn=round(ran.seconds_a_turn, 5),
        holdout=ran.holdout,
    )


def _shares(dataset: Dataset, shares: Shares, comparer: Comparer) -> tuple[Share, ...]:
    return tuple(
        Share(
            name=name,
            rows=len(rows.labels),
            training_rows=comparer.workers[name].rows,
            counts=rows.counts(len(dataset.classes)),
        )
        for name, rows in shares.private.items()
    )


def _write(out: Path, model: bytes, result: Result) -> None:
    names = dict(zip(("model", "page", "result"), OUTPUTS, strict=True))
    try:
        (out / names["model"]).write_bytes(model)
    except OSError as error:
        raise ConfigError(f"{out / names['model']} cannot be written: {error.strerror}.") from None
    writing.write_new(out / names["page"], page(result), error=ConfigError)
    writing.write_new(out / names["result"], json.dumps(result.as_data(), indent=2) + "\n", error=ConfigError)
