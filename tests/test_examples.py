"""The examples are configs that parse, a manifest that Kubernetes would take, and a script for Slurm."""

import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer
import warm
import yaml
from ray_cluster import declared_metrics
from shard_data import make_document
from training_data import RICH, cut, finished, samples
from typer.testing import CliRunner

from patchmint.config.build import BuildConfig, RayRunner
from patchmint.features.plan import check_features
from patchmint.geometry import grid_preset
from patchmint.jobs.options import with_settings
from patchmint.samples import Part, SourceText
from patchmint.training import StageDataset, grid_tokens

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


@pytest.mark.filterwarnings("ignore")  # webdataset leaves tars open
def test_shards_carry_all_without_patchmint(tmp_path):
    """webdataset and torch alone give the numbers that `StageDataset` gives, so figures are the same, too."""
    assert not re.search(r"^\s*(from|import) patchmint", (EXAMPLES / "plain_torch.py").read_text(), re.MULTILINE)
    plain = SimpleNamespace(**run_path(str(EXAMPLES / "plain_torch.py")))
    data = finished(tmp_path / "set", cut(samples(9, layout=RICH), 4, 5), layout=RICH)
    dataset = StageDataset(data, include=["labels", "codes", "features"], shuffle=False, text="first")
    read = list(plain.read(data))
    for (text, *arrays, _), sample in zip(read, dataset, strict=True):
        features = grid_tokens(sample.features, dataset.layouts[0]).float()
        ours = (sample.codes, features, sample.feature_selector.bool())
        assert text == sample.text
        assert all(torch.equal(one.flatten(), other.flatten()) for one, other in zip(arrays, ours, strict=True))
    assert sum(int(one[3].sum()) for one in read) < sum(int(one[4].sum()) for one in read)
    figures = plain.judge(plain.train(read, 3), read)
    assert all(0 <= value <= 1 for value in figures.values())


