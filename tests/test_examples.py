"""The examples are configs that parse, and a manifest that Kubernetes would take."""

import json
import shlex
import sys
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
import warm
import yaml
from typer.testing import CliRunner

from patchmint.config.build import BuildConfig, RayRunner
from patchmint.features.plan import check_features
from patchmint.geometry import grid_preset
from patchmint.jobs.options import with_settings

EXAMPLES = Path(__file__).parent.parent / "examples"
CONFIGS = sorted(EXAMPLES.glob("maven-*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_parse(path):
    config = BuildConfig.load(path)
    assert isinstance(config.grid, str)
    grid_preset(config.grid)
    assert config.notice == ""
    assert Path(config.output.uri).name == path.stem.removeprefix("maven-")


def test_each_stage_has_what_it_needs():
    by_stage = {path.stem.split("-")[1]: BuildConfig.load(path) for path in CONFIGS}
    assert sorted(by_stage) == ["stage1", "stage2", "stage3", "stage4"]
    assert len(CONFIGS) == 5
    for stage, config in by_stage.items():
        assert (config.labels is not None) == (stage == "stage1")
        assert (config.tokens is not None) == (stage != "stage3")
        assert (config.features is not None) == (stage == "stage3")
        if config.features is not None:
            spec = check_features(config.models, config.features, grid_preset(config.grid))
            assert (spec.tokens, spec.channels) == (144, 3072)


def test_the_selector_trains_and_is_judged(tmp_path, monkeypatch, capsys):
    """A few scenes and steps: that it runs, and what it prints. docs/training.md has the figures of a whole run."""
    built = []

    def build(command, **_):
        built.append(done := warm.run([command[0], *command[3:]]))  # without `-W ignore`
        assert done.returncode == 0, done.stderr

    script = run_path(str(EXAMPLES / "train_selector.py"))
    monkeypatch.setitem(script["build"].__globals__, "subprocess", SimpleNamespace(run=build))
    monkeypatch.setattr(sys, "argv", ["train_selector.py", str(tmp_path), "--json", "--scenes", "8", "--steps", "2"])
    script["main"]()
    assert len(built) == 2
    figures = json.loads(capsys.readouterr().out)
    wanted = {"auc", "auc_on_truth", "auc_shuffled", "recall_at_keep", "auc_all", "keep_ratio", "seconds"}
    assert figures.keys() == wanted
    assert all(0 <= figures[name] <= 1 for name in wanted - {"auc_all", "seconds"})


def test_the_readme_names_every_example():
    text = (EXAMPLES / "README.md").read_text()
    assert all(f"**{path.name}**" in text for path in [*EXAMPLES.glob("*.yaml"), *EXAMPLES.glob("*selector.py")])


@pytest.fixture(scope="module")
def manifest() -> Any:
    return yaml.safe_load((EXAMPLES / "rayjob.yaml").read_text())


def test_the_manifest_has_the_fields_of_a_rayjob(manifest):
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    assert manifest["metadata"]["name"]
    spec = manifest["spec"]
    once = {"backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"}
    assert set(spec) == {"entrypoint", "rayClusterSpec", *once}
    cluster = spec["rayClusterSpec"]
    lock = (EXAMPLES.parent / "requirements.lock").read_text()
    assert f"\nray=={cluster['rayVersion']} " in lock
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (cluster["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "patchmint-store"}}]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert all("value" in variable and "SECRET" not in variable["name"] for variable in container["env"])


def test_the_manifests_command_fits_its_cluster(manifest):
    arguments = shlex.split(manifest["spec"]["entrypoint"])
    assert arguments[:3] == ["python", "-m", "patchmint.jobs.build"]
    config = _config_of(EXAMPLES / Path(arguments[3]).name, arguments[4:])
    assert isinstance(config.runner, RayRunner)
    assert config.output.uri.startswith("s3://")
    (workers,) = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == config.runner.num_gpus
    assert int(limits["cpu"]) >= config.runner.num_cpus
    assert workers["maxReplicas"] == config.runner.max_actors


def _config_of(path: Path, arguments: list[str]) -> BuildConfig:
    found: dict[str, Any] = {}

    @with_settings(BuildConfig)
    def command(*, settings: dict[str, Any]) -> None:
        found.update(settings)

    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return BuildConfig.load(path, found)
