"""Trials whose peers sit on two RabbitMQ brokers, joined by exchange federation or by shovel, with few rights.

A confirm says that the first broker has a message. What is destroyed behind it is asked for again.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.errors import RelayRefused
from tests.brokers.planned import is_refused, run_lines
from tests.rabbit import MAX_MESSAGE_BYTES
from tests.transport.relays import eventually, new_trial
from tests.trial import TrialInProcess, manifest_for, split_for
from tests.trials.exact import assert_equal_bits, expected_state
from tests.trials.joined import OTHER, SERVER_NAME, SITES, SiteNode, TwoSites, two_nodes
from tests.trials.masked import MortalTrial, agreed, assert_round, splits_of, watch_rounds

pytestmark = [pytest.mark.rabbitmq, pytest.mark.slow, pytest.mark.xdist_group("two brokers")]

EVERYBODY = ("anna", "bert", "cleo", "dora")  # anna and cleo in the north, bert and dora in the south
WAYS = ("federation", "shovel")
PATIENCE_S = 2.0  # instead of a minute, before a peer asks again
LONG = {"epochs": 12, "turns_per_epoch": 2}  # 96 turns: the middle is not missed
LONGER = {"epochs": 30, "turns_per_epoch": 2}  # nor by one that starts a program first


@pytest.fixture(scope="module")
def nodes(rabbit_is_installed: None) -> Iterator[dict[str, SiteNode]]:
    """One node for each site."""
    with two_nodes() as running:
        yield running


@pytest.fixture
def join(nodes: dict[str, SiteNode], tmp_path: Path) -> Iterator[Callable[[str], TwoSites]]:
    """Makes a trial's two sites; what it made is removed."""
    made: list[TwoSites] = []

    def make(by: str) -> TwoSites:
        for node in nodes.values():
            node.start()
        folder = tmp_path / "brokers"
        folder.mkdir()
        made.append(TwoSites(nodes, new_trial(), by, folder))
        return made[0]

    yield make
    for sites in made:
        sites.remove()


def turns(sites: TwoSites, **training: Any) -> Manifest:
    return manifest_for(
        EVERYBODY,
        name=sites.trial,
        order="shuffled",
        relay={"chunk_bytes": 4096},
        **{f"training__{field}": value for field, value in training.items()},
    )


def start(manifest: Manifest, sites: TwoSites, folder: Path, **options: Any) -> TrialInProcess:
    splits = {name: split_for(name, manifest) for name in manifest.peer_names}
    return TrialInProcess(manifest, folder, sites.open, splits=splits, patience_s=PATIENCE_S, **options)


def assert_right(trial: TrialInProcess) -> None:
    expected = expected_state(trial.manifest, trial.splits)
    for runner in trial.runners.values():
        assert_equal_bits(runner.model_path, expected)


def finish(trial: TrialInProcess, threads: list[threading.Thread], timeout_s: float = 90.0) -> None:
    ends_at = time.monotonic() + timeout_s
    try:
        for thread in threads:
            thread.join(max(0.0, ends_at - time.monotonic()))
        assert not trial.errors
        phases = {name: f"{each.state.phase.value} {each.driver.waiting_for()}" for name, each in trial.runners.items()}
        assert not any(thread.is_alive() for thread in threads), phases
    finally:
        for runner in trial.runners.values():
            runner.stop()


def turn_of(trial: TrialInProcess, name: str) -> int:
    return int(trial.runners[name].driver.machine.progress(trial.runners[name].state)["turn"])


def eventually_over(look: Callable[[], int], least: int) -> None:
    eventually(lambda: look() >= least, True)


# --- trials ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", WAYS)
def test_turns_cross_between_brokers_to_the_very_bits(by: str, join: Callable[[str], TwoSites], tmp_path: Path) -> None:
    sites = join(by)
    sites.give()
    sites.until_linked()
    before = sites.topology()
    trial = start(turns(sites), sites, tmp_path)
    trial.run()
    assert_right(trial)
    assert sites.topology() == before, "something was declared, bound or linked while the trial ran"
    for site, peers in SITES.items():
        crossing = sites.crossing(site)
        assert [sites.waiting(site, f"{sites.exchange}.{peer}") for peer in peers] == [0, 0]
        assert sites.waiting("north" if site == "south" else "south", crossing) == 0


