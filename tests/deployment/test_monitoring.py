"""brokers/monitoring: what Prometheus and Grafana are told to look at exists."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from ppdl_mq.peer.figures import FIGURES
from tests.rabbit import RabbitNode, free_ports

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "brokers" / "monitoring"
GRAFANA = MONITORING / "grafana"


def scrapes() -> dict[str, dict[str, Any]]:
    settings = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    return {each["job_name"]: each for each in settings["scrape_configs"]}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads((GRAFANA / "dashboards" / "ppdl-mq.json").read_text())
    return [each for each in dashboard["panels"] if each["type"] != "row"]


def named(prefix: str) -> set[str]:
    """Return the metrics that an alert or a panel uses."""
    expressions = [rule["expr"] for rule in rules()] + [each["targets"][0]["expr"] for each in panels()]
    return {name for text in expressions for name in re.findall(rf"\b{prefix}[a-z_]+", text)}


def test_every_metric_of_a_peer_exists() -> None:
    known = {each.name for each in FIGURES if not each.private}
    assert named("ppdl_mq_") - known == set()
    assert len(named("ppdl_mq_")) > 10


@pytest.mark.rabbitmq
def test_every_metric_of_the_broker_exists(rabbit_is_installed: None) -> None:
    """On a node of its own, with the plugin; asked as prometheus.yml says."""
    (port,) = free_ports(1)
    plugin = (MONITORING / "enabled_plugins").read_text().strip("[].\n")
    where = f"prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {port}\n"
    known = {"up"}
    with RabbitNode(config=where, plugins=(plugin,)) as node:
        with node.channel() as channel:
            channel.queue_declare("ppdl.heart.va", durable=True)
        for job in ("rabbitmq", "rabbitmq-queues"):
            settings = scrapes()[job]
            parameters = settings.get("params", {}) | ({"vhost": ["%2F"]} if "params" in settings else {})
            query = "&".join(f"{key}={value}" for key, values in parameters.items() for value in values)
            url = f"http://127.0.0.1:{port}{settings.get('metrics_path', '/metrics')}?{query}"
            with urllib.request.urlopen(url, timeout=30) as answer:
                known |= set(re.findall(r"^([a-z_]+)[ {]", answer.read().decode(), re.MULTILINE))
    assert named("rabbitmq_") - known == set()
    assert len(named("rabbitmq_")) > 8


def test_prometheus_asks_the_services_of_the_composition() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    asked = [target for job in scrapes().values() for target in job["static_configs"][0]["targets"]]
    for target in asked:
        assert target.partition(":")[0] in services
    peers = {name for name in services if (ROOT / "peers" / name).is_dir()}
    assert {target.partition(":")[0] for target in scrapes()["ppdl-mq"]["static_configs"][0]["targets"]} == peers


def test_every_alert_says_what_to_do() -> None:
    for rule in rules():
        said = rule["annotations"]["summary"]
        assert len(re.findall(r"[.;:] ", said)) >= 1, rule["alert"]
        labels = set(re.findall(r"\$labels\.(\w+)", said))
        assert labels <= {"instance", "queue", "name", "reason"}


def test_panels_have_titles_and_the_datasource_that_is_provisioned() -> None:
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    assert len({each["title"] for each in panels()}) == len(panels())
    assert len({each["id"] for each in panels()}) == len(panels())
    for each in panels():
        assert each["datasource"] == {"type": source["type"], "uid": source["uid"]}
        assert each["description"]
    provider = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "ppdl-mq.yml").read_text())["providers"][0]
    mounts = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]["volumes"]
    assert f"./brokers/monitoring/grafana/dashboards:{provider['options']['path']}:ro" in mounts
