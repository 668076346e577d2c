from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from nacl import bindings

from ppdl_mq.audit.verdict import Verdict, verify_logs
from ppdl_mq.cli.main import run
from ppdl_mq.errors import JournalError, TooLarge
from ppdl_mq.peer.progress import PROGRESS_NAME, Progress
from ppdl_mq.protocol.effects import Record
from ppdl_mq.protocol.statements import context_digest, statement_bytes
from ppdl_mq.wire.entries import LOG_NAME, MAX_LINE_BYTES, Entry, read_line
from tests.audit.logs import (
    MASKED,
    SEQUENTIAL,
    commitment,
    context,
    digest,
    entries_of,
    lines_of,
    masked_records,
    over,
    said,
    session_keys,
    session_of,
    step_of,
    turn_records,
    write_log,
)
from tests.trial import PEERS, identity_of, manifest_for

SESSION = session_of(MASKED, session_keys(MASKED))
OF_STEP_1 = context(SESSION, 1)
HONEST = PEERS[:2]  # where cleo lies


def kinds(verdict: Verdict) -> list[tuple[str, str]]:
    return [(finding.kind, finding.peer) for finding in verdict.findings]


# --- logs that hold --------------------------------------------------------------------------------------------------


def test_logs_of_all_peers_agree(tmp_path: Path) -> None:
    paths = [write_log(tmp_path / name, name, masked_records()) for name in PEERS]
    verdict = verify_logs(paths)
    assert verdict.holds
    assert verdict.agreed_steps == 2
    assert [(log.peer, log.last_step, log.entries) for log in verdict.logs] == [
        (name, 2, 1 + len(masked_records())) for name in PEERS
    ]


def test_sequential_logs_agree_as_far_as_the_shortest_reaches(tmp_path: Path) -> None:
    long = write_log(tmp_path / "a", "anna", turn_records(6), SEQUENTIAL)
    short = write_log(tmp_path / "b", "bert", turn_records(4), SEQUENTIAL)
    empty = write_log(tmp_path / "c", "cleo", [], SEQUENTIAL)
    verdict = verify_logs([long, short])
    assert verdict.holds
    assert (verdict.agreed_steps, [log.last_step for log in verdict.logs]) == (4, [6, 4])
    assert verify_logs([long, short, empty]).agreed_steps == 0
    assert verify_logs([long]).agreed_steps == 6


def test_order_of_different_senders_does_not_matter(tmp_path: Path) -> None:
    records = masked_records()
    shuffled = records[:3] + random.Random(5).sample(records[3:], len(records) - 3)
    verdict = verify_logs([write_log(tmp_path / "a", "anna", records), write_log(tmp_path / "b", "bert", shuffled)])
    assert verdict.holds
    assert verdict.agreed_steps == 2


def test_an_unfinished_last_line_is_told_and_passed_over(tmp_path: Path) -> None:
    path = write_log(tmp_path / "a", "anna", masked_records())
    path.write_bytes(path.read_bytes()[:-7])
    verdict = verify_logs([path])
    assert verdict.holds
    assert verdict.logs[0].is_unfinished
    assert verdict.logs[0].entries == len(masked_records())


# --- one log that does not -------------------------------------------------------------------------------------------


