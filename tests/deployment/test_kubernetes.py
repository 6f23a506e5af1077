"""docker/kubernetes: values and manifests against schemas, and against the compose file."""

from __future__ import annotations

import copy
import importlib
import re

import jsonschema
import pytest
import yaml
from deployed import ROOT

from tools.topology.cluster import instance_settings

FOLDER = ROOT / "docker" / "kubernetes"
SCHEMAS = ROOT / "tests" / "deployment" / "schemas"


def _read(name):
    return [d for d in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")) if d]


VALUES = _read("dagster-values.yaml")[0]
CODE = VALUES["dagster-user-deployments"]["deployments"][0]
RAY = _read("raycluster.yaml")[0]


def _check(name, document):
    schema = yaml.safe_load((SCHEMAS / f"{name}.yaml").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(document)


def test_values_of_dagsters_chart_meet_the_schema():
    _check("dagster-values", VALUES)


def test_the_ray_cluster_meets_the_schema():
    _check("raycluster", RAY)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("dagsterDaemon", "runMonitoring", "pollIntervalSecond"), 30),
        (("dagster-user-deployments", "deployments", 0, "port"), "4000"),
        (("runLauncher", "type"), "K8sRunLauncherr"),
        (("dagsterWebserver", "image", "tag"), "latest"),
        (("postgresql", "postgresqlPassword"), "secret"),
    ],
)
def test_the_schema_finds_what_is_misspelt_or_unsafe(path, value):
    wrong = copy.deepcopy(VALUES)
    node = wrong
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        _check("dagster-values", wrong)


def _pods():
    """Yield name and pod specification of everything that the files describe."""
    for name in ("mlflow", "vllm", "inputs"):
        for document in _read(f"{name}.yaml"):
            if document["kind"] in ("Deployment", "Job"):
                yield name, document["spec"]["template"]["spec"]
    yield "ray head", RAY["spec"]["headGroupSpec"]["template"]["spec"]
    for group in RAY["spec"]["workerGroupSpecs"]:
        yield f"ray {group['groupName']}", group["template"]["spec"]
    launcher = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
    parts = {
        "webserver": VALUES["dagsterWebserver"],
        "daemon": VALUES["dagsterDaemon"],
        "code": CODE,
        "run": {
            **launcher,
            "image": CODE["image"],
            "podSecurityContext": launcher["runK8sConfig"]["podSpecConfig"]["securityContext"],
        },
    }
    for name, part in parts.items():
        container = {
            "name": name,
            "image": f"{part['image']['repository']}:{part['image']['tag']}",
            "resources": part["resources"],
            "securityContext": part["securityContext"],
            "env": part.get("env", []),
            "envFrom": [{"secretRef": source} for source in part.get("envSecrets", [])],
            "volumeMounts": part.get("volumeMounts", []),
        }
        yield (
            name,
            {
                "containers": [container],
                "securityContext": part["podSecurityContext"],
                "volumes": part.get("volumes", []),
            },
        )


PODS = dict(_pods())


@pytest.mark.parametrize("name", PODS)
def test_every_pod_is_confined_limited_and_pinned(name):
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        for part in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(container["resources"][part])
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*", container["image"])
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted <= {volume["name"] for volume in pod.get("volumes", [])}


