"""docker/compose.yaml against the project: what it starts exists, and nothing is left open."""

from __future__ import annotations

import ast
import importlib.util
import re
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest
import yaml
from deployed import PASSWORDS, ROOT

from selectit_dagster.orchestration.instance import DAGSTER_YAML
from tools.topology import postgres
from tools.topology.compose import MissingVariableError, read_compose, substitute, variables_in

DOCKER = ROOT / "docker"
TEXT = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
ONE_SHOT = ("migrate-dagster", "migrate-mlflow")
SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|ACCESS_KEY")

# what the project reads and the deployment does not set, and why
NOT_SET = {
    "SELECTIT_DEBUG": "for a person at a command line",
    "HUGGING_FACE_HUB_TOKEN": "an older name of HF_TOKEN",
    **dict.fromkeys(("LOCAL_RANK", "LOCAL_WORLD_SIZE", "RANK"), "torchrun sets it"),
}
# what others read: the variable, and a file in which its name stands
READ_BY_OTHERS = {
    "MLFLOW_TRACKING_USERNAME": "mlflow/environment_variables.py",
    "MLFLOW_TRACKING_PASSWORD": "mlflow/environment_variables.py",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "mlflow/environment_variables.py",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "mlflow/environment_variables.py",
    "MLFLOW_AUTH_CONFIG_PATH": "mlflow/environment_variables.py",
    "DAGSTER_HOME": "dagster/_core/instance/config.py",
    "DAGSTER_DISABLE_TELEMETRY": "dagster/_core/telemetry_upload.py",
    "MLFLOW_DISABLE_TELEMETRY": "mlflow/environment_variables.py",
    "MLFLOW_TRACKING_URI": "mlflow/environment_variables.py",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "mlflow/environment_variables.py",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "mlflow/environment_variables.py",
    "MLFLOW_S3_ENDPOINT_URL": "mlflow/environment_variables.py",
    "HF_TOKEN": "huggingface_hub/utils/_auth.py",
    "HF_HOME": "huggingface_hub/constants.py",
    "HF_HUB_DISABLE_TELEMETRY": "huggingface_hub/constants.py",
    "MPLCONFIGDIR": "matplotlib/__init__.py",
}
# programs that are no Python: the interpreter, PostgreSQL and its image, the GPU's runtime, AWS
READ_BY_PROGRAMS = {
    *("PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"),
    *("PGPASSWORD", "POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_INITDB_ARGS"),
    *("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3"),
}


def _ours(compose):
    return {n: s for n, s in compose.services.items() if not postgres.is_server(s)}


def _long_running(compose):
    return {n: s for n, s in compose.services.items() if n not in ONE_SHOT}


# --- variables and secrets


def test_it_refuses_to_start_without_each_password():
    for name in PASSWORDS:
        with pytest.raises(MissingVariableError, match=name):
            read_compose(DOCKER / "compose.yaml", {**PASSWORDS, name: ""})


def test_every_variable_is_in_the_example_file_and_the_other_way_round():
    lines = (DOCKER / ".env.example").read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"(?:# )?([A-Z0-9_]+)=(\S*)", line) for line in lines]
    example = {match[1]: match[2] for match in found if match}
    asked = {name for name, _ in variables_in(TEXT)}
    passed_on = re.findall(r"^ +([A-Z0-9_]+):$", TEXT, re.MULTILINE)
    assert set(example) == asked | set(passed_on) | {"COMPOSE_PROFILES"}
    assert {k: v for k, v in example.items() if v} == {"COMPOSE_PROFILES": "cpu"}