def other(value: Any) -> Any:
    """Another value of the same type and size."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case bytes():
            return value[:-1] + bytes([value[-1] ^ 1]) if value else b"\1"
        case str():
            return "bert" if value == "anna" else "anna"
        case list() | tuple():
            return [other(value[0]), *value[1:]]
    raise AssertionError(value)


def one_of_each() -> list[Entry]:
    turns = [entry for entry in entries_of("anna", turn_records(), SEQUENTIAL) if entry.says in ("turn", "final")]
    entries = entries_of("anna", masked_records(), MASKED) + turns
    return list({entry.says: entry for entry in entries}.values())


@pytest.mark.parametrize("entry", one_of_each(), ids=lambda entry: entry.says)
@pytest.mark.parametrize("resealed", [False, True], ids=["as-it-was", "signed-again-by-the-owner"])
def test_no_field_can_be_changed(tmp_path: Path, entry: Entry, resealed: bool) -> None:
    """By a stranger none at all; by the log's owner nothing that another peer signed."""
    manifest = SEQUENTIAL if entry.says in ("turn", "final") else MASKED
    entries = entries_of("anna", turn_records() if manifest is SEQUENTIAL else masked_records(), manifest)
    whole = lines_of(entries, identity_of("anna").sign)
    at = entry.number
    changes: list[tuple[str, Any]] = [
        (field, other(getattr(entry, field)))
        for field in ("number", "previous", "by", "says", "signature", "logged_by")
    ]
    changes += [("about", {**entry.about, key: other(value)}) for key, value in entry.about.items()]
    changes += [("about", {**entry.about, "more": 1}), ("about", dict(list(entry.about.items())[1:]))]
    assert entries[at] == entry
    path = tmp_path / "log"
    for field, value in changes:
        changed = dataclasses.replace(entry, **{field: value})
        signed = changed.signed_bytes() if resealed else entry.signed_bytes()
        path.write_bytes(b"".join([*whole[:at], changed.line(identity_of("anna").sign(signed)), *whole[at + 1 :]]))
        verdict = verify_logs([path])
        assert kinds(verdict) == [("broken log", "")], (field, value)
        assert verdict.findings[0].places == ((str(path), at),), (field, value)
    broken = whole[at][:-30] + other(whole[at][-30:-29]) + whole[at][-29:]  # of the owner's signature
    path.write_bytes(b"".join([*whole[:at], broken, *whole[at + 1 :]]))
    assert kinds(verify_logs([path])) == [("broken log", "")]


@pytest.mark.parametrize(
    ("change", "at"),
    [
        (lambda lines: [*lines[:5], lines[6], lines[5], *lines[7:]], 5),
        (lambda lines: [*lines[:5], *lines[6:]], 5),
        (lambda lines: [*lines[:5], lines[4], *lines[5:]], 5),
        (lambda lines: lines[1:], 0),
        (lambda lines: [lines[0], *lines], 1),
        (lambda lines: [*lines[:5], b"\n", *lines[5:]], 5),
        (lambda lines: [*lines[:5], lines[5].replace(b", ", b",", 1), *lines[6:]], 5),
        (lambda lines: [*lines[:5], b'{"number": 5' + lines[5][11:-1] + b" \n", *lines[6:]], 5),
        (lambda lines: [*lines[:5], lines[5].replace(b"hex:", b"hex: ", 1), *lines[6:]], 5),
        (lambda lines: [*lines[:5], b"[" * 100_000 + b"\n"], 5),
        (lambda lines: [*lines[:5], b"9" * 5_000 + b"\n"], 5),
        (lambda lines: [*lines[:5], b"x" * 2_000_000 + b"\n"], 5),
        (lambda lines: [], 0),
    ],
    ids=[
        "swapped",
        "left-out",
        "doubled",
        "no-beginning",
        "two-beginnings",
        "empty-line",
        "spaces",
        "space-at-end",
        "spaced-hex",
        "deep",
        "large-number",
        "long-line",
        "empty",
    ],
)
def test_lines_cannot_be_moved(tmp_path: Path, change: Callable[[list[bytes]], list[bytes]], at: int) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(change(lines_of(entries_of("anna", masked_records(), MASKED), identity_of("anna").sign))))
    verdict = verify_logs([path])
    assert [(finding.kind, finding.places) for finding in verdict.findings] == [("broken log", ((str(path), at),))]


