"""How long a peer waits for its relay, what it bears with, and what it shows of that."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ppdl_mq.config import limits
from ppdl_mq.errors import (
    ConfigError,
    InboxTaken,
    Interrupted,
    MessageTooLarge,
    PpdlError,
    RelayError,
    RelayLost,
    RelayRefused,
    RelayUnreachable,
    Unroutable,
)
from ppdl_mq.peer.link import Link
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport

UNREACHABLE = RelayUnreachable("nobody there.")
REFUSED = RelayRefused("no such user.")
TAKEN = InboxTaken("taken.")
LOST = RelayLost("broke.")
ODD = RelayError("506 RESOURCE_ERROR.")
UNREADABLE = ConfigError("The file with the broker's password is empty.", hint="Write it.")


class Relay(MemoryTransport):
    """A relay in memory whose connections fail as planned: first `failures`, one a try, then no more."""

    def __init__(self, *failures: PpdlError, relay: MemoryRelay | None = None) -> None:
        super().__init__(relay or MemoryRelay())
        self.failures = list(failures)
        self.tries = 0
        self.blocked: str | None = None
        self.lost: threading.Event | None = None

    @property
    def blocked_reason(self) -> str | None:
        return self.blocked

    def connect(self) -> None:
        self.tries += 1
        if self.failures:
            raise self.failures.pop(0)
        super().connect()


class Clock:
    """Time that passes only while somebody waits, and all waits that there were."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