@pytest.mark.deployment
def test_kubernetes_itself_would_take_every_object_and_pod():
    validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed (make deployment)"
    )
    version = validate.latest_version()
    for name in ("mlflow.yaml", "storage.yaml", "vllm.yaml", "inputs.yaml"):
        for document in _read(name):
            validate.validate(document, version, strict=True)
    for name, spec in PODS.items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
        validate.validate(pod, version, strict=True)
        wrong = copy.deepcopy(pod)
        wrong["spec"]["containers"][0]["resources"]["limitz"] = {}
        with pytest.raises(validate.ValidationError):
            validate.validate(wrong, version, strict=True)
        assert name
    job = VALUES["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    spec = {**job["jobSpecConfig"], "template": {"spec": {**PODS["run"], **job["podSpecConfig"]}}}
    document = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": spec}
    validate.validate(document, version, strict=True)


def test_claims_and_secrets_that_are_named_are_described():
    described = {
        d["metadata"]["name"] for name in ("storage.yaml", "vllm.yaml") for d in _read(name)
    }
    text = "\n".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml"))
    assert set(re.findall(r"claimName: ([\w-]+)", text)) <= described
    made = set(re.findall(r"kubectl create secret generic ([\w-]+)", text))
    used = {VALUES["global"]["postgresqlSecretName"], *(s["name"] for s in CODE["envSecrets"])}
    used |= set(re.findall(r"secretKeyRef: \{name: ([\w-]+)", text))
    assert used == made
    assert "kind: Secret" not in text


def test_what_is_fetched_lies_where_every_run_sees_it(stages):
    (job,) = (d for d in _read("inputs.yaml") if d["kind"] == "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    home = {"name": "home", "mountPath": stages["cpu"].environment["SELECTIT_HOME"]}
    assert home in container["volumeMounts"] and home in CODE["volumeMounts"]
    script = container["args"][0]
    assert f"cd {home['mountPath']} && mkdir -p inputs" in script
    assert all(" --revision " in line for line in script.splitlines() if "hf download" in line)
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    assert given["HF_HOME"] == stages["cpu"].environment["HF_HOME"]


def test_the_cluster_sets_what_the_compose_file_sets(compose, stages):
    for name in ("SELECTIT_EXPERIMENT", "SELECTIT_DAGSTER_UI", "SELECTIT_MLFLOW_UI"):
        assert name in {entry["name"] for entry in CODE["env"]}
    given = {entry["name"]: entry["value"] for entry in CODE["env"]}
    assert given["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert given["SELECTIT_HOME"] == stages["cpu"].environment["SELECTIT_HOME"]
    mounts = {mount["mountPath"] for mount in CODE["volumeMounts"]}
    assert mounts == {m.target for m in compose.services["code-cpu"].mounts}
    server = _read("mlflow.yaml")[0]["spec"]["template"]["spec"]["containers"][0]
    ours = compose.services["mlflow"].command

    def shape(words):
        words = [re.sub(r"@postgres[\w.]*:", "@", word) for word in words]
        return [word.removesuffix(",localhost") for word in words]

    assert shape(server["command"]) == shape(ours)
    assert f"--port={CODE['port']}" in compose.services["code-cpu"].command
    module = CODE["codeServerArgs"][CODE["codeServerArgs"].index("--module-name") + 1]
    assert f"--module-name={module}" in compose.services["code-cpu"].command


def test_the_instance_in_the_cluster_agrees_with_the_one_in_compose():
    deployed = yaml.safe_load((ROOT / "docker" / "dagster.yaml").read_text(encoding="utf-8"))
    daemon, more = VALUES["dagsterDaemon"], VALUES["additionalInstanceConfig"]
    assert more["concurrency"] == deployed["concurrency"]
    queue = daemon["runCoordinator"]["config"]["customRunCoordinator"]
    assert queue == deployed["run_coordinator"]
    assert daemon["runRetries"]["maxRetries"] == deployed["run_retries"]["max_retries"]
    assert daemon["runRetries"]["retryOnAssetOrOpFailure"] is False
    ticks = VALUES["scheduler"]["config"]["daemonScheduler"]["maxTickRetries"]
    assert ticks == deployed["scheduler"]["config"]["max_tick_retries"]
    logs = deployed["python_logs"]["managed_python_loggers"]
    assert VALUES["pythonLogs"]["managedPythonLoggers"] == logs
    scheme = deployed["storage"]["postgres"]["postgres_db"]["scheme"]
    assert VALUES["postgresql"]["postgresqlScheme"] == scheme


def test_dagster_accepts_the_instance_that_the_chart_makes(tmp_path):
    from dagster._core.instance.config import dagster_instance_config

    text = yaml.safe_dump(instance_settings(VALUES))
    (tmp_path / "dagster.yaml").write_text(text, encoding="utf-8")
    settings, _ = dagster_instance_config(str(tmp_path))
    queue = settings["run_coordinator"]
    assert hasattr(importlib.import_module(queue["module"]), queue["class"])


def test_the_charts_version_is_that_of_the_locked_dagster():
    text = (FOLDER / "dagster-values.yaml").read_text(encoding="utf-8")
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    version = re.search(r"^dagster==(\S+)", lock, re.MULTILINE)[1]
    assert f"--version {version}" in text