@pytest.mark.parametrize(
    "records",
    [
        [said("anna", "leave", session=SESSION, step=1)],  # before the session keys
        [*session_keys(MASKED), said("anna", "leave", session=digest("another"), step=1)],
        [*session_keys(MASKED), said("anna", "turn", session=SESSION, turn=0, before=bytes(32), digest=digest(1))],
        [*session_keys(MASKED), commitment("anna", context(digest("another"), 1))],
        [*session_keys(MASKED), commitment("anna", context(SESSION, 0))],
        [*session_keys(MASKED), commitment("anna", context(SESSION, 5))],
        [*session_keys(MASKED), commitment("anna", context(SESSION, 1, members=("bert", "cleo", "dora")))],
        [*session_keys(MASKED), commitment("anna", context(SESSION, 1, members=("bert", "anna", "cleo")))],
        [*session_keys(MASKED), commitment("anna", context(SESSION, 1, members=("anna", "bert")))],
        [*session_keys(MASKED), commitment("anna", b"\x80")],
        [said("anna", "session key", trial=digest("another"), name="anna", key=digest("key"))],
    ],
    ids=lambda records: f"{records[-1].says}-{len(records)}",
)
def test_statements_that_no_trial_has_are_refused(tmp_path: Path, records: list[Record]) -> None:
    verdict = verify_logs([write_log(tmp_path / "log", "anna", records)])
    assert [(finding.kind, finding.places[0][1]) for finding in verdict.findings] == [("broken log", len(records))]


@pytest.mark.parametrize("fault", ["not its turn", "a gap", "another base", "another end"])
def test_turns_that_do_not_follow_are_refused(tmp_path: Path, fault: str) -> None:
    records = turn_records(6)
    session = records[4].about["session"]
    match fault:
        case "not its turn":
            records[5] = said("cleo", "turn", **records[5].about)
        case "a gap":
            del records[5]
        case "another base":
            records[5] = said(records[5].by, "turn", **{**records[5].about, "before": digest("another")})
        case "another end":
            records[-1] = said("cleo", "final", session=session, turn=6, digest=digest("another"))
    assert kinds(verify_logs([write_log(tmp_path / "log", "anna", records, SEQUENTIAL)])) == [("broken log", "")]


# --- logs that contradict each other ---------------------------------------------------------------------------------


def replaced(records: list[Record], by: str, says: str, **about: Any) -> tuple[list[Record], Record]:
    """The records with the first such statement replaced by a contradicting one of the same signer."""
    at = next(number for number, record in enumerate(records) if (record.by, record.says) == (by, says))
    lie = said(by, says, **{**records[at].about, **about})
    return [*records[:at], lie, *records[at + 1 :]], lie


def committed() -> list[Record]:
    """The records of a peer that stopped after the first commitments."""
    return masked_records()[: 2 * len(PEERS)]


CONTRADICTIONS: dict[str, Callable[[], tuple[list[Record], list[Record]]]] = {
    # Bert, who got the other commitment, does not sign a receipt for the one that it never saw.
    "commitment": lambda: (committed(), replaced(committed(), "cleo", "commitment", mask=digest("lie"))[0]),
    "commitment on other weights": lambda: (
        committed(),
        replaced(committed(), "cleo", "commitment", context=context(SESSION, 1, base="lie"))[0],
    ),
    "commitment among others": lambda: (
        committed(),
        [*committed()[:-1], commitment("cleo", context(SESSION, 1, members=("bert", "cleo")), count=2)],
    ),
    "farewell": lambda: (
        [*masked_records(), said("cleo", "leave", session=SESSION, step=3)],
        [*masked_records(), said("cleo", "leave", session=SESSION, step=4)],
    ),
    "receipt": lambda: (masked_records(), replaced(masked_records(), "cleo", "receipt", commitments=digest("lie"))[0]),
    "sum": lambda: (masked_records(), replaced(masked_records(), "cleo", "sum", digest=digest("lie"))[0]),
    "agreement": lambda: (masked_records(), replaced(masked_records(), "cleo", "agreement", digest=digest("lie"))[0]),
    "agreement in another attempt": lambda: (
        masked_records(),
        [*masked_records(), *(each for each in step_of(SESSION, 1, attempt=3) if each.by == "cleo")],
    ),
    "abandon": lambda: (masked_records(), replaced(masked_records(), "cleo", "abandon", overflow=False)[0]),
    "session key": lambda: (session_keys(MASKED), session_keys(MASKED, cleo=digest("lie"))),
}


