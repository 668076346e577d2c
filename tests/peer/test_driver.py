"""The driver and the mailroom of a peer that does not run: what is on disk when, and what is carried out after it."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import JournalError, Malformed, RelayLost
from ppdl_mq.peer import runner as runner_module
from ppdl_mq.peer.intake import Intake
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.live import LiveSecrets
from ppdl_mq.peer.orders import Order, give_order, take_orders
from ppdl_mq.peer.runner import Runner
from ppdl_mq.protocol.effects import Effect, Send
from ppdl_mq.protocol.events import Overdue, Sent
from ppdl_mq.protocol.machine import NotYet
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.sequential import SequentialMachine
from ppdl_mq.protocol.session import PairKeys
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.training.worker import Worker
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Done
from tests.peer.desk import moments
from tests.protocol.world import NAMES, started, terms_of
from tests.trial import identity_of, manifest_for, split_for

MANIFEST = manifest_for(NAMES[:3], training__epochs=2)
SENT = Sent(kind=Kind.HELLO, turn=0, recipient="bert", message_id=bytes(16))


class Still(Runner):
    """A runner that nobody runs; what its driver carries out is written down."""

    def __init__(self, terms: Terms, journal: Journal) -> None:
        worker = Worker(MANIFEST, split_for(terms.me, MANIFEST), device=torch.device("cpu"))
        transport = MemoryTransport(MemoryRelay())
        super().__init__(terms, MANIFEST, identity_of(terms.me), journal, worker, bytes(32), transport)
        self.done: list[Effect] = []
        self.faults: list[Exception] = []
        self.hands.carry_out = self._note  # type: ignore[method-assign]

    def _note(self, effect: Effect) -> None:
        assert not self.journal.db.in_transaction, "carried out before it was on disk"
        if self.faults:
            raise self.faults.pop()
        self.done.append(effect)

    def letters(self) -> int:
        return int(self.journal.db.execute("SELECT count(*) FROM outgoing").fetchone()[0])


@contextmanager
def still(folder: Path, terms: Terms | None = None) -> Iterator[Still]:
    of = terms or terms_of("anna", training__epochs=2)
    with closing(Journal(folder, trial_id=of.trial_id, identity=identity_of(of.me))) as journal:
        runner = Still(of, journal)
        yield runner
        runner.intake.close()


def refuse(*_: Any) -> None:
    raise Malformed("refused, after something was written")


def test_a_batch_is_all_or_nothing(tmp_path: Path) -> None:
    with still(tmp_path) as peer:
        before = peer.state

        def fail() -> None:
            with peer.driver.batch():
                peer.driver.post(started("anna"))
                peer.driver.post(Overdue())
                assert peer.letters() == 4
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert (peer.letters(), peer.done, peer.state) == (0, [], before)
        assert peer.journal.secret_fact("state") is None
        peer.driver.post(started("anna"))
        assert (peer.letters(), len(peer.done)) == (2, 2)
    with still(tmp_path) as peer:
        assert peer.state.phase is Phase.AWAITING_HELLOS


def test_a_batch_is_one_commit_and_then_carried_out_in_order(tmp_path: Path) -> None:
    with still(tmp_path) as peer:
        commits: list[str] = []
        peer.journal.db.set_trace_callback(lambda line: commits.append(line) if line.startswith("COMMIT") else None)
        with peer.driver.batch():
            peer.driver.post(started("anna"))
            for _ in range(10):
                with peer.driver.batch():  # nested: the outermost decides
                    peer.driver.post(Overdue())
                    peer.driver.post(SENT)
            assert peer.done == []
        assert len(commits) == 1
        sent = [effect for effect in peer.done if isinstance(effect, Send)]
        assert [(send.reader, send.ordinal) for send in sent[2:]] == [
            (name, ordinal) for ordinal in range(10) for name in ("bert", "cleo")
        ]
        assert len(peer.done) == 22


def test_a_post_that_fails_within_a_batch_leaves_the_others(tmp_path: Path) -> None:
    with still(tmp_path) as peer:

        def write_and_fail(*_: Any) -> None:
            peer.journal.keep_fact("half", b"1")
            refuse()

        with peer.driver.batch():
            peer.driver.post(started("anna"))
            state = peer.state
            with pytest.raises(Malformed):
                peer.driver.post(Overdue(), also=write_and_fail)
            assert peer.state is state
        assert peer.journal.fact("half") is None
        assert (peer.letters(), len(peer.done)) == (2, 2)
        with pytest.raises(Malformed):
            peer.driver.post(Overdue(), also=write_and_fail)
        assert (peer.state, peer.letters(), len(peer.done)) == (state, 2, 2)


def test_what_an_error_kept_from_being_carried_out_is_carried_out_next(tmp_path: Path) -> None:
    with still(tmp_path) as peer:
        peer.faults.append(RelayLost("gone"))
        with pytest.raises(RelayLost):
            peer.driver.post(started("anna"))
        assert peer.state.phase is Phase.AWAITING_HELLOS
        assert peer.done == []
        peer.driver.catch_up()
        assert [effect.reader for effect in peer.done if isinstance(effect, Send)] == ["cleo"]


def test_secrets_are_not_in_the_journal(tmp_path: Path) -> None:
    with still(tmp_path) as peer:
        peer.driver.post(started("anna"))
        secret = started("anna").session_secret.reveal()
        assert "secrets" not in peer.journal.secret_fact("state")

        def values(data: Any) -> Iterator[Any]:
            for value in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
                yield value
                yield from values(value)

        with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as db:
            sealed = [
                name
                for (name,) in db.execute("SELECT name FROM fact WHERE name NOT IN ('format', 'trial', 'keys', 'rows')")
            ]
        assert sorted(sealed) == ["live secrets", "state"]
        assert secret not in [value for name in sealed for value in values(peer.journal.secret_fact(name))]
        (first,) = (tmp_path / "live").iterdir()
        peer.driver.post(Overdue())  # changes the state and none of its secrets
        assert list((tmp_path / "live").iterdir()) == [first]
        with peer.driver.batch():
            peer.driver._move(peer.state, peer.state.without_secrets())
        (second,) = (tmp_path / "live").iterdir()
        assert second != first
    with still(tmp_path) as peer:
        assert peer.state.session_secret is None
        assert peer.state.resends == 1


def test_a_peer_resumes_with_its_secrets(tmp_path: Path) -> None:
    with still(tmp_path) as peer:
        peer.driver.post(started("anna"))
        before = peer.state
    with still(tmp_path) as peer:
        assert peer.state == before
        assert peer.state.session_secret == started("anna").session_secret


@pytest.mark.parametrize("how", ["write-ahead log lost", "put back"])
def test_a_journal_that_lost_its_session_key_makes_no_other(tmp_path: Path, how: str) -> None:
    """The first process could not reach the relay and ended in good order; the second one sent HELLO and was killed."""
    state, killed = tmp_path / "state", tmp_path / "killed"
    with still(state):
        pass
    before = (state / "journal.sqlite").read_bytes()
    with still(state) as peer:
        peer.driver.post(started("anna"))
        assert [effect.reader for effect in peer.done if isinstance(effect, Send)] == ["bert", "cleo"]
        shutil.copytree(state, killed)  # closing it would take the write-ahead log into the journal
    (state / "journal.sqlite").write_bytes(before if how == "put back" else (killed / "journal.sqlite").read_bytes())
    with pytest.raises(JournalError, match="does not resume"), still(state):
        pass


def test_who_died_before_it_noted_that_it_has_begun_resumes_and_notes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with still(tmp_path) as peer, monkeypatch.context() as patched:
        patched.setattr(LiveSecrets, "drop_others", dies)
        with pytest.raises(KeyboardInterrupt):
            peer.driver.post(started("anna"))
        assert peer.done == []
        assert not (tmp_path / "spoken").exists()
    with still(tmp_path) as peer:
        assert peer.state.session_secret == started("anna").session_secret
        assert (tmp_path / "spoken").exists()
        assert peer.letters() == 2


def test_what_came_too_early_is_checked_once_and_offered_when_the_machine_has_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = moments("fully-connected")[Kind.CONFIRM]
    reads: list[int] = []
    offers: list[Any] = []
    is_early = True
    read, step = Intake.read, SequentialMachine.step

    def counted(intake: Intake, row: int, *rest: Any) -> Any:
        reads.append(row)
        return read(intake, row, *rest)

    def early(machine: SequentialMachine, state: Any, event: Any) -> Any:
        offers.append(event)
        if is_early:
            raise NotYet("not yet")
        return step(machine, state, event)

    monkeypatch.setattr(Intake, "read", counted)
    monkeypatch.setattr(SequentialMachine, "step", early)
    with still(tmp_path, moment.reader_terms) as peer:
        peer.driver.state = moment.reader_state
        peer.mailroom.take(moment.parts())
        for _ in range(3):
            peer.mailroom.work()
        assert (len(reads), len(offers)) == (1, 1)
        peer.driver.moves += 1
        peer.mailroom.work()
        assert (len(reads), len(offers)) == (1, 2)
        is_early = False
        peer.mailroom.work()
        assert len(offers) == 2, "nothing has changed since"
        peer.driver.moves += 1
        peer.mailroom.work()
        assert (len(reads), len(offers)) == (1, 3)
        assert moment.letter.sender in peer.state.contributions
        assert peer.intake.complete() == []
        assert not peer.mailroom._early


@pytest.mark.parametrize("order", [Order(drop="bert"), Order()])
def test_an_order_that_the_protocol_does_not_have_is_said_once(
    tmp_path: Path, order: Order, caplog: pytest.LogCaptureFixture
) -> None:
    with still(tmp_path) as peer:
        peer.driver.post(started("anna"))
        before = peer.state
        give_order(tmp_path, order)
        with caplog.at_level(logging.WARNING, logger=runner_module.log.name):
            for _ in range(3):
                peer._take_orders()
        assert take_orders(tmp_path) == []
        assert len(caplog.records) == 1
        assert "fully-connected" in caplog.text
        assert peer.state is before


def test_the_step_that_drops_the_keys_seals_its_own_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = Send(recipient="bert", reader="bert", turn=1, message=Done(digest=bytes(32), signature=bytes(64)))
    with still(tmp_path) as runner:
        keys = PairKeys(towards=Secret(bytes(32)), back=Secret(bytes(32)))
        keyed = runner.state.replace(session_id=bytes(32), pair_keys={"bert": keys})
        runner.driver.state = keyed
        monkeypatch.setattr(SequentialMachine, "step", lambda *_: (keyed.without_secrets(), (last,)))
        runner.driver.post(SENT)
        assert runner.letters() == 1
        assert not runner.state.pair_keys