def test_no_secret_has_a_value_or_a_default():
    for name, kind in variables_in(TEXT):
        if SECRET.search(name):
            assert kind == ":?", name
    for path in (DOCKER / "dagster.yaml", DOCKER / "workspace.yaml", DOCKER / "Dockerfile"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if SECRET.search(line.upper()) and not line.lstrip().startswith("#"):
                assert "{env: " in line, line
    assert "/docker/.env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_no_secret_is_on_a_command_line(compose):
    for service in compose.services.values():
        words = " ".join([*service.command, *service.health])
        assert not any(value in words for value in PASSWORDS.values())
        for name, kind in variables_in(str(service.raw.get("command"))):
            assert not SECRET.search(name), kind


def test_nested_defaults_are_filled_in():
    text = "${A:-http://127.0.0.1:${PORT:-3000}}/x"
    assert substitute(text, {}) == "http://127.0.0.1:3000/x"
    assert substitute(text, {"PORT": "4"}) == "http://127.0.0.1:4/x"
    assert substitute(text, {"A": "b", "PORT": "4"}) == "b/x"


def test_every_variable_that_the_instance_asks_for_is_set_wherever_dagster_runs(compose, stages):
    asked = set()
    for name in ("dagster.yaml", "workspace.yaml"):
        asked |= set(re.findall(r"env: (\w+)", (DOCKER / name).read_text(encoding="utf-8")))
    dagster = [s for s in _ours(compose).values() if s.command[0].startswith("dagster")]
    assert len(dagster) == 5
    for service in dagster:
        given = {**stages[service.raw["build"]["target"]].environment, **service.environment}
        assert asked <= set(given), service.name


def _read_by_the_project() -> set[str]:
    found = set()
    asks = re.compile(r"os\.(?:environ\.get\(|environ\[|getenv\()\s*[\"']([A-Z0-9_]+)")
    for path in [*(ROOT / "selectit_dagster").rglob("*.py"), *(ROOT / "assets").rglob("*.py")]:
        found |= set(asks.findall(path.read_text(encoding="utf-8")))
    from selectit_dagster.artefacts.address import VARIABLE
    from selectit_dagster.selection.publish import TOKEN_VARIABLES

    return {*found, *TOKEN_VARIABLES, VARIABLE}


def test_every_variable_that_the_project_reads_is_set_in_the_code_server(compose, stages):
    for name in ("code-cpu", "code-gpu"):
        service = compose.services[name]
        given = set(stages[service.raw["build"]["target"]].environment)
        given |= set(service.raw["environment"])
        assert _read_by_the_project() - given <= set(NOT_SET)
        assert not given & set(NOT_SET)


def test_every_variable_that_is_set_is_read_by_somebody(compose, stages):
    known = _read_by_the_project() | READ_BY_PROGRAMS
    for name in ("dagster.yaml", "workspace.yaml", "databases.sh"):
        known |= set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", (DOCKER / name).read_text("utf-8")))
    for variable, file in READ_BY_OTHERS.items():
        package, _, rest = file.partition("/")
        origin = importlib.util.find_spec(package).origin
        text = (Path(origin).parent / rest).read_text(encoding="utf-8")
        assert re.search(rf"\b{variable}\b", text), variable
        known.add(variable)
    given = {name for service in compose.services.values() for name in service.raw["environment"]}
    given |= set(stages["cpu"].environment) | set(stages["cuda"].environment)
    assert given <= known


# --- commands


def _click_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the click command that a command line names, and the arguments left for it."""
    scripts = {entry.name: entry for entry in entry_points(group="console_scripts")}
    command = scripts[words[0]].load()
    if not isinstance(command, click.Command):
        # the script is a function around the command
        command = importlib.import_module(scripts[words[0]].module).cli
    rest = words[1:]
    while isinstance(command, click.Group):
        name, rest = rest[0], rest[1:]
        found = command.get_command(click.Context(command), name)
        assert found is not None, words
        command = found
    return command, rest


def test_every_dagster_command_and_each_of_its_options_exists(compose):
    for service in _ours(compose).values():
        for words in (service.command, service.health):
            if not words or not words[0].startswith("dagster"):
                continue
            command, rest = _click_command(words)
            context = click.Context(command)
            parser = command.make_parser(context)
            options, _, _ = parser.parse_args(args=list(rest))
            assert len(options) >= sum(word.startswith("--") for word in rest) > -1, words


def test_every_mlflow_command_and_each_of_its_options_exists(compose):
    """By its source: importing MLflow's command line takes many seconds."""
    package = Path(importlib.util.find_spec("mlflow").origin).parent
    files = ("cli/__init__.py", "db.py", "utils/cli_args.py")
    text = "\n".join((package / name).read_text(encoding="utf-8") for name in files)
    seen = 0
    for service in compose.services.values():
        if service.command[:1] == ["mlflow"]:
            name = service.command[1 if service.command[1] == "server" else 2]
            assert f"def {name}(" in text
            for word in service.command:
                if word.startswith("--"):
                    assert f'"{word.partition("=")[0]}"' in text, word
                    seen += 1
    assert seen >= 6


def test_python_health_checks_compile_and_ask_their_own_port(compose):
    for service in _long_running(compose).values():
        if service.health[0] == "python":
            assert service.health[1] == "-c"
            ast.parse(service.health[2])
            own = next(w for w in service.command if w.startswith("--port=")).partition("=")[2]
            assert f"http://127.0.0.1:{own}/" in service.health[2]


def test_modules_and_files_that_commands_name_exist(compose, stages):
    named = 0
    for service in _ours(compose).values():
        for word in service.command:
            option, _, value = word.partition("=")
            if option == "--module-name":
                assert importlib.util.find_spec(value) is not None
                named += 1
            if option == "--workspace":
                files = stages[service.raw["build"]["target"]].files
                assert (ROOT / files[value]).is_file()
                named += 1
    assert named == 4


def test_the_code_server_is_called_as_the_workspace_of_the_project_calls_it(compose):
    own = yaml.safe_load((ROOT / "workspace.yaml").read_text(encoding="utf-8"))
    name = own["load_from"][0]["python_module"]["location_name"]
    deployed = yaml.safe_load((DOCKER / "workspace.yaml").read_text(encoding="utf-8"))
    assert deployed["load_from"][0]["grpc_server"]["location_name"] == name
    for profile in ("code-cpu", "code-gpu"):
        assert f"--location-name={name}" in compose.services[profile].command


def test_dagster_accepts_the_instance_settings(tmp_path):
    from dagster._core.instance.config import dagster_instance_config

    (tmp_path / "dagster.yaml").write_text((DOCKER / "dagster.yaml").read_text(encoding="utf-8"))
    settings, _ = dagster_instance_config(str(tmp_path))
    launcher = settings["run_launcher"]
    module = importlib.import_module(launcher["module"])
    assert module.__name__ == "selectit_dagster.orchestration.run_launcher"
    assert set(getattr(module, launcher["class"]).config_type()) == set(launcher["config"])
    for part in ("local_artifact_storage", "compute_logs", "run_coordinator"):
        entry = settings[part]
        assert hasattr(importlib.import_module(entry["module"]), entry["class"])


def test_the_instance_of_a_deployment_and_that_of_a_home_agree_on_what_they_share():
    deployed = yaml.safe_load((DOCKER / "dagster.yaml").read_text(encoding="utf-8"))
    home = yaml.safe_load(DAGSTER_YAML)
    for key in ("telemetry", "nux", "concurrency", "scheduler", "python_logs"):
        assert deployed[key] == home[key]
    for key in ("enabled", "start_timeout_seconds"):
        assert deployed["run_monitoring"][key] == home["run_monitoring"][key]
    assert not deployed["run_retries"]["retry_on_asset_or_op_failure"]


# --- shape


def test_there_is_one_daemon_and_one_code_server_whichever_profile_is_on(compose):
    for profile in ("cpu", "gpu"):
        active = compose.active(profile).values()
        for word, count in (("dagster-daemon", 1), ("code-server", 1), ("dagster-webserver", 1)):
            found = [s for s in active if word in s.command]
            assert len(found) == count
            assert all("replicas" not in s.raw["deploy"] for s in found)
            assert all("scale" not in s.raw for s in found)
    assert "code" in compose.services["code-cpu"].names & compose.services["code-gpu"].names


def test_everything_waits_for_what_it_needs(compose):
    for name, service in compose.services.items():
        for needed, condition in service.needs.items():
            once = needed in ONE_SHOT
            expected = "service_completed_successfully" if once else "service_healthy"
            assert condition == expected, (name, needed)
            assert once or compose.services[needed].health
    assert set(compose.services["mlflow"].needs) == {"migrate-mlflow"}
    assert set(compose.services["code-cpu"].needs) == set(ONE_SHOT)
    for name in ("webserver", "daemon"):
        assert set(compose.services[name].needs) == {"migrate-dagster", "code-cpu", "code-gpu"}


def test_every_server_has_a_health_check_and_comes_back(compose):
    for service in _long_running(compose).values():
        assert service.health and service.restarts, service.name
        check = service.raw["healthcheck"]
        assert {"interval", "timeout", "retries", "start_period"} <= set(check)
    for name in ONE_SHOT:
        assert re.fullmatch(r"on-failure:\d", compose.services[name].raw["restart"])


def test_only_the_two_pages_are_published_and_on_loopback(compose):
    published = {n: s.raw["ports"] for n, s in compose.services.items() if s.raw.get("ports")}
    assert published == {
        "webserver": ["127.0.0.1:3000:3000"],
        "mlflow": ["127.0.0.1:5000:5000"],
    }
    for name, (port,) in published.items():
        assert f"--port={port.rpartition(':')[2]}" in compose.services[name].command


def test_names_in_commands_and_variables_are_services_on_a_network_they_share(compose):
    services = compose.services
    owners = {name: s for s in services.values() for name in s.names}
    pairs = 0
    for service in services.values():
        given = [*service.command, *service.environment.values()]
        for text in given:
            for host in re.findall(r"(?:@|//)([a-z-]+):\d", text) + [text] * (text in owners):
                assert set(services[owners[host].name].raw["networks"]) & set(
                    service.raw["networks"]
                ), (service.name, host)
                pairs += 1
    assert pairs >= 8


def test_the_databases_cannot_be_reached_from_outside_nor_reach_out(compose):
    assert compose.raw["networks"]["stores"] == {"internal": True}
    assert set(compose.services["postgres"].raw["networks"]) == {"stores"}
    outside = {n for n, s in compose.services.items() if "pages" in s.raw["networks"]}
    assert outside == {"webserver", "mlflow", "code-cpu", "code-gpu"}


def test_mlflow_answers_to_the_names_by_which_it_is_called(compose):
    word = next(w for w in compose.services["mlflow"].command if w.startswith("--allowed-hosts="))
    hosts = word.partition("=")[2].split(",")
    called = compose.services["code-cpu"].environment["MLFLOW_TRACKING_URI"].partition("//")[2]
    assert called in hosts and "localhost:*" in hosts and "127.0.0.1:*" in hosts
    origins = next(
        w for w in compose.services["mlflow"].command if w.startswith("--cors-allowed-origins=")
    )
    assert origins.partition("=")[2].split(",") == ["http://localhost", "https://localhost"]
    assert "*" not in hosts and "--disable-security-middleware" not in TEXT


def test_every_process_is_confined_and_limited(compose):
    for service in compose.services.values():
        raw = service.raw
        assert raw["read_only"] is True and raw["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in raw["security_opt"]
        assert not {"privileged", "cap_add", "network_mode", "pid", "ipc"} & set(raw)
        assert set(raw["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
        assert raw["logging"]["options"]["max-size"]
        assert not any("docker.sock" in mount.source for mount in service.mounts)


def test_mounts_are_declared_and_meet_the_image(compose, stages):
    volumes = set(compose.raw["volumes"])
    used = set()
    owned = next(r for r in stages["cpu"].arguments("RUN") if "install --directory" in r)
    for service in compose.services.values():
        for mount in service.mounts:
            if mount.is_bind:
                assert mount.read_only and (DOCKER / mount.source).exists()
                continue
            used.add(mount.source)
            # a named volume takes the owner of the image's folder: it must be there and ours
            assert postgres.is_server(service) or mount.target in owned.split()
    assert used == volumes
    home = stages["cpu"].environment["SELECTIT_HOME"]
    for name, read_only in (("code-cpu", False), ("webserver", True), ("daemon", True)):
        found = {m.target: m.read_only for m in compose.services[name].mounts}
        assert found[home] is read_only


def test_the_gpu_profile_differs_from_the_other_in_image_and_device_alone(compose):
    cpu, gpu = (dict(compose.services[f"code-{kind}"].raw) for kind in ("cpu", "gpu"))
    assert (cpu.pop("profiles"), gpu.pop("profiles")) == (["cpu"], ["gpu"])
    assert cpu.pop("build")["target"] == "cpu" and gpu.pop("build")["target"] == "cuda"
    assert gpu.pop("image") == cpu.pop("image") + "-cuda"
    reserved = gpu["deploy"]["resources"].pop("reservations")["devices"]
    assert reserved == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    assert cpu == gpu


def test_the_vllm_beside_it_publishes_nothing_and_shares_its_key_with_the_code_server(compose):
    beside = yaml.safe_load((DOCKER / "vllm.yaml").read_text(encoding="utf-8"))["services"]
    server = beside["vllm"]
    assert "ports" not in server and server["profiles"] == ["vllm"]
    assert set(server["networks"]) & set(compose.services["code-gpu"].raw["networks"])
    for name in ("vllm", "code-cpu", "code-gpu"):
        assert beside[name]["environment"]["VLLM_API_KEY"].startswith("${VLLM_API_KEY:?")
    assert not any("KEY" in word for word in server["command"])
    assert {"cap_drop", "security_opt", "healthcheck", "deploy", "restart"} <= set(server)