def test_a_receipt_in_each_of_two_attempts_is_none(tmp_path: Path) -> None:
    first = [each for each in step_of(SESSION, 1, attempt=0) if each.says in ("commitment", "receipt")]
    records = [*session_keys(MASKED), *first, *step_of(SESSION, 1, attempt=1)]
    verdict = verify_logs([write_log(tmp_path / "a", "anna", records)])
    assert verdict.holds
    assert verdict.agreed_steps == 1


def signed_with_chance(by: str, message: bytes) -> bytes:
    """Another valid Ed25519 signature of the same message, as only a liar makes it (RFC 8032, 5.1.6)."""
    order = 2**252 + 27742317777372353535851937790883648493
    identity = identity_of(by)
    half = bytearray(hashlib.sha512(identity.secret.reveal()[:32]).digest()[:32])
    half[0] &= 248
    half[31] = (half[31] & 127) | 64
    nonce = 12_345_678_901
    point = bindings.crypto_scalarmult_ed25519_base_noclamp(nonce.to_bytes(32, "little"))
    challenge = hashlib.sha512(point + identity.public.ed25519 + message).digest()
    scalar = nonce + int.from_bytes(challenge, "little") * int.from_bytes(half, "little")
    return bytes(point + (scalar % order).to_bytes(32, "little"))


def test_one_session_key_with_two_signatures_makes_two_sessions(tmp_path: Path) -> None:
    keys = session_keys(MASKED)
    again = signed_with_chance("cleo", statement_bytes("session key", keys[2].about))
    others = [*keys[:2], dataclasses.replace(keys[2], signature=again)]
    one, two = write_log(tmp_path / "a", "anna", keys), write_log(tmp_path / "b", "bert", others)
    assert verify_logs([two]).holds
    assert kinds(verify_logs([one, two])) == [("contradiction", "cleo")]


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_a_peer_that_signed_two_things_is_named(tmp_path: Path, kind: str) -> None:
    truth, lie = CONTRADICTIONS[kind]()
    one, two = write_log(tmp_path / "a", "anna", truth), write_log(tmp_path / "b", "bert", lie)
    for paths in ([one, two], [two, one]):
        verdict = verify_logs(paths)
        assert ("contradiction", "cleo") in kinds(verdict)
        blamed = [finding for finding in verdict.findings if finding.kind == "contradiction"]
        assert {finding.peer for finding in blamed} == {"cleo"}
        for finding in blamed:
            for path, number in finding.places:
                line = json.loads(Path(path).read_text().splitlines()[number])
                assert (line["number"], line["by"]) == (number, "cleo")
    assert verify_logs([one]).holds


def test_two_results_of_a_turn_name_its_peer(tmp_path: Path) -> None:
    records = turn_records(3)
    lie = said("cleo", "turn", **{**records[-1].about, "digest": digest("lie")})
    one = write_log(tmp_path / "a", "anna", records, SEQUENTIAL)
    two = write_log(tmp_path / "b", "bert", [*records[:-1], lie], SEQUENTIAL)
    verdict = verify_logs([one, two])
    assert [(finding.kind, finding.peer, finding.places) for finding in verdict.findings] == [
        ("contradiction", "cleo", ((str(one), len(records)), (str(two), len(records))))
    ]
    assert verdict.agreed_steps == 2


def test_two_ends_name_the_peer_that_signed_both(tmp_path: Path) -> None:
    records = turn_records(6)
    other_last = {**records[-4].about, "digest": digest("lie")}
    forged = [*records[:-4], said(records[-4].by, "turn", **other_last)]
    session = records[-1].about["session"]
    forged.append(said("bert", "final", session=session, turn=6, digest=digest("lie")))
    one = write_log(tmp_path / "a", "anna", records, SEQUENTIAL)
    two = write_log(tmp_path / "b", "bert", forged, SEQUENTIAL)
    found = kinds(verify_logs([one, two]))
    assert [each for each in found if each[0] == "contradiction"] == [
        ("contradiction", "cleo"),
        ("contradiction", "bert"),
    ]


