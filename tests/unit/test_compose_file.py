"""The Docker stack cannot be run where it is built, so its files are checked against each other and the code."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from taskyard.compose.artifacts import KAFKA_VERSION, listed_jars
from taskyard.dispatcher.cli.app import COMMANDS
from taskyard.dispatcher.cli.configure import configure

FOLDER = Path(__file__).resolve().parents[2] / "compose"
STACK: dict[str, Any] = yaml.safe_load((FOLDER / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
DASHBOARD = FOLDER / "grafana/dashboards/taskyard.json"


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_pinned_to_a_version(name: str) -> None:
    image, _, tag = SERVICES[name]["image"].partition(":")

    assert re.match(r"v?\d+\.\d+\.\d+", tag) or image == "taskyard", f"{image}:{tag}"


def test_the_base_images_are_pinned_to_a_version() -> None:
    bases = re.findall(r"(?m)^FROM (\S+)", (FOLDER / "Dockerfile").read_text())

    assert len(set(bases)) == 1
    assert re.search(r":\d+\.\d+-", bases[0])


def test_the_stack_runs_the_kafka_that_is_embedded() -> None:
    versions = {jar.version for jar in listed_jars() if jar.group == "org.apache.kafka"}

    assert versions == {KAFKA_VERSION}
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_a_health_check(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", SERVICES)
def test_every_port_is_published_to_this_machine_only(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", SERVICES)
def test_every_mount_exists(name: str) -> None:
    for mount in SERVICES[name].get("volumes", []):
        source = mount.split(":")[0]
        assert source in STACK["volumes"] or (FOLDER / source).exists(), source


@pytest.mark.parametrize("name", SERVICES)
def test_every_dependency_is_a_service(name: str) -> None:
    assert set(SERVICES[name].get("depends_on", {})) <= set(SERVICES)


@pytest.mark.parametrize("name", ["dispatcher", "worker"])
def test_our_own_services_are_set_as_the_settings_have_it(name: str) -> None:
    service = SERVICES[name]

    configured = configure(environment=service["environment"])

    assert configured.warnings == ()
    assert configured.settings.kafka == "kafka:9092"
    assert configured.settings.redis == "redis://valkey:6379/0"
    assert service["command"][0] in {command for command, _, _ in COMMANDS}


def test_prometheus_scrapes_the_port_that_dispatchers_serve() -> None:
    jobs = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    (found,) = jobs[0]["dns_sd_configs"]

    assert found["names"] == ["dispatcher"]
    assert str(found["port"]) == SERVICES["dispatcher"]["environment"]["TASKYARD_HTTP_PORT"]


def test_the_dashboard_uses_the_provisioned_source_in_every_panel() -> None:
    sources = yaml.safe_load((FOLDER / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    panels = json.loads(DASHBOARD.read_text())["panels"]

    assert panels
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"] for source in sources}


def test_the_dashboards_are_where_grafana_looks_for_them() -> None:
    (provider,) = yaml.safe_load((FOLDER / "grafana/provisioning/dashboards/taskyard.yml").read_text())["providers"]
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["grafana"]["volumes"])
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]

    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert home == f"{provider['options']['path']}/{DASHBOARD.name}"
