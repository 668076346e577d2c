from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest

from ppdl_mq.config import limits
from ppdl_mq.errors import Malformed, Misdirected, OutOfTurn, RemoteError, TooLarge, Unauthentic, UnknownVersion
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.quarantine import Quarantine
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.state import State
from ppdl_mq.wire.kinds import Kind, kinds_of
from ppdl_mq.wire.messages import Confirm
from tests.peer.desk import CHUNK_BYTES, NO_TRACE, Moment, desk_for, moments
from tests.trial import identity_of
from tests.writes import noted_writes

MOMENTS: dict[tuple[str, Kind], Moment] = {
    (protocol, kind): moment
    for protocol in ("fully-connected", "server-aided")
    for kind, moment in moments(protocol).items()
}
IDS = [f"{kind.name}-{protocol}" for protocol, kind in MOMENTS]


def flipped(part: bytes, at: int, by: int = 1) -> bytes:
    return part[:at] + bytes([part[at] ^ by]) + part[at + 1 :]


def test_there_is_a_moment_for_every_kind_of_every_protocol() -> None:
    assert {kind for protocol, kind in MOMENTS if protocol == "server-aided"} == kinds_of("server-aided")
    assert {kind for protocol, kind in MOMENTS if protocol == "fully-connected"} == kinds_of("fully-connected")


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=IDS)
def test_a_flipped_byte_at_every_position_is_refused_and_harmless(tmp_path: Path, moment: Moment) -> None:
    parts = moment.parts()
    assert len(parts) == 1
    with desk_for(moment, tmp_path) as desk:
        for at in range(len(parts[0])):
            assert isinstance(desk.offer(flipped(parts[0], at, 1 << at % 8)), RemoteError), at
        assert desk.traces() == NO_TRACE
        assert sum(desk.quarantine.counts().values()) == len(parts[0])
        desk.takes_the_original(parts)


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=IDS)
def test_a_message_cut_anywhere_is_refused_and_harmless(tmp_path: Path, moment: Moment) -> None:
    parts = moment.parts()
    with desk_for(moment, tmp_path) as desk:
        for size in range(len(parts[0])):
            assert type(desk.offer(parts[0][:size])) is Malformed, size
        assert desk.traces() == NO_TRACE
        desk.takes_the_original(parts)


@pytest.mark.parametrize("kind", [Kind.TURN, Kind.FINAL])
def test_flipped_bytes_between_the_parts_of_a_long_message(tmp_path: Path, kind: Kind) -> None:
    moment = MOMENTS["fully-connected", kind]
    parts = moment.parts(stride=60)
    assert len(parts) > 3
    with desk_for(moment, tmp_path) as desk:
        for number, part in enumerate(parts):
            if number == len(parts) - 1:
                for at in range(len(part)):
                    assert desk.offer(flipped(part, at)) is not None
            else:
                assert desk.offer(flipped(part, 7 * number)) is not None
                assert desk.offer(part) is None
        desk.takes_the_original(parts[-1:])


