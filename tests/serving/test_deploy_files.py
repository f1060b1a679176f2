"""The files of deploy/: as far as they can be checked where nothing of what reads them is installed."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.api import Api
from serving.configuration import ServerConfiguration
from serving.configuration_file import read_configuration
from serving.ray_config import ray_config
from serving.ray_environment import cluster_settings
from serving.routes import ROUTES

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
RULES = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text("utf-8"))["groups"]
DASHBOARD = json.loads((DEPLOY / "grafana/lexpert.json").read_text("utf-8"))


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text("utf-8"))


# Kubernetes


def kuberay() -> tuple[dict[str, Any], dict[str, Any]]:
    claim, service = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text("utf-8"))
    return claim, service


def pods(service: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_the_manifest_is_what_the_code_makes_of_the_configuration() -> None:
    spec = importlib.util.spec_from_file_location("render", DEPLOY / "render.py")
    assert spec is not None
    assert spec.loader is not None
    render = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render)
    manifest = (DEPLOY / "kuberay.yaml").read_text("utf-8")
    assert render.rendered(manifest) == manifest, "run: python deploy/render.py"
    _, service = kuberay()
    printed = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert printed == ray_config(read_configuration(DEPLOY / "server.yaml"))
    for pod in pods(service):
        (container,) = pod["containers"]
        assert {each["name"]: each["value"] for each in container["env"]} == cluster_settings()


def test_the_manifest_has_what_a_ray_service_needs() -> None:
    claim, service = kuberay()
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    cluster = service["spec"]["rayClusterConfig"]
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text("utf-8")
    head, *workers = pods(service)
    for pod in (head, *workers):
        (container,) = pod["containers"]
        assert {"livenessProbe", "readinessProbe", "resources", "image", "ports"} <= container.keys()
        assert pod["securityContext"]["runAsNonRoot"]
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted <= {volume["name"] for volume in pod.get("volumes", [])}
    configuration = read_configuration(DEPLOY / "server.yaml")
    (worker,) = workers
    (container,) = worker["containers"]
    assert {"name": "serve", "containerPort": configuration.port} in container["ports"]
    assert container["readinessProbe"]["httpGet"]["path"] in {
        route.path for route in ROUTES if route.scope == "open"
    }
    folders = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
    for path in (configuration.data, configuration.keys_file):
        assert path is not None
        assert any(path.is_relative_to(folder) for folder in folders)
    claims = [
        each["persistentVolumeClaim"]["claimName"]
        for each in worker["volumes"]
        if len(each) == 2 and "persistentVolumeClaim" in each
    ]
    assert claims == [claim["metadata"]["name"]]
    asked = (
        configuration.replicas * configuration.threads + 1 + len(configuration.models) * configuration.threads
    )
    assert int(container["resources"]["requests"]["cpu"]) >= asked


@pytest.mark.skipif(find_spec("ray") is None, reason="needs the serving extra")
def test_its_configuration_fits_the_schema_of_ray() -> None:
    from tests.serving.test_ray_config import loaded_by_ray

    _, service = kuberay()
    loaded = loaded_by_ray(service["spec"]["serveConfigV2"])
    assert (loaded["host"], loaded["port"], set(loaded["deployments"])) == (
        "0.0.0.0",
        8000,
        {"api", "writer"},
    )


# Containers


INSTRUCTIONS = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "STOPSIGNAL", "USER",
    "VOLUME", "WORKDIR",
}  # fmt: skip


def instructions() -> list[tuple[str, str]]:
    lines = (DEPLOY / "Dockerfile").read_text("utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", text)
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in joined.splitlines() if line.strip()]


def test_the_dockerfile_makes_a_container_of_what_is_there() -> None:
    found = instructions()
    names = [name for name, _ in found]
    assert names[0] == "FROM"
    assert set(names) <= INSTRUCTIONS
    assert names.count("ENTRYPOINT") == names.count("CMD") == names.count("HEALTHCHECK") == 1
    copied = [source for name, rest in found if name == "COPY" for source in rest.split()[:-1]]
    for source in copied:
        assert (ROOT / source).exists(), source
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (included,) = re.findall(r"^only-include = (\[.+\])$", project, re.MULTILINE)
    assert set(json.loads(included)) | {"pyproject.toml", "constraints.txt"} <= set(copied)
    extras = next(rest for name, rest in found if name == "ARG" and rest.startswith("EXTRAS="))
    for extra in extras.partition("=")[2].split(","):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE)
    assert dict(found)["USER"] not in ("root", "0")
    assert names.index("USER") > max(place for place, name in enumerate(names) if name == "RUN")
    for name, rest in found:
        if name == "RUN":
            assert shlex.split(rest)
        if name in ("ENTRYPOINT", "CMD"):
            assert isinstance(json.loads(rest), list)
    (program,) = [
        shlex.split(rest)[shlex.split(rest).index("-c") + 1]
        for name, rest in found
        if name == "RUN" and "python -c" in rest
    ]
    compile(program, "Dockerfile", "exec")
    assert "usable_haproxy" in program


def test_the_containers_fit_together() -> None:
    compose = load("compose.yaml")
    services = compose["services"]
    for service in services.values():
        assert ("image" in service) != ("build" in service)
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if not source.startswith("./"):
                assert source in compose["volumes"]
            elif not source.startswith("./secrets/"):
                assert (DEPLOY / source).exists(), source
    assert (DEPLOY / services["lexpert"]["build"]["context"]).resolve() == ROOT
    assert (ROOT / services["lexpert"]["build"]["dockerfile"]).is_file()
    (scraped,) = load("prometheus/prometheus.yml")["scrape_configs"]
    (target,) = scraped["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in services
    assert int(port) == read_configuration(DEPLOY / "server.yaml").port
    assert scraped["metrics_path"] in {route.path for route in ROUTES}
    secret = Path(scraped["authorization"]["credentials_file"]).name
    assert secret in compose["secrets"]
    assert secret in services["prometheus"]["secrets"]
    for rules in load("prometheus/prometheus.yml")["rule_files"]:
        assert (DEPLOY / "prometheus" / rules).is_file()
    (source,) = load("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"].removeprefix("http://").split(":")[0] in services
    assert source["uid"] == DASHBOARD["templating"]["list"][0]["current"]["value"]


# Dashboard and alerts


def expressions() -> Iterator[tuple[str, str]]:
    """``(where, PromQL)`` of every panel and rule."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for group in RULES:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