def test_both_sides_of_a_contradiction_may_stand_in_one_log(tmp_path: Path) -> None:
    lie = commitment("cleo", OF_STEP_1, "another vector")
    path = write_log(tmp_path / "a", "anna", [*masked_records(), lie])
    assert kinds(verify_logs([path])) == [("contradiction", "cleo")]


def test_different_results_of_two_peers_blame_nobody(tmp_path: Path) -> None:
    the_digest = context_digest(OF_STEP_1)
    records = committed()
    mine = said("anna", "agreement", context=the_digest, digest=digest("mine"), commitments=over(records[len(PEERS) :]))
    theirs = said(
        "bert", "agreement", context=the_digest, digest=digest("theirs"), commitments=over(records[len(PEERS) :])
    )
    one, two = (
        write_log(tmp_path / "a", "anna", [*records, mine]),
        write_log(tmp_path / "b", "bert", [*records, theirs]),
    )
    verdict = verify_logs([one, two])
    assert kinds(verdict) == [("difference", "")]
    assert "anna and bert" in verdict.findings[0].text
    assert verdict.agreed_steps == 0


def test_an_owner_that_kept_two_logs_is_named(tmp_path: Path) -> None:
    records = masked_records()
    one = write_log(tmp_path / "a", "anna", records)
    two = write_log(tmp_path / "b", "anna", [*records[:5], records[6], records[5], *records[7:]])
    older = write_log(tmp_path / "c", "anna", records[:10])
    assert kinds(verify_logs([one, two])) == [("contradiction", "anna")]
    assert verify_logs([one, two]).findings[0].places == ((str(one), 6), (str(two), 6))
    assert verify_logs([one, older, one]).holds


def test_logs_of_different_trials_are_told_apart(tmp_path: Path) -> None:
    paths = [write_log(tmp_path / "a", "anna", masked_records()), write_log(tmp_path / "b", "anna", [], SEQUENTIAL)]
    verdict = verify_logs(paths)
    assert kinds(verdict) == [("other trial", "")]
    assert verdict.agreed_steps == 0
    renewed = manifest_for(nonce="11" * 16)
    paths = [
        write_log(tmp_path / "a", "anna", session_keys(MASKED)),
        write_log(tmp_path / "c", "bert", session_keys(renewed), renewed),
    ]
    assert kinds(verify_logs(paths)) == [("other trial", "")]


def test_what_precedes_a_broken_entry_still_counts(tmp_path: Path) -> None:
    lie, _ = replaced(committed(), "cleo", "commitment", mask=digest("lie"))
    one, two = write_log(tmp_path / "a", "anna", committed()), write_log(tmp_path / "b", "bert", lie)
    two.write_bytes(two.read_bytes() + b"junk\n")
    assert kinds(verify_logs([one, two])) == [("broken log", ""), ("contradiction", "cleo")]


# --- hostile files, and the command ----------------------------------------------------------------------------------

