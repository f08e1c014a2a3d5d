"""Properties of the images that can be read off the Dockerfiles, without an engine."""

from __future__ import annotations

import re
from fnmatch import fnmatch

import pytest

from tests.containers.files import ROOT, Dockerfile, read_dockerfile

SERVE = read_dockerfile("Dockerfile.serve")
TRAIN = read_dockerfile("Dockerfile.train")
TARGETS = [
    pytest.param(SERVE, "server", id="server"),
    pytest.param(SERVE, "server-ray", id="server-ray"),
    pytest.param(SERVE, "client", id="client"),
    pytest.param(TRAIN, "trainer", id="trainer"),
]


def copied(dockerfile: Dockerfile) -> list[tuple[str, str]]:
    """Every (stage, source) that is copied from the build context."""
    return [
        (stage.name, source)
        for stage in dockerfile.stages.values()
        for instruction in stage.all("COPY")
        if "--from=" not in instruction.text
        for source in instruction.words()[:-1]
    ]


def sent(path: str) -> bool:
    """Whether .dockerignore lets the path into the build; the last matching line decides, as Docker does it."""
    keep = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").rstrip("/")
        if not pattern or pattern.startswith("#"):
            continue
        parts = path.rstrip("/").split("/")
        prefixes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        if any(fnmatch(prefix, pattern.removeprefix("**/")) for prefix in prefixes):
            keep = line.startswith("!")
    return keep


@pytest.mark.parametrize("dockerfile", [SERVE, TRAIN], ids=["serve", "train"])
def test_what_is_copied_exists_and_reaches_the_build(dockerfile: Dockerfile) -> None:
    for _, source in copied(dockerfile):
        assert (ROOT / source).exists(), source
        assert sent(source), f"{source} is in .dockerignore"


@pytest.mark.parametrize(
    "secret", [".env", ".git/config", "adapters/x/adapter_config.json", "runs/1/log"]
)
def test_secrets_and_outputs_never_reach_the_build(secret: str) -> None:
    assert not sent(secret)


@pytest.mark.parametrize(("dockerfile", "target"), TARGETS)
def test_the_base_image_is_pinned_and_replaceable(dockerfile: Dockerfile, target: str) -> None:
    first = dockerfile.lineage(target)[0]
    assert first.parent == "${PYTHON_IMAGE}"
    assert re.fullmatch(r"python:3\.\d+-slim-[a-z]+", dockerfile.resolve(first.parent))


@pytest.mark.parametrize("dockerfile", [SERVE, TRAIN], ids=["serve", "train"])
def test_no_syntax_line(dockerfile: Dockerfile) -> None:
    """It would make BuildKit fetch a second image before the first instruction."""
    assert "syntax=" not in dockerfile.path.read_text()


def test_both_dockerfiles_start_from_the_same_base() -> None:
    assert SERVE.arguments["PYTHON_IMAGE"] == TRAIN.arguments["PYTHON_IMAGE"]


@pytest.mark.parametrize(("dockerfile", "target"), TARGETS)
def test_runs_as_an_unprivileged_user_with_the_shared_uid(
    dockerfile: Dockerfile, target: str
) -> None:
    """By number: the trainer writes the volume that the server reads, and orchestrators check the number."""
    assert dockerfile.instructions(target, "USER")[-1].text == "10001:10001"
    user = dockerfile.lineage(target)[0].all("RUN")[0].text
    assert "useradd --uid 10001 --gid 10001" in user


@pytest.mark.parametrize(("dockerfile", "target"), TARGETS)
def test_code_is_copied_after_the_packages_are_installed(
    dockerfile: Dockerfile, target: str
) -> None:
    """Else every edit installs torch again."""
    steps = [i for stage in dockerfile.lineage(target) for i in stage.instructions]
    last_install = max(n for n, i in enumerate(steps) if "pip install" in i.text)
    code = [n for n, i in enumerate(steps) if i.name == "COPY" and "requirements/" not in i.text]
    assert code
    assert min(code) > last_install


def test_every_install_is_held_to_the_pins() -> None:
    for dockerfile in (SERVE, TRAIN):
        for stage in dockerfile.stages.values():
            for run in stage.all("RUN"):
                for command in run.text.split("&&"):
                    if "pip install" in command:
                        assert "-c requirements/constraints-" in command or "demo.txt" in command


def test_the_server_takes_the_compiled_decoder_and_leaves_the_compiler_behind() -> None:
    [native] = [i for i in SERVE.instructions("server", "COPY") if "--from=" in i.text]
    assert native.text == "--from=native /app/server/native/_lib/ server/native/_lib/"
    assert "python -m server.native" in SERVE.stages["native"].all("RUN")[-1].text
    assert not any("g++" in i.text for i in SERVE.instructions("server", "RUN"))
    assert not sent("server/native/_lib/library.so")


@pytest.mark.parametrize("target", ["server", "client"])
def test_the_serving_images_hold_no_trainer(target: str) -> None:
    stages = {stage.name for stage in SERVE.lineage(target)}
    sources = {s for stage, s in copied(SERVE) if stage in stages}
    assert sources == {
        "requirements/constraints-cpu.txt",
        f"requirements/{'serve' if target == 'server' else 'client'}.txt",
        f"{target}/",
    }


def test_torch_comes_from_the_same_index_as_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    index = re.search(r"^TORCH_INDEX_URL \?= (\S+)$", makefile, re.MULTILINE)
    assert index is not None
    assert [i.text for i in SERVE.stages["serving"].all("ARG")] == [f"TORCH_INDEX_URL={index[1]}"]
    assert [i.text for i in TRAIN.stages["cpu"].all("ARG")] == [f"TORCH_INDEX_URL={index[1]}"]


@pytest.mark.parametrize("target", ["server", "client"])
def test_the_healthcheck_asks_the_port_that_is_exposed(target: str) -> None:
    port = SERVE.instructions(target, "EXPOSE")[-1].text
    check = SERVE.instructions(target, "HEALTHCHECK")[-1].text
    route = "/ready" if target == "server" else "/health"
    assert f"HTTPConnection('127.0.0.1', {port}," in check
    assert f"request('GET', '{route}')" in check
    prefix = "LORACHAT" if target == "server" else "LORACHAT_CLIENT"
    environment = SERVE.environment(target)
    assert environment[f"{prefix}_PORT"] == port
    assert environment[f"{prefix}_HOST"] == "0.0.0.0"


def test_the_server_under_ray_is_the_same_server_with_ray_in_it() -> None:
    def code(target: str) -> list[str]:
        return [i.text for i in SERVE.stages[target].all("COPY") if "requirements/" not in i.text]

    assert code("server-ray") == code("server")
    assert SERVE.lineage("server-ray")[:-1] == SERVE.lineage("server")[:-1]
    environment = SERVE.environment("server-ray")
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    # Ray starts its workers wherever it likes.
    assert environment["PYTHONPATH"] == SERVE.instructions("server-ray", "WORKDIR")[-1].text


def test_nothing_phones_home() -> None:
    for dockerfile, target in ((SERVE, "server"), (SERVE, "client"), (TRAIN, "trainer")):
        assert dockerfile.environment(target)["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert TRAIN.environment("gpu")["UNSLOTH_DISABLE_STATISTICS"] == "1"
    assert SERVE.environment("client")["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_the_cuda_image_cannot_fall_back_to_the_cpu() -> None:
    assert TRAIN.environment("gpu")["UNSLOTH_DISABLE_CPU_FALLBACK"] == "1"
    assert "UNSLOTH_DISABLE_CPU_FALLBACK" not in TRAIN.environment("cpu")