@pytest.fixture
def maven(tmp_path, monkeypatch):
    """The modules of examples/maven, and data in the form of theirs: shards of chance."""
    monkeypatch.syspath_prepend(EXAMPLES / "maven")
    names = ("data", "model", "stages", "judge", "run")
    modules = SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    things = ("red circle", "blue star", "white cross")
    scenes = []
    for number, sample in enumerate(samples(9, layout=RICH, prefix="")):
        texts = (SourceText(f"{things[number % 3]} . {things[(number + 1) % 3]}"), SourceText(things[number % 3]))
        source = replace(sample.planned.sample, texts=texts[: 1 + number % 2], conversation=())
        scenes.append(replace(sample, phrases=(), planned=replace(sample.planned, sample=source)))
    documents, layout = [], RICH.model_copy(update={"documents": True})
    for number, count in enumerate((2, 3, 4)):
        made = make_document(number, count, layout=layout)
        *shown, _, _, answer = made.planned.sample.parts
        parts = (*shown, Part(f"Which picture has a {things[0]}?"), replace(answer, text="The second picture."))
        source = replace(made.planned.sample, parts=parts)
        documents.append(replace(made, planned=replace(made.planned, sample=source)))
    pictures = finished(tmp_path / "pictures", cut(scenes, 4, 5), layout=RICH)
    documents = finished(tmp_path / "documents", [documents], layout=layout)
    truth = [{thing: torch.arange(6) // 3 == place % 2 for place, thing in enumerate(things)}] * 9
    part = SimpleNamespace(dataset=pictures, truth=lambda: truth)
    made = SimpleNamespace(labelled=part, pictures=[pictures], held_out=part)
    made.documents = made.held_out_documents = documents
    return SimpleNamespace(made=made, **vars(modules))


def test_maven_trains_in_stages_and_is_judged(maven, tmp_path, monkeypatch):
    """Each stage asserts by itself that nothing else changes. docs/papers.md has the figures of a whole run."""
    monkeypatch.setattr(maven.run, "RATIOS", (0.25, 1.0))
    monkeypatch.setattr(maven.judge, "PAIRINGS", 1)
    steps, modes = {**dict.fromkeys(maven.run.PLAN["steps"], 2), "everything": 7}, maven.model.MODES
    found = [maven.run.figures_of(maven.made, tmp_path, steps, (0, mode)) for mode in (None, *modes)]
    figures = {**maven.run.by_figure(dict(zip(modes, found[1:], strict=True))), **found[0]}
    for name in ("colour_f1", "shape_f1", "which", "documents"):
        assert figures[name].keys() == figures["exchanged"][name].keys() == figures["chance"][name].keys() == set(modes)
        assert all(0 <= figures[kind][name][mode] <= 1 for kind in ("exchanged", "chance") for mode in modes)
    assert 0 <= figures["auc_between_things"] <= 1
    assert 0 <= figures["recall_at_keep"] <= 1
    assert figures["keep_selector"]["hybrid"].keys() == figures["keep_random"]["continuous"].keys()
    maven.run.plot(figures, tmp_path / "plot.png")
    # Each sample's answer is one of its pictures, whichever is right.
    world, way = maven.run.train(maven.made, tmp_path, steps, 0, "hybrid"), maven.model.Way("hybrid")
    held_out = maven.judge.HeldOut.read(maven.made.held_out.dataset, maven.made.held_out_documents)
    for asked, places in ((held_out.pairs, 2), (held_out.documents, 4)):
        shares = []
        for place in range(places):
            monkeypatch.setattr(maven.judge, "sought", lambda _, place=place: ("red circle", place))
            shares.append(maven.judge.answer(world, asked, way))
        assert sum(shares) == pytest.approx(1)


def test_what_maven_says_is_judged_by_its_words(maven):
    figures = maven.judge.f1s([("red circle . red star", "red star"), ("blue", "white cross")])
    assert figures == {"colour_f1": 1 / 2, "shape_f1": pytest.approx(1 / 3)}
    held_out = maven.judge.HeldOut.read(maven.made.held_out.dataset, maven.made.documents)
    pictures, moved = held_out.pictures, held_out.exchanged().pictures
    assert [sample.text for sample in moved] == [sample.text for sample in pictures]
    assert [sample.images for sample in moved] == [sample.images for sample in (*pictures[1:], pictures[0])]
    assert len(held_out.documents) == len(held_out.exchanged().documents) == 3


def test_what_maven_does_not_train_stays_as_it_is(maven, tmp_path):
    steps = dict.fromkeys(maven.run.PLAN["steps"], 1)
    world, way = maven.run.train(maven.made, tmp_path, steps, 0), maven.model.Way("continuous")

    def loss(batch):
        world.llm.model.norm.weight.data.add_(1)
        return world.loss(batch, way)

    task = maven.stages.conversations(world, maven.made.pictures, way)
    for tasks, rate, message in (
        ([replace(task, loss=loss)], 1e-3, r"\['llm\.model\.norm\.weight'\]"),
        ([task], 0.0, "learnt nothing"),
    ):
        with pytest.raises(AssertionError, match=message):
            maven.stages.fit(world, tmp_path / f"{rate}.pt", ("projector",), tasks, 1, rate)


def test_a_stage_that_was_stopped_ends_with_the_same_numbers(maven, tmp_path, monkeypatch):
    monkeypatch.setattr(maven.stages, "CHECKPOINT", 2)
    begun = maven.run.train(maven.made, tmp_path, dict.fromkeys(maven.run.PLAN["steps"], 1), 0)
    given = (maven.made.pictures, maven.made.documents)
    ends = []
    for name, stopped in (("whole", False), ("resumed", True)):
        (tmp_path / name).mkdir()
        if stopped:
            world = deepcopy(begun)
            losses = iter([world.loss] * 3)
            monkeypatch.setattr(world, "loss", lambda *given, left=losses, **more: next(left)(*given, **more))
            with pytest.raises(StopIteration):
                maven.stages.stage4(world, *given, tmp_path / name, 8, "hybrid")
        world = deepcopy(begun)
        maven.stages.stage4(world, *given, tmp_path / name, 8, "hybrid")
        ends.append(world.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(ends[0].values(), ends[1].values(), strict=True))


def test_the_scenes_of_maven_know_their_truth(maven, tmp_path, monkeypatch):
    """Whatever a pixel of a thing lies in is one of the patches of its name, which several things may have."""
    monkeypatch.setattr(maven.data, "build", lambda *_, **__: None)  # other tests build
    pictures, pool, side = maven.data.Pictures(tmp_path, 22, 3), maven.data.POOL, maven.data.SIDE
    captions = json.loads((tmp_path / "scenes/annotations/captions_train2017.json").read_text())["annotations"]
    for number, (scene, truth) in enumerate(zip(pictures.scenes(), pictures.truth(), strict=True)):
        everything, one = (caption["caption"] for caption in captions if caption["image_id"] == number)
        names = [f"{thing.colour} {thing.shape}" for thing in scene.objects]
        assert everything.split(" . ") == list(truth) == sorted(set(names))
        assert one in truth
        touched = {name: torch.zeros(pool, pool, dtype=torch.bool) for name in truth}
        for y, x in zip(*np.nonzero(scene.ids >= 0), strict=True):
            rows, cols = (slice(at * pool // side, (at * pool + pool - 1) // side + 1) for at in (y, x))
            touched[names[scene.ids[y, x]]][rows, cols] = True
        assert all(torch.equal(patches, touched[name].flatten()) for name, patches in truth.items())


def test_the_dashboard_shows_what_is_exported():
    """Every metric is shown, and nothing else asked for; that these are exported is `test_build_ray`'s to see."""
    dashboard = json.loads((EXAMPLES / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    tags = declared_metrics()
    found = {name for expression in asked for name in re.findall(r"\bray_\w+", expression)}
    assert found == set(tags)
    for expression in asked:
        (*_, last) = re.findall(r"\bray_\w+", expression)
        by = re.findall(r"\bby \((\w+)\)", expression)
        assert tuple(by) == tags[last], expression
    (session,) = [variable for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    assert session["query"]["query"].split("(")[1].split(",")[0] in tags
    corners = [tuple(panel["gridPos"][side] for side in "xywh") for panel in dashboard["panels"]]
    cells = [(x, y) for left, top, w, h in corners for x in range(left, left + w) for y in range(top, top + h)]
    assert len(cells) == len(set(cells))  # panels don't overlap


def test_the_readme_names_every_example():
    text = (EXAMPLES / "README.md").read_text()
    named = [*EXAMPLES.glob("*.yaml"), *EXAMPLES.glob("*.sh"), *EXAMPLES.glob("*selector.py"), *EXAMPLES.glob("*.json")]
    assert all(f"**{path.name}**" in text for path in named)


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


# Slurm and Ray as far as the script sees them. `python` is the build, which ends with 3, or when told to, with 143.
SLURM = {
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$*" > requeued; fi',
    "getent": 'echo "127.0.0.1 STREAM $2"',
    "srun": 'while [[ $1 == --* ]]; do shift; done; SLURM_PROCID=0 exec "$@"',
    "ray": 'if [ "$1" = start ]; then echo "$*" > started; exec /bin/sleep 60; else [ -e started ]; fi',
    "sleep": "exec /bin/sleep 0.02",
    "python": """if [ "$1" = -c ]; then exec echo secret; fi
printf '%s\\n' "$@" > arguments.partial; mv arguments.partial arguments
if [ -z "$LONG" ]; then exit 3; fi
trap 'exit 143' TERM; while :; do sleep 1; done""",
}


@pytest.fixture
def sbatch(tmp_path):
    for name, code in SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{code}\n")
        (tmp_path / name).chmod(0o755)
    script = (EXAMPLES / "slurm.sh").read_text()
    given = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "a[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "16",
        "SLURM_GPUS_ON_NODE": "4",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    config = str(EXAMPLES / "maven-stage1-coco.yaml")
    return lambda **variables: subprocess.Popen(
        ["/bin/bash", "-c", script, "slurm.sh", config, "--output.uri", "/data/out"],
        cwd=tmp_path,
        env=os.environ | given | variables,
    )


def test_a_slurm_job_ends_as_its_build_does(sbatch, tmp_path):
    assert sbatch(LONG="").wait(20) == 3
    assert not (tmp_path / "requeued").exists()
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments[:2] == ["-m", "patchmint.jobs.build"]
    arguments.remove(path := str(EXAMPLES / "maven-stage1-coco.yaml"))
    config = _config_of(Path(path), arguments[2:])
    assert config.output.uri == "/data/out"
    assert isinstance(config.runner, RayRunner)
    assert (config.runner.max_actors, config.runner.num_gpus, config.runner.num_cpus) == (8, 1, 4)
    started = (tmp_path / "started").read_text()
    assert "--head --node-ip-address=127.0.0.1" in started
    assert "--num-cpus=16 --num-gpus=4" in started


@pytest.mark.parametrize(
    ("sent", "restarts", "requeued"),
    [(signal.SIGUSR1, "0", True), (signal.SIGUSR1, "10", False), (signal.SIGTERM, "0", False)],
)
def test_a_slurm_job_out_of_time_ends_its_build_and_is_queued_again(sbatch, tmp_path, sent, restarts, requeued):
    job = sbatch(LONG="1", SLURM_RESTART_COUNT=restarts)
    while not (tmp_path / "arguments").exists():
        time.sleep(0.02)
    job.send_signal(sent)
    assert job.wait(20) == 143
    assert (tmp_path / "requeued").exists() == requeued


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