NAMED: dict[str, tuple[Kind, dict[str, Any], type[RemoteError]]] = {
    "of another trial": (Kind.TURN, {"trial_id": bytes(32)}, Misdirected),
    "HELLO of another trial, sealed for this": (Kind.HELLO, {"trial_id": bytes(32)}, Unauthentic),
    "RESEND of another trial": (Kind.RESEND, {"trial_id": bytes(32)}, Misdirected),
    "of another session": (Kind.CONFIRM, {"session_id": b"\x01" * 32}, Misdirected),
    "HELLO of a session": (Kind.HELLO, {"session_id": b"\x01" * 32}, Misdirected),
    "RESEND of a session": (Kind.RESEND, {"session_id": b"\x01" * 32}, Misdirected),
    "of no session": (Kind.TURN, {"session_id": bytes(32)}, Misdirected),
    "of the future beyond the last turn": (Kind.TURN, {"turn": 7}, OutOfTurn),
    "of turn 0": (Kind.TURN, {"turn": 0}, OutOfTurn),
    "of somebody else's turn": (Kind.TURN, {"turn": 2}, OutOfTurn),
    "NOTICE of somebody else's turn": (Kind.NOTICE, {"turn": 3}, OutOfTurn),
    "FINAL of another turn": (Kind.FINAL, {"turn": 5}, OutOfTurn),
    "DONE of another turn": (Kind.DONE, {"turn": 5}, OutOfTurn),
    "HELLO of a turn": (Kind.HELLO, {"turn": 1}, OutOfTurn),
    "of a second attempt": (Kind.TURN, {"attempt": 1}, OutOfTurn),
    "NOTICE of a second attempt": (Kind.NOTICE, {"attempt": 1}, OutOfTurn),
    "HELLO of a second attempt": (Kind.HELLO, {"attempt": 1}, OutOfTurn),
    "DONE of a second attempt": (Kind.DONE, {"attempt": 1}, OutOfTurn),
    "for another inbox": (Kind.CONFIRM, {"recipient": "dora"}, Misdirected),
    "for `weights`, where an inbox is meant": (Kind.CONFIRM, {"recipient": "weights"}, Misdirected),
    "of a stranger": (Kind.CONFIRM, {"sender": "mallory"}, Misdirected),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_an_insider_seals_wrongly_is_refused_by_type_and_harmless(tmp_path: Path, name: str) -> None:
    """Sealed and signed under the right keys, so that nothing but the rule itself stands in the way."""
    kind, changes, error = NAMED[name]
    moment = MOMENTS["server-aided", kind]
    with desk_for(moment, tmp_path) as desk:
        assert type(desk.offer(moment.parts(**changes)[0])) is error
        assert desk.traces() == NO_TRACE
        assert desk.quarantine.counts() == {error.__name__: 1}
        desk.takes_the_original(moment.parts())


def test_a_message_from_oneself(tmp_path: Path) -> None:
    moment = MOMENTS["fully-connected", Kind.CONFIRM]
    with desk_for(moment, tmp_path) as desk:
        assert type(desk.offer(moment.parts(sender=moment.reader)[0])) is Misdirected


def test_an_unknown_version(tmp_path: Path) -> None:
    moment = MOMENTS["fully-connected", Kind.TURN]
    (part,) = moment.parts()
    with desk_for(moment, tmp_path) as desk:
        assert type(desk.offer(part[:4] + b"\2" + part[5:])) is UnknownVersion
        assert desk.quarantine.counts() == {"UnknownVersion": 1}
        desk.takes_the_original([part])


def test_too_large(tmp_path: Path) -> None:
    moment = MOMENTS["fully-connected", Kind.TURN]
    with desk_for(moment, tmp_path) as desk:
        assert type(desk.offer(bytes(CHUNK_BYTES + 1))) is TooLarge
        weights = bytes(limits.MAX_META_BYTES + 1_000)
        assert type(desk.offer(moment.parts(weights=weights)[0])) is TooLarge
        for kind, size in ((Kind.CONFIRM, 1_025), (Kind.RESEND, 1_025), (Kind.HELLO, 263_169)):
            other = MOMENTS["fully-connected", kind]
            header = other.header(body_bytes=size, stride=1_025, sender=moment.letter.sender, recipient=moment.reader)
            assert type(desk.offer(header.encode() + bytes(1_025 + 40))) is TooLarge
        assert desk.traces() == NO_TRACE
        desk.takes_the_original(moment.parts())


def test_weights_of_another_size(tmp_path: Path) -> None:
    moment = MOMENTS["fully-connected", Kind.TURN]
    with desk_for(moment, tmp_path) as desk:
        for weights in (b"", moment.weights[:-1], moment.weights + b"\0"):
            assert type(desk.offer(moment.parts(weights=weights)[0])) is Malformed
        assert desk.traces() == NO_TRACE
        desk.takes_the_original(moment.parts())


def test_a_kind_that_the_protocol_lacks(tmp_path: Path) -> None:
    notice, turn = MOMENTS["server-aided", Kind.NOTICE], MOMENTS["fully-connected", Kind.TURN]
    with desk_for(turn, tmp_path) as desk:
        part = notice.parts(trial_id=turn.reader_terms.trial_id, session_id=turn.reader_state.session_id)[0]
        assert type(desk.offer(part)) is Misdirected


@pytest.mark.parametrize("kind", sorted(kinds_of("server-aided") - {Kind.HELLO, Kind.RESEND, Kind.CONFIRM}))
def test_before_the_session_is_known(tmp_path: Path, kind: Kind) -> None:
    moment = MOMENTS["server-aided", kind]
    early = dataclasses.replace(moment, reader_state=State(phase=Phase.AWAITING_HELLOS))
    with desk_for(early, tmp_path) as desk:
        assert type(desk.offer(moment.parts()[0])) is OutOfTurn
        assert desk.traces() == NO_TRACE


def test_confirms_are_parked_until_the_session_is_known(tmp_path: Path) -> None:
    moment = MOMENTS["fully-connected", Kind.CONFIRM]
    early = dataclasses.replace(moment, reader_state=State(phase=Phase.AWAITING_HELLOS))
    with desk_for(early, tmp_path) as desk:
        parts = [moment.parts(message_id=bytes([number]) * 16)[0] for number in range(6)]
        assert [desk.offer(part) is None for part in parts] == [True] * 4 + [False] * 2
        assert desk.quarantine.counts() == {"OutOfTurn": 2}
    with desk_for(moment, tmp_path) as desk:  # after a restart
        parked = list(desk.intake.unpark())
        assert parked == parts[:4]
        assert list(desk.intake.unpark()) == []
        desk.takes_the_original(parked[:1])


def test_a_forged_signature_does_not_keep_the_right_message_out(tmp_path: Path) -> None:
    """In server-aided every peer has the trial key, and so can seal in another's name, under the very message id."""
    moment = MOMENTS["server-aided", Kind.TURN]
    forger = next(name for name in moment.reader_terms.peers if name not in (moment.reader, moment.letter.sender))
    with desk_for(moment, tmp_path) as desk:
        for _ in range(3):
            assert type(desk.offer(moment.parts(sign=identity_of(forger).sign)[0])) is Unauthentic
        assert desk.traces() == NO_TRACE
        desk.takes_the_original(moment.parts())


def test_a_replay_is_dropped_silently(tmp_path: Path) -> None:
    moment = MOMENTS["fully-connected", Kind.TURN]
    parts = moment.parts(stride=100)
    with desk_for(moment, tmp_path) as desk:
        desk.takes_the_original(parts)
        traces = desk.traces()
        for part in parts * 3:
            assert desk.take(part) is None
        assert desk.offer(moment.parts()[0]) is None  # the same id in another shape
        assert desk.intake.complete() == []
        assert desk.traces() == traces
        assert desk.quarantine.counts() == {}
    with desk_for(moment, tmp_path) as desk:
        assert desk.take(parts[0]) is None


@pytest.mark.parametrize("seed", range(5))
def test_parts_in_any_order_twice_and_over_restarts(tmp_path: Path, seed: int) -> None:
    moment = MOMENTS["fully-connected", Kind.TURN]
    shuffled = moment.parts(stride=40) * 2
    random.Random(seed).shuffle(shuffled)
    while shuffled:
        with desk_for(moment, tmp_path) as desk:
            for part in shuffled[:5]:
                assert desk.offer(part) is None
            del shuffled[:5]
            if not shuffled:
                desk.takes_the_original([])
                assert desk.traces() == NO_TRACE | {"seen": 1}
    assert list((tmp_path / "blobs").iterdir()) == []


def test_what_was_not_flushed_comes_again(tmp_path: Path) -> None:
    moment = MOMENTS["fully-connected", Kind.TURN]
    for parts in (moment.parts(), moment.parts(stride=40)):
        with desk_for(moment, tmp_path / str(len(parts))) as desk:
            for part in parts:
                desk.take(part)  # not acknowledged yet: the process dies here
            assert desk.intake.complete() == []
        with desk_for(moment, tmp_path / str(len(parts))) as desk:
            desk.takes_the_original(parts)


def test_a_file_of_a_process_that_died_gets_its_name_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row may be committed and nothing synced: else a power cut could take a file whose parts are acknowledged."""
    moment = MOMENTS["fully-connected", Kind.TURN]
    parts = moment.parts(stride=40)
    with desk_for(moment, tmp_path) as desk:
        desk.take(parts[0])
    assert list((tmp_path / "blobs").iterdir())
    steps = noted_writes(monkeypatch, lambda path: path.name)
    with desk_for(moment, tmp_path) as desk:
        for part in parts:
            desk.take(part)
        desk.intake.flush()
        assert steps.count("fsync blobs") == 1


def test_parts_of_one_id_with_different_headers(tmp_path: Path) -> None:
    moment = MOMENTS["fully-connected", Kind.TURN]
    parts, others = moment.parts(stride=60), moment.parts(stride=61)
    with desk_for(moment, tmp_path) as desk:
        assert desk.offer(parts[0]) is None
        assert type(desk.offer(others[1])) is Malformed
        desk.takes_the_original(parts[1:])


def test_no_more_than_eight_unfinished_messages_of_one_sender(tmp_path: Path) -> None:
    moment = MOMENTS["fully-connected", Kind.TURN]
    begun = [moment.parts(stride=60, message_id=bytes([number]) * 16)[0] for number in range(10)]
    with desk_for(moment, tmp_path) as desk:
        refused = [desk.offer(part) for part in begun]
        assert [type(error) for error in refused] == [type(None)] * 8 + [OutOfTurn] * 2
    with desk_for(moment, tmp_path) as desk:
        assert type(desk.offer(begun[8])) is OutOfTurn
        desk.intake.forget_turns(moment.letter.send.turn + 1)
        assert desk.traces() == NO_TRACE
        assert list((tmp_path / "blobs").iterdir()) == []
        desk.takes_the_original(moment.parts(stride=60))


def test_one_confirm_beside_them_has_room(tmp_path: Path) -> None:
    """What is kept may wait for it."""
    moment = MOMENTS["fully-connected", Kind.TURN]
    send = dataclasses.replace(moment.letter.send, message=Confirm(contribution=b""), turn=0, blob=None)
    confirm = dataclasses.replace(moment, letter=dataclasses.replace(moment.letter, send=send), weights=b"")
    confirms = [confirm.parts(message_id=bytes([100 + number]) * 16)[0] for number in range(3)]
    turns = [moment.parts(stride=60, message_id=bytes([number]) * 16)[0] for number in range(10)]
    with desk_for(moment, tmp_path) as desk:
        for part in turns[:7]:
            assert desk.offer(part) is None
        assert desk.offer(confirms[0]) is None
        assert desk.offer(turns[7]) is None  # it takes nobody's place
        assert type(desk.offer(confirms[1])) is OutOfTurn
        assert type(desk.offer(turns[8])) is OutOfTurn
        assert desk.traces()["incoming"] == limits.MAX_OPEN_MESSAGES_PER_SENDER + 1
        desk.received()
        assert desk.offer(confirms[2]) is None
        assert type(desk.offer(turns[9])) is OutOfTurn


def test_the_quarantine_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_QUARANTINE_RECORDS", 10)
    moment = MOMENTS["fully-connected", Kind.TURN]
    with desk_for(moment, tmp_path) as desk:
        for number in range(25):
            desk.offer(b"garbage" * 50 + bytes([number]))
        assert desk.quarantine.counts() == {"Malformed": 25}
        rows = desk.journal.db.execute("SELECT reason, head FROM refused").fetchall()
        assert len(rows) == 10
        assert all(len(head) <= limits.MAX_REFUSED_HEAD_BYTES for _, head in rows)


def test_a_flood_of_one_sort_leaves_the_others_their_share_of_the_quarantine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_QUARANTINE_RECORDS", 12)
    journal = Journal(tmp_path, trial_id=bytes(32), identity=identity_of("anna"))
    quarantine = Quarantine(journal)

    def kept() -> list[bytes]:
        return [bytes(head) for (head,) in journal.db.execute("SELECT head FROM refused ORDER BY id")]

    for number in range(50):
        quarantine.add(Malformed("Junk: no message."), b"junk %d" % number)
    assert kept() == [b"junk %d" % number for number in range(12)]
    for number in range(50):
        quarantine.add(Unauthentic("Forged."), b"forged %d" % number)
        assert quarantine.kept()["records"] == 12
    assert kept() == [*(b"junk %d" % number for number in range(6)), *(b"forged %d" % number for number in range(6))]
    quarantine.add(Misdirected("Of another trial."), b"strayed")
    assert len(kept()) == 12
    assert kept()[-1] == b"strayed"
    for number in range(50, 60):  # who has had his share gets no more of it
        quarantine.add(Malformed("Junk: no message."), b"junk %d" % number)
    assert kept()[-1] == b"strayed"
    assert sum(head.startswith(b"junk") for head in kept()) >= 4
    assert quarantine.counts() == {"Malformed": 60, "Misdirected": 1, "Unauthentic": 50}
    journal.close()
    Journal(tmp_path, trial_id=bytes(32), identity=identity_of("anna")).close()  # and the sum over its rows holds


@pytest.mark.parametrize("seed", range(3))
def test_garbage(tmp_path: Path, seed: int) -> None:
    moment = MOMENTS["server-aided", Kind.TURN]
    (part,) = moment.parts()
    drawn = random.Random(seed)
    with desk_for(moment, tmp_path) as desk:
        for _ in range(400):
            garbage = bytearray(part)
            for _ in range(drawn.randint(1, 6)):
                garbage[drawn.randrange(len(garbage))] = drawn.randrange(256)
            if garbage != part:
                assert isinstance(desk.offer(bytes(garbage)), RemoteError)
            assert isinstance(desk.offer(drawn.randbytes(drawn.randrange(300))), RemoteError)
        desk.takes_the_original([part])


def test_a_turn_that_rests_at_weights_is_refused_when_it_comes_to_the_inbox(tmp_path: Path) -> None:
    moment = MOMENTS["server-aided", Kind.TURN]
    with desk_for(moment, tmp_path) as desk:
        with pytest.raises(Misdirected):
            desk.intake.take(desk.state, moment.parts()[0], came_to=moment.reader)
        assert desk.traces() == NO_TRACE
        desk.takes_the_original(moment.parts())


def test_complete_messages_that_wait_count_against_their_sender(tmp_path: Path) -> None:
    """A maker must not fill the disk with turns that are not due yet."""
    moment = MOMENTS["fully-connected", Kind.TURN]
    with desk_for(moment, tmp_path) as desk:
        for number in range(limits.MAX_OPEN_MESSAGES_PER_SENDER):
            desk.take(moment.parts(message_id=bytes([number] * 16))[0])
            desk.intake.flush()
        desk.take(moment.parts(message_id=bytes(b"x" * 16))[0])  # the others may yet be of use
        assert len(desk.intake.complete()) == limits.MAX_OPEN_MESSAGES_PER_SENDER  # the machine is offered them
        with pytest.raises(OutOfTurn):
            desk.take(moment.parts(message_id=bytes(b"y" * 16))[0])


def test_what_was_worked_on_does_not_count_against_those_that_get_its_numbers(tmp_path: Path) -> None:
    """Messages that were not offered yet were refused after others had been settled: SQLite numbers rows anew."""
    moment = MOMENTS["fully-connected", Kind.TURN]
    before, after = (range(first, first + limits.MAX_OPEN_MESSAGES_PER_SENDER) for first in (0, 100))
    with desk_for(moment, tmp_path) as desk:
        for number in before:
            desk.take(moment.parts(message_id=bytes([number] * 16))[0])
            desk.intake.flush()
        for row, header, _ in desk.intake.complete():
            with desk.journal.transaction():
                desk.intake.settle(row, header)
        for number in after:
            desk.take(moment.parts(message_id=bytes([number] * 16))[0])
            desk.intake.flush()
        desk.take(moment.parts(message_id=bytes(b"x" * 16))[0])


def test_ids_of_turns_long_past_are_dropped_and_so_are_their_messages(tmp_path: Path) -> None:
    moment = MOMENTS["fully-connected", Kind.TURN]
    turn, cycles = moment.letter.send.turn, 2 * len(moment.reader_terms.peers)
    confirm = MOMENTS["fully-connected", Kind.CONFIRM].header()
    with desk_for(moment, tmp_path) as desk:
        desk.takes_the_original(moment.parts())
        with desk.journal.transaction() as db:  # of the session, which has no turn
            db.execute("INSERT INTO seen VALUES (?, ?, 0)", (confirm.sender, confirm.message_id))
        desk.intake.forget_seen(turn + cycles)  # a machine may still compare it with what it knows
        assert desk.traces() == NO_TRACE | {"seen": 2}
        desk.intake.forget_seen(turn + cycles + 1)
        assert desk.traces() == NO_TRACE | {"seen": 1}
        assert desk.take(moment.parts()[0]) is None
        assert desk.take(moment.parts(message_id=b"another message\0")[0]) is None
    with desk_for(moment, tmp_path) as desk:
        assert desk.take(moment.parts()[0]) is None  # after a restart as well
        desk.intake.forget_seen(turn)  # and never back
        assert desk.offer(moment.parts()[0]) is None
        assert desk.intake.complete() == []
        assert desk.traces() == NO_TRACE | {"seen": 1}
        assert desk.quarantine.counts() == {}
