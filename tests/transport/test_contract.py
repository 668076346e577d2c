"""One contract for every transport: what the peer relies on, whichever relay it has."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from ppdl_mq.config import limits
from ppdl_mq.errors import InboxTaken, Interrupted, MessageTooLarge, RelayLost, Unroutable
from ppdl_mq.transport.base import MAX_HELD
from tests.transport.relays import SOON_S, Relay, bodies, eventually, receive_all, subscribe_soon


def test_messages_come_in_the_order_they_were_published(relay: Relay) -> None:
    sender, reader = relay.open("b"), relay.open()
    reader.subscribe("a")
    sent = [b"%d" % number for number in range(50)]
    sender.publish("a", sent[:20])
    sender.publish("a", sent[20:])
    assert bodies(receive_all(reader, 50)) == sent


def test_what_was_published_before_anyone_subscribed_waits(relay: Relay) -> None:
    relay.open("b").publish("a", [b"early"])
    reader = relay.open()
    reader.subscribe("a")
    assert bodies(receive_all(reader, 1)) == [b"early"]


def test_addresses_do_not_mix(relay: Relay) -> None:
    transport = relay.open()
    transport.declare("b")
    transport.publish("a", [b"for a"])
    transport.publish("b", [b"for b"])
    assert transport.get("b").body == b"for b"
    assert transport.get("a").body == b"for a"


@pytest.mark.parametrize("size", [0, 1, 4095, 32768, 32760, 131072, 900_000])
def test_bytes_are_kept_exactly(relay: Relay, size: int) -> None:
    transport = relay.open()
    body = random.Random(size).randbytes(size)
    transport.publish("a", [body])
    assert transport.get("a").body == body


def test_a_message_as_large_as_the_manifest_may_ask_for(relay: Relay) -> None:
    transport = relay.open(message_bytes=limits.MAX_CHUNK_BYTES)
    body = random.Random(1).randbytes(limits.MAX_CHUNK_BYTES)
    transport.publish("a", [body])
    assert transport.get("a").body == body


def test_a_message_over_the_limit_is_refused_and_the_next_is_not(relay: Relay) -> None:
    transport = relay.open()
    with pytest.raises(MessageTooLarge):
        transport.publish("a", [bytes(limits.MAX_CHUNK_BYTES + 1)])
    transport.publish("a", [b"small"])
    assert transport.get("a").body == b"small"


def test_a_large_set_is_consumed_lazily(relay: Relay) -> None:
    sender, observer = relay.open("b"), relay.open(message_bytes=1_000_000)
    size, count = 1_000_000, 40
    under_way = 18  # 16 MiB, the one that is being made, and one that waits for room

    def large() -> Iterator[bytes]:
        for number in range(count):
            assert observer.depth("a") >= number - under_way, "messages pile up before the relay has the earlier ones"
            yield number.to_bytes(4, "big") * (size // 4)

    sender.publish("a", large())
    assert observer.depth("a") == count
    observer.subscribe("a")
    for number in range(count):
        (delivery,) = receive_all(observer, 1)
        assert delivery.body == number.to_bytes(4, "big") * (size // 4)
        observer.ack([delivery])


def test_an_error_while_making_a_set_leaves_the_connection_usable(relay: Relay) -> None:
    transport = relay.open()

    def broken() -> Iterator[bytes]:
        yield b"first"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        transport.publish("a", broken())
    transport.purge("a")
    transport.publish("a", [b"second"])
    assert transport.get("a").body == b"second"


def test_who_publishes_for_long_looks_round_in_between(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    now = looks = 0.0
    monkeypatch.setattr("ppdl_mq.transport.base.time", SimpleNamespace(monotonic=lambda: now), raising=False)

    def look() -> None:
        nonlocal looks
        looks += 1

    def slow() -> Iterator[bytes]:
        nonlocal now
        for _ in range(20):
            now += limits.LOOK_S * 0.75  # so that every second one is due
            yield b"x"

    transport = relay.open()
    transport.look_round(look)
    transport.publish("a", slow())
    assert looks >= 10
    if relay.kind in ("memory", "embedded"):  # where nothing else is waited for
        assert looks == 10, "more often than it is of use"
    looks = 0
    transport.publish_all([("a", slow()), ("a", slow())])
    assert looks >= 20


def test_what_a_look_raises_ends_a_publication(relay: Relay) -> None:
    def stop() -> None:
        raise Interrupted("stop")

    transport = relay.open()
    transport.look_round(stop)
    with pytest.raises(Interrupted):
        transport.publish("a", [b"x"])
    transport.close()


def test_also_one_of_several_sets(relay: Relay) -> None:
    def stop() -> None:
        raise Interrupted("stop")

    transport = relay.open()
    transport.look_round(stop)
    with pytest.raises(Interrupted):
        transport.publish_all([("a", [b"x"])] * 2)
    transport.close()


def test_publishing_nothing_is_nothing(relay: Relay) -> None:
    transport = relay.open()
    transport.publish("a", [])
    assert transport.depth("a") == 0


def test_get_from_an_empty_queue_returns_none(relay: Relay) -> None:
    transport = relay.open()
    assert transport.get("a") is None
    transport.publish("a", [b"x"])
    assert transport.get("a").body == b"x"
    assert transport.get("a") is None
    assert transport.get("a") is None


def test_receive_returns_none_after_its_timeout(relay: Relay) -> None:
    reader = relay.open()
    reader.subscribe("a")
    begun = time.monotonic()
    assert reader.receive(0.2) is None
    assert 0.15 < time.monotonic() - begun < SOON_S
    assert reader.receive(0) is None


def test_receive_wakes_up_for_a_message(relay: Relay) -> None:
    sender, reader = relay.open("b"), relay.open()
    reader.subscribe("a")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(reader.receive, SOON_S)
        sender.publish("a", [b"wake up"])
        assert waiting.result().body == b"wake up"


def test_an_acknowledged_message_is_gone(relay: Relay) -> None:
    first = relay.open()
    first.publish("a", [b"1", b"2"])
    first.ack([first.get("a")])
    first.close()
    second = relay.open()
    assert second.get("a").body == b"2"
    assert second.get("a") is None


def test_a_requeued_message_comes_ahead_of_newer_ones(relay: Relay) -> None:
    transport = relay.open()
    transport.publish("a", [b"1", b"2", b"3"])
    held = [transport.get("a"), transport.get("a")]
    transport.requeue(held)
    eventually(lambda: transport.depth("a"), 3)
    again = [transport.get("a").body for _ in range(3)]
    assert sorted(again) == [b"1", b"2", b"3"]
    if relay.kind != "quorum":  # see `Transport.requeue`
        assert again == [b"1", b"2", b"3"]


def test_what_was_received_and_not_acknowledged_comes_first_after_reconnecting(relay: Relay) -> None:
    sender, reader = relay.open("b"), relay.open()
    sender.publish("a", [b"1", b"2", b"3"])
    reader.subscribe("a")
    one, _ = receive_all(reader, 2)
    reader.ack([one])
    sender.publish("a", [b"4"])
    reader.close()
    reader.connect()
    subscribe_soon(reader, "a")
    assert bodies(receive_all(reader, 3)) == [b"2", b"3", b"4"]


def test_what_was_got_and_not_acknowledged_comes_first_after_close(relay: Relay) -> None:
    holder, other = relay.open(), relay.open("b")
    holder.declare("weights")
    holder.publish("weights", [b"1", b"2"])
    assert holder.get("weights").body == b"1"
    assert other.depth("weights") == 1
    holder.close()
    eventually(lambda: other.depth("weights"), 2)
    assert other.get("weights").body == b"1"
    assert other.get("weights").body == b"2"
    assert other.get("weights") is None


def test_a_delivery_of_an_earlier_connection_is_passed_over(relay: Relay) -> None:
    transport = relay.open()
    transport.publish("a", [b"1", b"2"])
    stale = transport.get("a")
    transport.close()
    transport.connect()
    eventually(lambda: transport.depth("a"), 2)
    transport.ack([stale])
    transport.requeue([stale])
    assert transport.get("a").body == b"1"
    assert transport.get("a").body == b"2"


def test_the_second_reader_is_refused_until_the_first_leaves(relay: Relay) -> None:
    first, second = relay.open(), relay.open()
    first.subscribe("a")
    with pytest.raises(InboxTaken):
        second.subscribe("a")
    with pytest.raises(InboxTaken):
        first.subscribe("a")
    first.publish("a", [b"still the first's"])
    assert bodies(receive_all(first, 1)) == [b"still the first's"]
    first.close()
    subscribe_soon(second, "a")
    assert bodies(receive_all(second, 1)) == [b"still the first's"]


@pytest.mark.parametrize(("message_bytes", "held"), [(900_000, MAX_HELD), (4 * 1024**2, 16), (16 * 1024**2, 4)])
def test_a_reader_holds_a_bounded_number_of_messages(relay: Relay, message_bytes: int, held: int) -> None:
    reader = relay.open(message_bytes=message_bytes)
    assert reader.max_held == held
    reader.publish("a", [b"%d" % number for number in range(held + 1)])
    reader.subscribe("a")
    deliveries = receive_all(reader, held)
    assert reader.receive(0.1) is None
    reader.ack(deliveries[:1])
    assert bodies(receive_all(reader, 1)) == [b"%d" % held]


def test_a_message_larger_than_any_of_the_trial_comes_cut_off(relay: Relay) -> None:
    """So that it is refused, and was never whole in memory."""
    sender, reader = relay.open("b"), relay.open(message_bytes=5_000)
    large = random.Random(2).randbytes(300_000)
    sender.publish("a", [b"1", large, large[:5_000], large[:5_001], b"2"])
    expected = [b"1", large[:5_001], large[:5_000], large[:5_001], b"2"]
    taken = [reader.get("a") for _ in expected]
    assert bodies(taken) == expected
    reader.requeue(taken)
    subscribe_soon(reader, "a")
    received = receive_all(reader, len(expected))
    assert bodies(received) == expected
    reader.ack(received)


def test_an_address_without_a_queue_is_unroutable(relay: Relay) -> None:
    transport = relay.open()
    for attempt in (
        lambda: transport.publish("b", [b"x", b"y"]),
        lambda: transport.get("b"),
        lambda: transport.depth("b"),
        lambda: transport.purge("b"),
        lambda: transport.subscribe("b"),
    ):
        with pytest.raises(Unroutable) as caught:
            attempt()
        assert caught.value.address == "b"
    transport.delete("b")  # harmless
    transport.publish("a", [b"x"])
    assert transport.get("a").body == b"x"


def test_declaring_twice_keeps_the_messages(relay: Relay) -> None:
    first, second = relay.open(), relay.open("b")
    first.publish("a", [b"kept"])
    first.declare("a")
    second.declare("a")
    assert second.depth("a") == 1


def test_depth_counts_what_is_ready(relay: Relay) -> None:
    transport = relay.open()
    assert transport.depth("a") == 0
    transport.publish("a", [b"1", b"2", b"3"])
    assert transport.depth("a") == 3
    held = transport.get("a")
    eventually(lambda: transport.depth("a"), 2)
    transport.ack([held])
    assert transport.depth("a") == 2


def test_purge_drops_what_is_ready_and_leaves_what_is_held(relay: Relay) -> None:
    transport = relay.open()
    transport.publish("a", [b"held", b"1", b"2"])
    held = transport.get("a")
    assert transport.purge("a") == 2
    assert transport.depth("a") == 0
    transport.requeue([held])
    eventually(lambda: transport.depth("a"), 1)


def test_delete_removes_queue_and_messages(relay: Relay) -> None:
    transport = relay.open()
    transport.publish("a", [b"1"])
    transport.delete("a")
    with pytest.raises(Unroutable):
        transport.depth("a")
    transport.declare("a")
    assert transport.depth("a") == 0


def test_messages_outlive_every_connection(relay: Relay) -> None:
    sender = relay.open()
    sender.publish("a", [b"1", b"2"])
    relay.close()
    reader = relay.open()
    reader.subscribe("a")
    assert bodies(receive_all(reader, 2)) == [b"1", b"2"]


def test_several_threads_share_a_connection(relay: Relay) -> None:
    transport = relay.open()
    transport.declare("b")
    transport.subscribe("a")
    count = 30

    def publish(thread: int) -> None:
        transport.publish("a", [b"%d:%d" % (thread, number) for number in range(count)])

    def receive(_: int) -> list[bytes]:
        seen = []
        for _ in range(count):
            delivery = transport.receive(SOON_S)
            assert delivery is not None
            seen.append(delivery.body)
            transport.ack([delivery])
            transport.depth("b")
            transport.get("b")
        return seen

    with ThreadPoolExecutor(6) as pool:
        publishing = [pool.submit(publish, thread) for thread in range(3)]
        receiving = [pool.submit(receive, thread) for thread in range(3)]
        for future in publishing:
            future.result()
        seen = [body for future in receiving for body in future.result()]
    assert sorted(seen) == sorted(b"%d:%d" % (thread, number) for thread in range(3) for number in range(count))
    eventually(lambda: transport.depth("a"), 0)


def test_every_call_after_close_says_that_the_connection_is_gone(relay: Relay) -> None:
    transport = relay.open()
    transport.subscribe("a")
    transport.close()
    transport.close()
    for attempt in (
        lambda: transport.declare("a"),
        lambda: transport.subscribe("a"),
        lambda: transport.publish("a", [b"x"]),
        lambda: transport.receive(SOON_S),
        lambda: transport.get("a"),
        lambda: transport.ack([]),
        lambda: transport.requeue([]),
        lambda: transport.depth("a"),
        lambda: transport.purge("a"),
        lambda: transport.delete("a"),
    ):
        with pytest.raises(RelayLost):
            attempt()


def test_close_ends_a_waiting_receive(relay: Relay) -> None:
    transport = relay.open()
    transport.subscribe("a")
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(transport.receive, SOON_S) for _ in range(2)]
        transport.close()
        for future in waiting:
            with pytest.raises(RelayLost):
                future.result(SOON_S)


def test_receive_before_subscribe_is_our_own_bug(relay: Relay) -> None:
    with pytest.raises(RuntimeError):
        relay.open().receive(0)


@pytest.mark.parametrize("address", ["", "A", "a.b", "#", "*", "a" * 33, "a\n", "../a"])
def test_what_is_no_address_is_refused(relay: Relay, address: str) -> None:
    transport = relay.open()
    with pytest.raises(ValueError, match="is not an address"):
        transport.declare(address)
    with pytest.raises(ValueError, match="is not an address"):
        transport.publish(address, [b"x"])


def test_the_context_manager_connects_and_closes(relay: Relay) -> None:
    with relay.make("a") as transport:
        assert transport.depth("a") == 0
        assert transport.blocked_reason is None
    with pytest.raises(RelayLost):
        transport.depth("a")
