"""docs/OPERATIONS.md, "Two sites, two brokers": both pages to the letter, at two real nodes, for a whole trial."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli.test_readme import records
from tests.rabbit import RabbitNode, free_ports
from tests.shell import LIMIT_S, ROOT, Shell, blocks
from tests.trials.joined import OTHER, PLUGINS, SERVER_NAME

PAGE = (ROOT / "docs" / "OPERATIONS.md").read_text(encoding="utf-8")
SITES = {"north": ("cleveland", "va"), "south": ("hungary", "switzerland")}
EVERYBODY = sorted(name for names in SITES.values() for name in names)
# The node of the tests has its own of these.
NOT_HERE = ("listeners.", "log.", "max_message_size", "disk_free_limit")


class Site:
    """One site: its administrator's folder, its organisations' folder, and its broker.

    Args:
        name: of the site.
        folder: empty.
        tls: with ca.pem, server.pem and server.key.
    """

    def __init__(self, name: str, folder: Path, tls: Path) -> None:
        self.name, self.folder = name, folder
        (self.port,) = free_ports(1)
        self.node: RabbitNode | None = None
        self.ports: dict[str, int] = {}  # of both sites
        (folder / "etc").mkdir(parents=True)
        for each in ("brokers", "scripts"):
            (folder / each).symlink_to(ROOT / each)
        for each in ("ca.pem", "server.pem", "server.key"):
            (folder / each).write_bytes((tls / each).read_bytes())
        self._shell = Shell(folder)
        self._shell.add_ppdl_mq()
        self._shell.add("systemctl", "true")
        lines = re.findall(r"^`?(here=[^`\n]*)", PAGE, re.MULTILINE)
        (self.names,) = [line for line in lines if line.startswith(f"here={name};")]

    def start(self) -> None:
        """Start its broker with the files that the page put into /etc/rabbitmq."""
        etc = self.folder / "etc"
        lines = (etc / "rabbitmq.conf").read_text().splitlines()
        config = "".join(f"{line}\n" for line in lines if line and not line.startswith(("#", *NOT_HERE)))
        config = config.replace("/etc/rabbitmq", str(etc))
        assert f"cluster_name = {self.name}\n" in config
        assert (etc / "enabled_plugins").read_text() == f"[{','.join(PLUGINS)}].\n"
        self.node = RabbitNode(config=f"{config}listeners.ssl.1 = 127.0.0.1:{self.port}\n", plugins=PLUGINS)
        self.node.start()
        self._shell.add_rabbitmqctl(self.node)

    def run(self, block: str) -> str:
        """Run a block of the page; what differs from it are paths, ports, and the group of the package."""
        script = f"{self.names}\n{block}".replace(" -g rabbitmq", "")
        script = re.sub(r"other=relay\.\w+\.example\.org", f"other={SERVER_NAME}", script)
        for site, port in self.ports.items():
            script = script.replace(f"relay.{site}.example.org:5671", f"127.0.0.1:{port}")
        script = script.replace("@$other:5671", f"@127.0.0.1:{self.ports[OTHER[self.name]]}")
        script = script.replace("/etc/rabbitmq", str(self.folder / "etc"))
        return self._shell.run(script)


@pytest.fixture
def sites(rabbit_is_installed: None, tmp_path: Path) -> Iterator[dict[str, Site]]:
    """Both sites, without brokers yet; those are removed at the end."""
    make_ca = [sys.executable, str(ROOT / "brokers" / "tls" / "make_ca.py"), str(tmp_path / "tls")]
    make_ca += ["--server", SERVER_NAME, "--server", "127.0.0.1"]
    subprocess.run(make_ca, capture_output=True, timeout=60, check=True)
    made = {name: Site(name, tmp_path / name, tmp_path / "tls") for name in SITES}
    for site in made.values():
        site.ports = {name: each.port for name, each in made.items()}
    yield made
    for site in made.values():
        if site.node is not None:
            site.node.remove()


def hand_over(here: Site, there: Site, *names: str) -> None:
    for name in names:
        (there.folder / name).write_bytes((here.folder / name).read_bytes())


def leads_to(site: Site, look: str) -> set[str]:
    """Return for whom the lines of the page say that the way to the other site is there."""
    rows = [
        line.split("\t")
        for line in site.run(f"{look.rstrip()} || true").splitlines()
        if line.startswith("ppdl.heart\t")
    ]
    assert all(row[1].startswith(f"federation: ppdl.heart -> {OTHER[site.name]}") for row in rows)
    return {row[2] for row in rows}


def is_running(site: Site, look: str) -> bool:
    """Tell whether the page's lines say that the site's own link is there."""
    return "status => running" in site.run(look)


def until(look: Callable[[], bool]) -> None:
    """Wait for a link, which tries every five seconds; each look is a few programs, slow on a busy machine."""
    deadline = time.monotonic() + LIMIT_S
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.5)  # between two looks at another process, which tells in no other way


def test_each_page_is_one_page() -> None:
    section = PAGE.partition("## Two sites, two brokers\n")[2].partition("\n## ")[0]
    pages = section.split("\n### ")[1:]
    assert [page.partition("\n")[0] for page in pages] == ["The administrator's page", "An organisation's page"]
    for page in pages:
        shown = [line for line in page.splitlines() if line and not line.startswith(("<!--", "```"))]
        assert len(shown) < 60
        assert not re.search(r"\]\(", page), "a page that leans on another"


@pytest.mark.rabbitmq
@pytest.mark.slow
@pytest.mark.xdist_group("two brokers")
def test_both_pages_work_to_the_letter(sites: dict[str, Site]) -> None:
    shown = blocks(PAGE)
    north, south = sites["north"], sites["south"]
    of = {peer: sites[site] for site, peers in SITES.items() for peer in peers}
    assert shown["names"].strip() == north.names
    for seed, (peer, site) in enumerate(of.items()):
        records(site.folder / f"{peer}.csv", seed=seed)
        site.run(shown["identity"].replace("cleveland", peer))
        hand_over(site, north, *({f"{peer}.line"} if site is south else ()))
    north.run(shown["manifest"])
    hand_over(north, south, "heart.toml")

    for site in sites.values():
        site.run(shown["once"])
        site.start()
        site.run(shown["link"])
    hand_over(north, south, "link-south.password")
    hand_over(south, north, "link-north.password")
    for site in sites.values():
        site.run(shown["trial"])
    for name, site in sites.items():
        until(lambda site=site, name=name: leads_to(site, shown["look"]) == {*SITES[OTHER[name]]})  # type: ignore[misc]
        until(lambda site=site: is_running(site, shown["look"]))  # type: ignore[misc]
        said = site.run("rabbitmqctl list_connections --silent --no-table-headers user channels channel_max")
        assert said
        for user, channels, most in (line.split("\t") for line in said.splitlines()):
            assert (user, most) == (f"link-{OTHER[name]}", "8")
            assert int(channels) <= 4

    scripts = {peer: {step: text.replace("cleveland", peer) for step, text in shown.items()} for peer in of}
    for peer, site in of.items():
        of_site = scripts[peer]["settings"].replace("relay.north", f"relay.{site.name}")
        site.run(of_site)
        said = site.run(scripts[peer]["check"])
        assert f"warn    other inboxes     There is no inbox yet of {', '.join(SITES[OTHER[site.name]])}.\n" in said
    with ThreadPoolExecutor(len(of)) as pool:
        ran = {peer: pool.submit(site.run, scripts[peer]["peer"]) for peer, site in of.items()}
        assert all("has ended" in each.result() for each in ran.values())
    assert len({(site.folder / f"{peer}.safetensors").read_bytes() for peer, site in of.items()}) == 1

    for site in sites.values():
        site.run(shown["afterwards"])
        assert site.node is not None
        for what in ("users", "vhosts"):  # and so nothing else: tests/trials/test_two_brokers.py looks at all
            assert site.node.ctl(f"list_{what}", "--silent", "--no-table-headers").split() == []