@pytest.fixture(scope="module")
def given(index_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Labels of each metric that the server gives, by its name; without samples, it gives the name alone."""
    pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    from serving.metrics_text import encoding_families, engine_families, expert_families
    from tests.serving.conftest import InProcess

    data = tmp_path_factory.mktemp("deploy") / "data"
    api = InProcess(Api(ServerConfiguration(indexes={"docs": index_folder}, data=data)))
    api.api.state.open()
    try:
        assert api.request("PUT", "/v1/indexes/news", json={"encoder": "bm25"}).status_code == 201
        assert api.post("/v1/indexes/docs/search", json={"query": "json"}).status_code == 200
        api.api.state.metrics.refuse(429, "overloaded")
        text = api.get("/metrics").text
    finally:
        api.api.state.close()
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    for family in (*engine_families({}), *expert_families({}), *encoding_families({})):
        if family.type == "histogram":
            own = {
                f"{family.name}_bucket": {"le"},
                f"{family.name}_sum": set(),
                f"{family.name}_count": set(),
            }
        else:
            own = {f"{family.name}_total" if family.type == "counter" else family.name: set()}
        for name, further in own.items():
            labels.setdefault(name, set()).update({"model", "index", "layer", "expert"} | further)
    return labels


OF_PROMETHEUS = {"up": {"job", "instance"}}
WORDS = {"sum", "min", "max", "by", "rate", "histogram_quantile"}


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_expression_asks_for_what_the_server_gives(
    where: str, expression: str, given: dict[str, set[str]]
) -> None:
    assert expression.count("(") == expression.count(")"), where
    known = given | OF_PROMETHEUS
    quoted = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|by \([^)]*\)", " ", quoted)
    names = set(re.findall(r"[a-z_]{2,}[a-z_0-9]*", bare)) - WORDS
    assert names
    assert names <= known.keys()
    labels = {"job", "instance"}.union(*(known[name] for name in names))
    for selector in re.findall(r"\{([^}]*)\}", quoted):
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector)) <= labels
    for grouping in re.findall(r"by \(([^)]*)\)", quoted):
        assert {label.strip() for label in grouping.split(",")} <= labels


def test_routes_in_expressions_are_routes() -> None:
    paths = {route.path for route in ROUTES}
    for where, expression in expressions():
        for route in re.findall(r'route="([^"]+)"', expression):
            assert route in paths, where


def test_every_metric_of_ours_is_shown_or_told_of(given: dict[str, set[str]]) -> None:
    written = " ".join(expression for _, expression in expressions()) + json.dumps(DASHBOARD["templating"])
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"lexpert_\w+", written)}
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in given if name.startswith("lexpert_")}
    assert ours - shown == {"lexpert_index_pending_bytes"}


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= DASHBOARD.keys()
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"]
            assert panel["fieldConfig"]["defaults"]["unit"]


def test_every_alert_says_what_it_means() -> None:
    rules = [rule for group in RULES for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert re.fullmatch(r"\d+[smh]", rule["for"])
        assert rule["labels"]["severity"] in ("page", "warn")
        assert rule["annotations"].keys() == {"summary", "description"}
