"""The examples for clusters: they parse, and the commands in them are commands of this trainer."""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from tests.conftest import ROOT
from trainer.arguments import parser
from trainer.errors import ConfigError, DataError
from trainer.recipe_file import load_recipe

DEPLOY = ROOT / "deploy"


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text("utf-8")))


def check(arguments: list[str]) -> Any:
    options = parser().parse_args(arguments)
    load_recipe(options.recipe, options.set)
    assert str(options.output).startswith("/volume/")
    assert str(options.adapters).startswith("/volume/")
    return options


def test_the_kubernetes_job_runs_this_command_and_knows_its_exit_codes() -> None:
    claim, job = documents("kubernetes/train/job.yaml")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert check(container["args"]).auto_batch
    rule = job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert rule["containerName"] == container["name"]
    assert rule["values"] == [ConfigError.exit_code] == [DataError.exit_code]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    # The image runs as this user.
    assert f"--uid {pod['securityContext']['runAsUser']}" in (ROOT / "Dockerfile.train").read_text()


def test_the_train_job_starts_torchrun_with_this_module() -> None:
    (job,) = documents("kubernetes/overlays/kubeflow/trainjob.yaml")
    command = job["spec"]["trainer"]["command"]
    assert command[:5] == ["python", "-m", "torch.distributed.run", "-m", "trainer"]
    options = check(command[5:])
    # What it writes outlives its pod: /volume is the Job's claim here, too.
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    claims = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    mounts = {m["mountPath"]: m["name"] for m in pod["containers"][0]["volumeMounts"]}
    claim, _ = documents("kubernetes/train/job.yaml")
    assert claims[mounts["/volume"]] == claim["metadata"]["name"]
    training = load_recipe(options.recipe).training
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
    assert rows % job["spec"]["trainer"]["numProcPerNode"] == 0


def test_the_skypilot_task_installs_and_runs_what_there_is() -> None:
    (task,) = documents("skypilot.yaml")
    words = shlex.split(task["run"].splitlines()[-1])
    check(words[words.index("trainer") + 1 :])
    for word in shlex.split(task["setup"]):
        if word.startswith("requirements/"):
            assert (ROOT / word).is_file()
