"""What the doctor says of a queue that refuses what is over its limit; no broker is needed."""

from __future__ import annotations

import pytest

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.transport.rabbitmq.doctor.judgement import judge_queue

BROKER = BrokerAddress.parse("amqp://mercy@relay.example/ppdl")
REJECTS = {"overflow": "reject-publish"}
LARGE = 100 * 1000**3


@pytest.mark.parametrize(
    ("settings", "planned", "warns"),
    [
        ({"max-length-bytes": 1000}, 1000, False),
        ({"max-length-bytes": 1001}, 1000, False),
        ({"max-length-bytes": 999}, 1000, True),
        ({"max-length-bytes": LARGE}, LARGE + 1, True),  # where the trial is larger still
        ({"max-length-bytes": LARGE}, None, False),
        ({"max-length-bytes": LARGE - 1}, None, True),
        ({"x-max-length-bytes": "1000"}, 1000, True),  # not a number as we read it: a person looks
        ({"max-length": LARGE}, 1000, True),  # counts messages, of which the plan says nothing
        ({"max-length": 10, "max-length-bytes": 1000}, 1000, True),
    ],
)
@pytest.mark.parametrize("from_policy", [True, False])
def test_a_limit_in_bytes_is_right_from_what_the_plan_says_on(
    settings: dict[str, object], planned: int | None, warns: bool, from_policy: bool
) -> None:
    looks = judge_queue(BROKER, "ppdl.heart.mercy", REJECTS | settings, from_policy=from_policy, enough_bytes=planned)
    findings = list(looks)
    warnings = [each for each in findings if each.result == "warn"]
    assert bool(warnings) is warns
    assert not [each for each in findings if each.result == "fail"]
    key, limit = next(iter(settings.items()))
    said = warnings[0] if warns else findings[0]
    assert str(limit) in said.says
    if planned is not None and key.endswith("bytes"):
        assert str(planned) in said.says + said.todo


def test_a_limit_that_drops_is_a_failure_however_large() -> None:
    looks = judge_queue(BROKER, "q", {"max-length-bytes": LARGE}, from_policy=True, enough_bytes=1000)
    assert [each.result for each in looks] == ["fail"]


@pytest.mark.parametrize(("value", "fails"), [(True, True), (False, False)])
def test_a_queue_that_serves_one_consumer_at_a_time_is_a_failure(value: bool, fails: bool) -> None:
    (finding,) = judge_queue(BROKER, "q", {"x-single-active-consumer": value}, from_policy=False)
    assert finding.result == ("fail" if fails else "pass")
    assert ("x-single-active-consumer" in finding.says) is fails
    assert ("delete_queue" in finding.line) is fails