class Stop(threading.Event):
    """The event on which a link waits between two tries; it takes no time, but for the clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.stop_at = float("inf")

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.clock.now += timeout
        self.clock.slept += timeout
        if self.clock.slept >= self.stop_at:
            self.set()
        return self.is_set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("ppdl_mq.peer.link.time", clock)
    return clock


@pytest.fixture
def stopped(clock: Clock) -> Stop:
    return Stop(clock)


MakeLink = Callable[..., Link]


@pytest.fixture
def make(stopped: Stop) -> Any:
    """Make links; all are closed at the end."""
    made = []

    def build(
        relay: Relay, *, resumes: bool = False, wait_s: float | None = None, shown: Any = None, meanwhile: Any = None
    ) -> Link:
        link = Link(
            relay,
            inbox="a",
            shared=lambda: ("weights",),
            inputs=queue.SimpleQueue(),
            resumes=resumes,
            wait_s=wait_s,
            stopped=stopped,
            show=shown or (lambda: None),
            meanwhile=meanwhile or (lambda: None),
        )
        made.append(link)
        return link

    yield build
    for link in made:
        link.close()


def state(link: Link) -> dict[str, Any]:
    found: dict[str, Any] = link.facts()["relay"]
    return found


FOR_EVER = 30_000  # tries; with 10 s between them at most, some 40 hours


class TestAtTheStart:
    @pytest.mark.parametrize("error", [REFUSED, TAKEN])
    def test_what_waiting_does_not_help_ends_it_at_once(self, make: MakeLink, clock: Clock, error: RelayError) -> None:
        with pytest.raises(type(error)):
            make(Relay(error)).up()
        assert clock.slept == 0

    @pytest.mark.parametrize(("wait_s", "limit_s"), [(None, limits.BROKER_WAIT_S), (7.0, 7.0), (0.0, 0.0)])
    @pytest.mark.parametrize("error", [UNREACHABLE, ODD])
    def test_a_new_trial_waits_for_a_while(
        self, make: MakeLink, clock: Clock, wait_s: float | None, limit_s: float, error: RelayError
    ) -> None:
        with pytest.raises(type(error)):
            make(Relay(*[error] * FOR_EVER), wait_s=wait_s).up()
        assert limit_s <= clock.slept <= limit_s + limits.BACKOFF_LAST_S

    def test_a_trial_that_resumes_waits_for_ever(self, make: MakeLink, clock: Clock) -> None:
        """A machine that boots before its broker, however long that takes."""
        make(Relay(*[UNREACHABLE] * FOR_EVER), resumes=True).up()
        assert clock.slept > 24 * 3600

    def test_unless_it_is_told_how_long(self, make: MakeLink, clock: Clock) -> None:
        with pytest.raises(RelayUnreachable):
            make(Relay(*[UNREACHABLE] * FOR_EVER), resumes=True, wait_s=60.0).up()
        assert clock.slept <= 60 + limits.BACKOFF_LAST_S

    @pytest.mark.parametrize("other", [REFUSED, TAKEN])
    def test_also_where_its_failures_are_of_several_kinds(
        self, make: MakeLink, clock: Clock, other: RelayError
    ) -> None:
        with pytest.raises(RelayError):
            make(Relay(*[UNREACHABLE, other] * FOR_EVER), resumes=True, wait_s=60.0).up()
        assert clock.slept <= 60 + 2 * limits.BACKOFF_LAST_S

    def test_a_trial_that_resumes_bears_with_a_broker_without_its_users_for_a_while(
        self, make: MakeLink, clock: Clock
    ) -> None:
        make(Relay(REFUSED, REFUSED, UNREACHABLE, REFUSED), resumes=True).up()
        with pytest.raises(RelayRefused):
            make(Relay(*[REFUSED] * FOR_EVER), resumes=True).up()
        assert clock.slept >= limits.BROKER_WAIT_S

    def test_a_trial_that_resumes_bears_with_its_own_shadow(self, make: MakeLink, clock: Clock) -> None:
        """The relay believes for as long as it is full that a connection that broke still reads the inbox."""
        make(Relay(*[TAKEN] * FOR_EVER), resumes=True).up()
        assert clock.slept > 24 * 3600
        with pytest.raises(InboxTaken):
            make(Relay(*[TAKEN] * FOR_EVER), resumes=True, wait_s=60.0).up()

    def test_a_password_that_cannot_be_read_ends_a_new_trial_at_once(self, make: MakeLink, clock: Clock) -> None:
        with pytest.raises(ConfigError):
            make(Relay(UNREADABLE)).up()
        assert clock.slept == 0


class TestInTheMiddle:
    @pytest.mark.parametrize("error", [UNREACHABLE, REFUSED, TAKEN, ODD, LOST, Unroutable("a")])
    def test_nothing_that_the_relay_says_ends_a_peer(self, make: MakeLink, clock: Clock, error: RelayError) -> None:
        """Neither a broker that comes back without its users, nor one without queues that this user may make."""
        relay = Relay()
        link = make(relay)
        link.up()
        relay.failures = [error] * FOR_EVER
        link.again(error, received=0, published=1)
        assert clock.slept > 24 * 3600
        assert state(link)["state"] == "connected"

    def test_nor_a_password_that_is_just_being_changed(self, make: MakeLink, clock: Clock) -> None:
        relay = Relay()
        link = make(relay)
        link.up()
        relay.failures = [UNREADABLE] * 100
        link.again(LOST, received=9, published=9)
        assert clock.slept > limits.BACKOFF_LAST_S
        assert state(link)["state"] == "connected"
        make(Relay(UNREADABLE), resumes=True).up()

    def test_but_a_message_over_the_limit_does(self, make: MakeLink) -> None:
        link = make(Relay())
        link.up()
        with pytest.raises(MessageTooLarge):
            link.again(MessageTooLarge("5 MB."), received=0, published=1)

    def test_and_a_refusal_before_it_was_of_any_use(self, make: MakeLink) -> None:
        link = make(Relay())
        link.up()
        with pytest.raises(RelayRefused):
            link.again(REFUSED, received=1, published=0)

    def test_what_lasts_is_tried_soon_and_what_breaks_at_once_ever_more_rarely(
        self, make: MakeLink, clock: Clock
    ) -> None:
        link = make(Relay())
        link.up()
        for _ in range(20):
            link.again(REFUSED, received=0, published=1)
        assert clock.slept > 5 * limits.BACKOFF_LAST_S / 2
        clock.now += limits.BACKOFF_LAST_S
        before = clock.slept
        link.again(REFUSED, received=0, published=1)
        link.again(REFUSED, received=1, published=1)
        assert clock.slept - before <= 2 * limits.BACKOFF_FIRST_S

    def test_the_waits_double_up_to_a_bound_and_are_random(
        self, make: MakeLink, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bounds: list[float] = []

        def uniform(low: float, high: float) -> float:
            assert low == 0
            bounds.append(high)
            return high / 2

        monkeypatch.setattr("ppdl_mq.peer.link.random.uniform", uniform)
        make(Relay(*[UNREACHABLE] * 12)).up()
        first, last = limits.BACKOFF_FIRST_S, limits.BACKOFF_LAST_S
        assert bounds == pytest.approx([min(last, first * 2**number) for number in range(12)])

    def test_whether_a_queue_was_gone_is_told(self, make: MakeLink) -> None:
        relay = MemoryRelay()
        link = make(Relay(relay=relay))
        assert not link.up()  # of a new trial: nobody can have sent anything to it
        assert not link.again(LOST, received=0, published=1)
        for address in ("a", "weights"):
            link.transport.delete(address)
            assert link.again(LOST, received=0, published=1)
        assert not link.again(LOST, received=0, published=1)
        link.transport.delete("a")
        link.close()
        assert make(Relay(relay=relay), resumes=True).up()

    def test_and_still_told_where_the_connection_breaks_once_more_after_it_was_made_anew(
        self, make: MakeLink, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def breaks(address: str) -> None:
            monkeypatch.undo()
            raise LOST

        link = make(Relay())
        link.up()
        link.transport.delete("a")
        monkeypatch.setattr(link.transport, "subscribe", breaks)
        assert link.again(LOST, received=0, published=1)
        assert not link.again(LOST, received=0, published=1)

    def test_that_it_was_away_or_takes_nothing_is_told_once(self, make: MakeLink) -> None:
        relay = Relay()
        link = make(relay)
        link.up()
        assert not link.was_cut()
        link.again(LOST, received=0, published=1)
        assert [link.was_cut(), link.was_cut()] == [True, False]
        relay.blocked = "low on memory"
        link.watch()
        assert [link.was_cut(), link.was_cut()] == [True, True]
        relay.blocked = None
        link.watch()
        assert [link.was_cut(), link.was_cut()] == [True, False]

    def test_what_needs_no_relay_is_done_meanwhile(self, make: MakeLink) -> None:
        calls: list[int] = []
        relay = Relay(*[UNREACHABLE] * 3)
        link = make(relay, meanwhile=lambda: calls.append(relay.tries))
        link.up()
        assert not calls  # nothing has begun yet
        relay.failures = [UNREACHABLE] * 3
        link.again(LOST, received=0, published=1)
        assert {4, 5, 6, 7} <= set(calls)


class Removing:
    """What a link is given to do as it leaves: it fails as planned, one failure a call, and notes what stands."""

    def __init__(self, relay: Relay, *failures: RelayError) -> None:
        self.relay = relay
        self.failures = list(failures)
        self.calls = 0
        self.inboxes: list[bool] = []

    def __call__(self) -> None:
        self.calls += 1
        self.relay._check()
        self.inboxes.append("a" in self.relay._relay.queues)
        self.relay.delete("a")
        if self.failures:
            raise self.failures.pop(0)


class TestLeaving:
    def test_what_the_connection_breaks_in_is_done_again(self, make: MakeLink) -> None:
        relay = Relay()
        link = make(relay)
        link.up()
        removing = Removing(relay, LOST, LOST)
        relay.failures = [UNREACHABLE, REFUSED]
        link.leave(removing)
        assert removing.inboxes == [True, False, False], "the inbox was made again"
        assert relay.tries == 5
        assert (state(link)["state"], state(link)["tries"], state(link)["reason"]) == ("connected", 0, "")
        assert state(link)["reconnects"] == 2

    def test_who_has_not_connected_connects_for_it(self, make: MakeLink) -> None:
        relay = Relay()
        removing = Removing(relay)
        make(relay, resumes=True).leave(removing)
        assert removing.inboxes == [False]

    def test_a_refusal_is_final(self, make: MakeLink, clock: Clock) -> None:
        relay = Relay()
        link = make(relay)
        link.up()
        removing = Removing(relay, REFUSED)
        with pytest.raises(RelayRefused):
            link.leave(removing)
        assert removing.calls == 1
        assert clock.slept == 0

    @pytest.mark.parametrize(("wait_s", "limit_s"), [(None, limits.BROKER_WAIT_S), (7.0, 7.0), (0.0, 0.0)])
    @pytest.mark.parametrize("error", [UNREACHABLE, REFUSED])
    def test_a_relay_that_lets_nobody_in_is_waited_for_for_a_while(
        self, make: MakeLink, clock: Clock, wait_s: float | None, limit_s: float, error: RelayError
    ) -> None:
        """Also in a trial that resumes: it has ended, and what is left to do is not worth more."""
        relay = Relay(*[error] * FOR_EVER)
        link = make(relay, resumes=True, wait_s=wait_s)
        with pytest.raises(RelayUnreachable):
            link.leave(Removing(relay))
        assert limit_s <= clock.slept <= limit_s + limits.BACKOFF_LAST_S
        assert state(link)["reason"] == error.message

    def test_so_is_one_that_lets_us_in_and_breaks(self, make: MakeLink, clock: Clock) -> None:
        relay = Relay()
        link = make(relay)
        link.up()
        with pytest.raises(RelayLost):
            link.leave(Removing(relay, *[LOST] * FOR_EVER))
        assert limits.BROKER_WAIT_S <= clock.slept <= limits.BROKER_WAIT_S + limits.BACKOFF_LAST_S

    def test_it_can_be_stopped(self, make: MakeLink, stopped: Stop) -> None:
        stopped.stop_at = 100
        relay = Relay(*[UNREACHABLE] * FOR_EVER)
        with pytest.raises(Interrupted):
            make(relay).leave(Removing(relay))
        assert stopped.clock.slept <= 100 + limits.LOOK_S


class TestStopping:
    def test_a_peer_that_waits_stops(self, make: MakeLink, stopped: Stop) -> None:
        stopped.stop_at = 100
        with pytest.raises(Interrupted):
            make(Relay(*[UNREACHABLE] * FOR_EVER), resumes=True).up()
        assert stopped.clock.slept <= 100 + limits.LOOK_S

    def test_also_within_a_wait_for_the_relay(self, make: MakeLink, stopped: Stop) -> None:
        relay = Relay()
        make(relay)
        relay._waits()
        stopped.set()
        with pytest.raises(Interrupted):
            relay._waits()


class TestWhatIsShown:
    def test_all_of_it(self, make: MakeLink, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        seen: list[dict[str, Any]] = []
        relay = Relay(UNREACHABLE, UNREACHABLE)
        link = make(relay, shown=lambda: seen.append(state(link)))
        assert state(link)["state"] == "connecting"
        started = clock.now
        link.up()
        assert [(each["state"], each["tries"], each["reason"]) for each in (seen[0], seen[-1])] == [
            ("connecting", 1, "nobody there."),
            ("connecting", 2, "nobody there."),
        ]
        assert {each["since"] for each in seen} == {started}
        connected_at = clock.now
        assert state(link) == {
            "state": "connected",
            "since": pytest.approx(connected_at, abs=0.001),
            "host": None,
            "tries": 0,
            "reason": "",
            "reconnects": 0,
        }
        seen.clear()
        relay.failures = [UNREACHABLE] * 3
        link.again(RelayLost("It broke."), received=0, published=1)
        assert seen[0]["state"] == "reconnecting"
        assert seen[0]["reason"] == "It broke."
        assert (seen[-1]["tries"], seen[-1]["reason"], seen[-1]["reconnects"]) == (3, "nobody there.", 1)
        assert "password" not in caplog.text
        assert [record.message for record in caplog.records] == [
            "nobody there. Waiting for the relay.",
            "Connected again.",
            "It broke. Reconnecting.",
            "nobody there. Waiting for the relay.",
            "Connected again.",
        ]
        link.close()
        assert state(link)["state"] == "closed"

    def test_what_is_waited_for_is_said_again_now_and_then(
        self, make: MakeLink, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        make(Relay(*[UNREACHABLE] * 1000), resumes=True).up()
        said = sum("nobody there." in record.message for record in caplog.records)
        assert 0.5 <= said / (clock.slept / limits.SAY_AGAIN_S) <= 1.5

    def test_a_relay_that_takes_nothing(self, make: MakeLink, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        relay = Relay()
        link = make(relay)
        link.up()
        relay.blocked = "low on memory"
        for _ in range(3):
            link.watch()
        assert (state(link)["state"], state(link)["reason"]) == ("blocked", "low on memory")
        relay.blocked = None
        for _ in range(3):
            link.watch()
        assert (state(link)["state"], state(link)["reason"]) == ("connected", "")
        assert [record.message for record in caplog.records] == [
            "The relay takes no messages for now (low on memory). Waiting for it.",
            "The relay takes messages again.",
        ]