WHOLE = b"".join(lines_of(entries_of("anna", masked_records(), MASKED), identity_of("anna").sign))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "log"


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_bytes_never_raise_anything_else(place: Path, data: st.DataObject) -> None:
    raw = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        # Mostly in the first entries: what follows the first damage is not read.
        at = data.draw(st.integers(0, 6_000) | st.integers(0, len(raw) - 1))
        piece = data.draw(
            st.binary(max_size=8) | st.sampled_from([b'"', b"{", b"]", b"1e9", b"null", b"-1", b"\\ud800"])
        )
        raw[at : at + data.draw(st.integers(0, 8))] = piece
    place.write_bytes(raw)
    expect_verdict(place)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary(max_size=70).map(lambda b: "hex:" + b.hex()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ("number", "previous", "by", "says", "about", "signature", "logged_by", "log_signature")


@settings(
    max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(number=st.integers(0, 20), field=st.sampled_from(FIELDS), inner=st.booleans(), value=ANYTHING)
@example(number=1, field="about", inner=True, value=2**70)
@example(number=1, field="by", inner=False, value="\ud800")
def test_damaged_fields_never_raise_anything_else(
    place: Path, number: int, field: str, inner: bool, value: object
) -> None:
    lines = WHOLE.splitlines(keepends=True)
    entry = json.loads(lines[number])
    if field == "about" and inner:
        entry["about"][sorted(entry["about"])[0]] = value
    else:
        entry[field] = value
    lines[number] = json.dumps(entry).encode() + b"\n"
    place.write_bytes(b"".join(lines))
    expect_verdict(place)


def expect_verdict(place: Path) -> None:
    """Nothing but our own errors; and what is damaged does not hold, unless only the end is missing."""
    verdict = verify_logs([place])
    raw = place.read_bytes()
    whole_lines = raw[: raw.rfind(b"\n") + 1]
    assert verdict.holds == (bool(whole_lines) and WHOLE.startswith(whole_lines))


def test_a_line_over_the_limit_is_not_parsed() -> None:
    with pytest.raises(TooLarge):
        read_line(b" " * (MAX_LINE_BYTES + 1))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(JournalError, match=path.name):
            verify_logs([path])


def test_the_folder_of_a_log_stands_for_it_and_what_lies_beside_it_is_told_apart(tmp_path: Path) -> None:
    write_log(tmp_path / LOG_NAME, "anna", masked_records())
    assert verify_logs([tmp_path]).holds
    Progress(tmp_path).note("round")
    with pytest.raises(JournalError, match="no signed log") as caught:
        verify_logs([tmp_path / PROGRESS_NAME])
    assert LOG_NAME in caught.value.hint


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (
        write_log(tmp_path / "a.log", "anna", masked_records()),
        write_log(tmp_path / "b.log", "bert", masked_records()[: 5 * len(PEERS)]),  # to the end of step 1
    )
    assert run(["trial", "verify-log", str(one), str(two)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "They agree on 1 step."
    assert out.splitlines()[0].startswith("anna ")
    assert "to step 2" in out.splitlines()[0]
    assert run(["trial", "verify-log", "--json", str(one)]) == 0
    assert json.loads(capsys.readouterr().out)["agreed_steps"] == 2

    lie, _ = replaced(masked_records(), "cleo", "sum", digest=digest("lie"))
    write_log(two, "bert", lie)
    assert run(["trial", "verify-log", str(one), str(two)]) == 7
    assert "contradiction: cleo signed two sums of one shard: entry " in capsys.readouterr().out
    assert run(["trial", "verify-log", "--json", str(one), str(two)]) == 7
    assert json.loads(capsys.readouterr().out)["findings"][0]["peer"] == "cleo"
    shutil.rmtree(tmp_path)
    assert run(["trial", "verify-log", str(one)]) == 9


# --- statements of several sorts together ----------------------------------------------------------------------------


def receipt_over(by: str, commitments: list[Record]) -> Record:
    return said(by, "receipt", context=context_digest(OF_STEP_1), commitments=over(commitments))


def test_an_honest_peer_to_whom_somebody_lied_is_asked_and_not_blamed(tmp_path: Path) -> None:
    truth = committed()
    shown = [*truth[:-1], commitment("cleo", OF_STEP_1, "lie")]
    receipt = receipt_over("anna", shown[3:])
    bert = write_log(tmp_path / "b", "bert", [*truth, receipt])
    assert kinds(verify_logs([bert])) == [("question", "anna")]
    too_short = write_log(tmp_path / "c", "anna", shown[:4])
    assert kinds(verify_logs([bert, too_short])) == [("question", "anna")]
    anna = write_log(tmp_path / "a", "anna", [*shown, receipt])
    for logs in ([bert, anna], [anna, bert]):
        assert kinds(verify_logs(logs)) == [("contradiction", "cleo")]
    lying = write_log(tmp_path / "d", "anna", truth)
    assert kinds(verify_logs([bert, lying])) == [("contradiction", "anna")]


@pytest.mark.parametrize("says", ["receipt", "agreement"])
def test_more_commitments_than_are_tried_end_the_search(tmp_path: Path, says: str) -> None:
    many = [commitment(name, OF_STEP_1, str(number)) for name in PEERS for number in range(12)]
    about = {"digest": digest("result")} if says == "agreement" else {}
    lie = said("bert", says, context=context_digest(OF_STEP_1), commitments=digest("none"), **about)
    log = write_log(tmp_path / "a", "anna", [*session_keys(MASKED), *many, lie])
    assert kinds(verify_logs([log])) == [*(("contradiction", name) for name in PEERS)]  # each signed twelve


def test_a_combination_of_commitments_in_several_logs_explains_a_receipt(tmp_path: Path) -> None:
    """Bert's own log is missing, but what it signed for stands here and there."""
    truth, lie_of_anna = committed(), commitment("anna", OF_STEP_1, "lie")
    lie_of_cleo = commitment("cleo", OF_STEP_1, "lie")
    receipt = receipt_over("bert", [lie_of_anna, truth[4], lie_of_cleo])
    one = write_log(tmp_path / "a", "anna", [*truth[:3], lie_of_anna, *truth[4:], receipt])
    two = write_log(tmp_path / "c", "cleo", [*truth[:5], lie_of_cleo])
    assert kinds(verify_logs([one])) == [("question", "bert")]
    assert kinds(verify_logs([one, two])) == [("contradiction", "anna"), ("contradiction", "cleo")]


def test_a_receipt_and_an_agreement_go_over_the_same_commitments(tmp_path: Path) -> None:
    other_ones = [*committed()[3:5], commitment("cleo", OF_STEP_1, "lie")]
    records = [*masked_records()[:15], receipt_over("bert", other_ones)]
    del records[7]  # bert's own receipt
    found = kinds(verify_logs([write_log(tmp_path / "a", "anna", records)]))
    assert found == [("contradiction", "bert"), ("difference", "")]


def test_who_goes_on_from_other_weights_than_it_agreed_on_is_named(tmp_path: Path) -> None:
    first = masked_records()[:15]
    honest = [commitment(name, context(SESSION, 2)) for name in HONEST]
    lie = commitment("cleo", context(SESSION, 2, base="lie"))
    log = write_log(tmp_path / "a", "anna", [*first, *honest, lie])
    assert kinds(verify_logs([log])) == [("contradiction", "cleo"), ("difference", "cleo")]
    log = write_log(tmp_path / "b", "anna", [*first, *honest, commitment("cleo", context(SESSION, 2))])
    assert verify_logs([log]).holds


def test_two_bases_in_two_attempts_of_one_step_contradict_each_other(tmp_path: Path) -> None:
    records = [commitment("cleo", OF_STEP_1), commitment("cleo", context(SESSION, 1, 1, base="lie"))]
    log = write_log(tmp_path / "a", "anna", [*session_keys(MASKED), *records])
    assert kinds(verify_logs([log])) == [("contradiction", "cleo")]


def test_two_who_lie_together_get_nobody_blamed(tmp_path: Path) -> None:
    """Cleo stands alone with the right result, and the verdict does not say that it lied."""
    records = masked_records()[:15]
    k = over(records[3:6])
    lies = [said(name, "agreement", **{**records[12].about, "digest": digest("lie")}) for name in HONEST]
    assert records[12].about["commitments"] == k
    paths = [write_log(tmp_path / name, name, [*records[:12], *lies, records[14]]) for name in PEERS]
    (finding,) = verify_logs(paths).findings
    assert (finding.kind, finding.peer) == ("difference", "cleo")
    assert "it lies, or all the others do" in finding.text


def test_other_sums_in_its_own_log_explain_another_result(tmp_path: Path) -> None:
    records = masked_records()[:15]
    shown = said("bert", "sum", **{**records[10].about, "digest": digest("lie")})
    result = said("cleo", "agreement", **{**records[14].about, "digest": digest("of the lie")})
    anna = write_log(tmp_path / "a", "anna", [*records[:14], result])
    cleo = write_log(tmp_path / "c", "cleo", [*records[:10], shown, *records[11:14], result])
    assert kinds(verify_logs([anna])) == [("difference", "cleo")]
    assert kinds(verify_logs([anna, cleo])) == [("contradiction", "bert"), ("difference", "")]