@pytest.mark.parametrize("by", WAYS)
def test_masked_average_crosses_between_brokers(
    by: str, join: Callable[[str], TwoSites], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = join(by)
    sites.give()
    sites.until_linked()
    before = sites.topology()
    manifest = agreed(4, name=sites.trial, relay={"chunk_bytes": 4096})
    seen = watch_rounds(monkeypatch)
    trial = MortalTrial(manifest, tmp_path, monkeypatch, transport_for=sites.open)
    trial.begin()
    trial.end(*manifest.peer_names)
    assert len(trial.models()) == 1
    assert {each.round for each in seen} == {1, 2}
    for each in seen:
        assert_round(manifest, splits_of(manifest), each)
    assert sites.topology() == before


# --- links that are not there, and what they lose --------------------------------------------------------------------


def test_without_a_link_a_peer_waits_for_those_of_the_other_site_by_name(
    join: Callable[[str], TwoSites], tmp_path: Path
) -> None:
    sites = join("federation")
    sites.give()
    sites.until_linked()
    for site in SITES:
        sites.unlink(site)
    trial = start(turns(sites), sites, tmp_path)
    threads = trial.start()
    # Nothing leads to the other site, so its peers are unroutable, as if they had opened no inbox.
    eventually(lambda: trial.status("anna").get("not_there_yet"), ["bert", "dora"])
    eventually(lambda: trial.status("bert").get("not_there_yet"), ["anna", "cleo"])
    sites.give()
    finish(trial, threads)
    assert_right(trial)


@pytest.mark.parametrize("moment", ["in the session", "in the middle"])
@pytest.mark.parametrize("by", WAYS)
def test_what_the_first_broker_confirmed_and_lost_comes_again(
    by: str, moment: str, join: Callable[[str], TwoSites], tmp_path: Path
) -> None:
    sites = join(by)
    sites.give()
    sites.until_linked()
    trial = start(turns(sites, **(LONG if moment == "in the middle" else {})), sites, tmp_path)
    if moment == "in the session":
        sites.part("south")
    threads = trial.start()
    if moment == "in the middle":
        eventually_over(lambda: turn_of(trial, "anna") if "anna" in trial.runners else 0, 10)
        sites.part("south")
    crossing = sites.crossing("south")
    eventually_over(lambda: sites.waiting("north", crossing), 1)
    lost = sites.empty("north", crossing)
    assert lost >= 1
    sites.rejoin("south")
    finish(trial, threads)
    assert_right(trial)


@pytest.mark.parametrize("by", WAYS)
def test_what_a_masked_round_lost_comes_again(
    by: str, join: Callable[[str], TwoSites], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = join(by)
    sites.give()
    sites.until_linked()
    manifest = agreed(4, name=sites.trial, training__epochs=8)
    seen = watch_rounds(monkeypatch)
    trial = MortalTrial(manifest, tmp_path, monkeypatch, transport_for=sites.open)
    trial.patience_s = PATIENCE_S
    trial.begin()
    trial.until(lambda: any(each.round >= 3 for each in seen))
    sites.part("south")
    crossing = sites.crossing("south")
    eventually_over(lambda: sites.waiting("north", crossing), 1)
    assert sites.empty("north", crossing) >= 1
    sites.rejoin("south")
    trial.end(*manifest.peer_names)
    assert len(trial.models()) == 1
    for each in seen:
        assert_round(manifest, splits_of(manifest), each)


@pytest.mark.parametrize("by", WAYS)
def test_a_site_whose_broker_dies_goes_on(by: str, join: Callable[[str], TwoSites], tmp_path: Path) -> None:
    sites = join(by)
    sites.give()
    sites.until_linked()
    trial = start(turns(sites, **LONGER), sites, tmp_path)
    threads = trial.start()
    eventually_over(lambda: turn_of(trial, "anna") if "anna" in trial.runners else 0, 20)
    sites.nodes["south"].kill()
    sites.nodes["south"].start()
    finish(trial, threads)
    assert_right(trial)


@pytest.mark.parametrize("by", WAYS)
def test_what_is_too_large_for_the_other_broker_waits_for_its_limit(by: str, join: Callable[[str], TwoSites]) -> None:
    sites = join(by)
    sites.give()
    sites.until_linked()
    south, crossing = sites.nodes["south"], sites.crossing("south")
    south.ctl("eval", "application:set_env(rabbit, max_message_size, 1000).")
    try:
        sites.part("south")  # the limit holds for channels that are opened after it was set
        sites.rejoin("south")
        with sites.nodes["north"].channel(sites.vhost) as channel:
            channel.confirm_delivery()
            for body in (b"large" * 1000, b"small"):
                channel.basic_publish(sites.exchange, "bert", body, mandatory=True)
        eventually(lambda: sites.log("south").count("is larger than") >= 2, True)  # the link tries again and again
        assert sites.waiting("south", f"{sites.exchange}.bert") == 0
    finally:
        south.ctl("eval", f"application:set_env(rabbit, max_message_size, {MAX_MESSAGE_BYTES}).")
    eventually(lambda: sites.waiting("south", f"{sites.exchange}.bert"), 2)
    eventually(lambda: sites.waiting("north", crossing), 0)


# --- afterwards ------------------------------------------------------------------------------------------------------


def in_users(sites: TwoSites, site: str) -> set[str]:
    return {each["name"] for each in sites.nodes[site].ask("GET", "users")}


def named(sites: TwoSites, site: str) -> list[str]:
    """Return the exchanges and queues of the vhost, those too that no export of definitions has."""
    kinds = ("exchanges", "queues")
    return sorted(each["name"] for kind in kinds for each in sites.nodes[site].ask("GET", kind, sites.vhost))


def at(site: str, topology: dict[str, list[str]]) -> dict[str, list[str]]:
    return {section: items for section, items in topology.items() if section.startswith(site)}


@pytest.mark.parametrize("by", WAYS)
def test_the_lines_for_afterwards_leave_nothing_but_what_was_there(
    by: str, join: Callable[[str], TwoSites], tmp_path: Path
) -> None:
    """In a vhost that others use, one site after the other: the link that is still there makes nothing again."""
    sites = join(by)
    for node in sites.nodes.values():  # what is not this trial's
        node.ask("PUT", "vhosts", sites.vhost)
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        node.ask("PUT", "permissions", sites.vhost, "guest", body=everything)
        policy = {"pattern": "^ppdl.other", "definition": {"max-length": 9}}
        node.ask("PUT", "policies", sites.vhost, "ppdl.other", body=policy)
        with node.channel(sites.vhost) as channel:
            channel.exchange_declare("ppdl.other", exchange_type="topic", durable=True)
            channel.queue_declare("ppdl.other.anna", durable=True)
            channel.queue_bind("ppdl.other.anna", "ppdl.other", "anna")
    before, there_before = sites.topology(), {site: named(sites, site) for site in SITES}
    sites.give()
    sites.until_linked()
    sites.part("south")  # a link that is down leaves its queue behind, with what waits in it
    with sites.nodes["north"].channel(sites.vhost) as channel:
        channel.basic_publish(sites.exchange, "bert", b"never fetched")
    eventually(lambda: sites.waiting("north", sites.crossing("south")), 1)
    sites.rejoin("south")
    sites.until_linked()
    assert at("north", sites.topology()) != at("north", before)

    for site, other in (("north", "south"), ("south", "north")):
        refused_before = sites.log(site).count(f"'link-{other}'")
        run_lines(sites.nodes[site], tmp_path, sites.afterwards[site])
        if site == "north":  # the other site's link comes back again and again, and nobody lets it in
            eventually_over(lambda: sites.log("north").count("'link-south'"), refused_before + 2)
        assert at(site, sites.topology()) == at(site, before)
        assert named(sites, site) == there_before[site]
        assert not in_users(sites, site) & {*SITES[site], f"link-{other}"}
        assert "guest" in in_users(sites, site)
    assert sites.topology() == before


def test_without_the_vhost_and_the_users_nothing_is_left(join: Callable[[str], TwoSites], tmp_path: Path) -> None:
    """The short way, where the vhost is the trial's own; at one site while the other's link is up."""
    sites = join("federation")
    sites.give()
    sites.until_linked()
    for site in SITES:
        lines = sites.afterwards[site].splitlines()
        short = [line.partition("delete_user: ")[2] for line in lines if line.startswith("# Is nothing else in")]
        short += [line for line in lines if line.startswith("rabbitmqctl delete_user ")]
        assert len(short) == 4
        run_lines(sites.nodes[site], tmp_path, "\n".join(short))
        assert not any(at(site, sites.topology()).values())
        assert in_users(sites, site) & {"anna", "bert", "cleo", "dora", "link-north", "link-south"} == set()
        assert sites.vhost not in json.dumps(sites.nodes[site].ask("GET", "definitions"))
    for node in sites.nodes.values():
        node.ask("PUT", "vhosts", sites.vhost)  # for the fixture, which removes it


# --- server-aided ----------------------------------------------------------------------------------------------------


def test_a_server_aided_trial_says_that_it_needs_one_common_broker(
    join: Callable[[str], TwoSites], tmp_path: Path
) -> None:
    sites = join("federation")
    sites.give()
    manifest = manifest_for(EVERYBODY, name=sites.trial, protocol="server-aided")
    trial = start(manifest, sites, tmp_path)
    trial.run_one("bert")
    error = trial.errors["bert"]
    assert isinstance(error, RelayRefused)
    assert "one broker" in (error.hint or "")


# --- rights ----------------------------------------------------------------------------------------------------------


def refused(sites: TwoSites, site: str, action: Callable[[Any], object]) -> bool:
    """Tell whether a broker denies the other site's link an action."""
    link = f"link-{OTHER[site]}"
    return is_refused(sites.nodes[site], sites.vhost, link, sites.password(link), action)


@pytest.mark.parametrize("by", WAYS)
def test_a_link_can_do_nothing_else(by: str, join: Callable[[str], TwoSites]) -> None:
    """North's broker and its administrator are trusted with nothing by the south, and the other way round."""
    sites = join(by)
    sites.give()
    sites.until_linked()
    exchange, own = sites.exchange, f"federation: {sites.exchange} -> north"
    denied: dict[str, Callable[[Any], object]] = {
        "read an inbox": lambda at: at.basic_get(f"{exchange}.bert"),
        "empty an inbox": lambda at: at.queue_purge(f"{exchange}.bert"),
        "remove an inbox": lambda at: at.queue_delete(f"{exchange}.bert"),
        "make a queue": lambda at: at.queue_declare("spy"),
        "make an inbox": lambda at: at.queue_declare(f"{exchange}.anna"),
        "remove the exchange": lambda at: at.exchange_delete(exchange),
        "use the default exchange": lambda at: at.basic_publish("", f"{exchange}.bert", b""),
    }
    if by == "federation":
        denied |= {
            "copy what stays in the south": lambda at: at.queue_bind(own, exchange, "bert"),
            "copy everything": lambda at: at.queue_bind(own, exchange, "#"),
            "publish": lambda at: at.basic_publish(exchange, "bert", b""),
            "make one queue after the other": lambda at: at.queue_declare(f"federation: {exchange} -> spy"),
            "make one exchange after the other": lambda at: at.exchange_declare(f"federation: {exchange} -> spy A"),
        }
    else:
        denied |= {
            "publish to one of its own": lambda at: at.basic_publish(exchange, "anna", b""),
            "read what waits to cross": lambda at: at.basic_get(f"{exchange}.to.north"),
        }
    assert [what for what, action in denied.items() if not refused(sites, "south", action)] == []
    allowed: Callable[[Any], object] = (
        (lambda at: at.queue_bind(own, exchange, "anna"))
        if by == "federation"
        else (lambda at: at.basic_publish(exchange, "bert", b""))
    )
    assert not refused(sites, "south", allowed), "the check of the check"


@pytest.mark.parametrize("by", WAYS)
def test_a_link_checks_whom_it_talks_to(by: str, join: Callable[[str], TwoSites]) -> None:
    """The other broker's certificate is right, and the link expects another name: then nothing crosses."""
    sites = join(by)
    sites.expect(SERVER_NAME.replace("relay", "another"))
    sites.give()
    # The link says so in its site's log, and tries again and again.
    eventually(
        lambda: "hostname_check_failed" in sites.log("north") and "hostname_check_failed" in sites.log("south"), True
    )
    assert not any(sites.is_linked(site) for site in SITES)
    sites.expect(SERVER_NAME)
    sites.give()
    sites.until_linked()
