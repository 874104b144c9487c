"""The files of examples/kubernetes and examples/compose: valid, and right about each other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from haproxy import version

from spop.options import Options

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
MANIFESTS = sorted((EXAMPLES / "kubernetes").glob("*.yaml"))
COMPOSE = yaml.safe_load((EXAMPLES / "compose" / "compose.yaml").read_text())
Object = dict[str, Any]


def name(path: Path) -> str:
    return path.name


def objects(path: Path) -> list[Object]:
    return list(yaml.safe_load_all(path.read_text()))


def of_kind(path: Path, kind: str) -> Object:
    (found,) = (each for each in objects(path) if each["kind"] == kind)
    return found


def pod(path: Path) -> Object:
    spec: Object = of_kind(path, "Deployment")["spec"]["template"]["spec"]
    return spec


def agent(path: Path) -> Object:
    containers = [*pod(path).get("initContainers", ()), *pod(path)["containers"]]
    (found,) = (each for each in containers if each["name"] == "agent")
    return found


def environment(container: Object) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


def takes_seconds(options: dict[str, str]) -> float:
    """How long an agent that stops may take, beside what comes before SIGTERM."""
    defaults = Options()
    lame_duck = options.get("SPOP_LAME_DUCK", defaults.lame_duck)
    return float(lame_duck) + defaults.drain_timeout + 5


@pytest.mark.skipif(sys.version_info >= (3, 15), reason="kubernetes-validate has no wheels there")
@pytest.mark.parametrize("release", ["1.31", "1.35"])
@pytest.mark.parametrize("path", MANIFESTS, ids=name)
def test_manifests_fit_the_schema_of_kubernetes(path: Path, release: str) -> None:
    import kubernetes_validate

    for each in objects(path):
        kubernetes_validate.validate(each, release, strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=name)
def test_what_belongs_to_the_pods_of_a_deployment_selects_them(path: Path) -> None:
    deployment = of_kind(path, "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert of_kind(path, "Service")["spec"]["selector"] == labels
    assert of_kind(path, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert of_kind(path, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    budget = of_kind(path, "PodDisruptionBudget")["spec"]["minAvailable"]
    assert 0 < budget < deployment["replicas"]


@pytest.mark.parametrize("path", MANIFESTS, ids=name)
def test_probes_and_policies_name_ports_that_are_listened_on(path: Path) -> None:
    listened = {environment(agent(path))[name].rpartition(":")[2]
                for name in ("SPOP_BIND", "SPOP_ADMIN")}  # fmt: skip
    for port in agent(path)["ports"]:
        assert str(port["containerPort"]) in listened
    names = {port["name"] for port in agent(path)["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = agent(path).get(probe, {}).get("httpGet")
        assert asked is None or asked["port"] in names
        assert asked is None or asked["path"] in ("/healthz", "/readyz")
    all_ports = {
        port["containerPort"]
        for container in [*pod(path).get("initContainers", ()), *pod(path)["containers"]]
        for port in container["ports"]
    }
    for rule in of_kind(path, "NetworkPolicy")["spec"]["ingress"]:
        assert {port["port"] for port in rule["ports"]} <= all_ports


@pytest.mark.parametrize("path", MANIFESTS, ids=name)
def test_there_is_time_for_the_end_of_a_pod(path: Path) -> None:
    options = environment(agent(path))
    fields = {f"SPOP_{field.upper()}" for field in Options.__dataclass_fields__}
    assert {*options} <= fields | {"SPOP_LOG_FORMAT"}
    before = sum(
        float(container.get("lifecycle", {"preStop": {"exec": {"command": [0]}}})
              ["preStop"]["exec"]["command"][-1])
        for container in [*pod(path).get("initContainers", ()), *pod(path)["containers"]]
    )  # fmt: skip
    assert pod(path)["terminationGracePeriodSeconds"] > before + takes_seconds(options)


def test_the_side_car_is_one_and_has_haproxys_socket() -> None:
    path = EXAMPLES / "kubernetes" / "sidecar.yaml"
    assert agent(path)["restartPolicy"] == "Always"
    cfg = of_kind(path, "ConfigMap")["data"]["haproxy.cfg"]
    assert f"server agent {environment(agent(path))['SPOP_BIND']} check" in cfg


def test_the_services_of_compose_are_those_that_haproxy_asks() -> None:
    cfg = (EXAMPLES / "compose" / "haproxy" / "haproxy.cfg").read_text()
    asked = re.findall(r"^ +server \S+ (\w+):(\d+)$", cfg, re.MULTILINE)
    assert {service for service, _ in asked} == {*COMPOSE["services"]} - {"haproxy"}
    for service in ("agent1", "agent2"):
        settings = COMPOSE["services"][service]
        assert settings["environment"]["SPOP_BIND"] == f":{dict(asked)[service]}"
        wait = float(settings["stop_grace_period"].rstrip("s"))
        assert wait > takes_seconds(settings["environment"])


@pytest.mark.parametrize("form", ["compose", "kubernetes"])
def test_haproxy_takes_their_files_without_a_warning(
    haproxy_binary: str, form: str, tmp_path: Path
) -> None:
    if version(haproxy_binary) < (3, 1):
        return  # The files are those of the image that they name.
    if form == "compose":
        folder = EXAMPLES / "compose" / "haproxy"
        texts = {path.name: path.read_text() for path in folder.iterdir()}
    else:
        texts = of_kind(EXAMPLES / "kubernetes" / "sidecar.yaml", "ConfigMap")["data"]
    for file, text in texts.items():
        (tmp_path / file).write_text(text.replace("/usr/local/etc/haproxy", str(tmp_path)))
    command = [haproxy_binary, "-c", "-f", str(tmp_path / "haproxy.cfg")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert [line for line in warnings if "could not resolve address" not in line] == []
