"""Settings as command-line options: all of them, read as YAML would be, and only those that were given."""

import re
from typing import Annotated, Any

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from patchmint.config import UNTRAINED
from patchmint.config.build import BuildConfig
from patchmint.config.parsing import Settings, sections
from patchmint.errors import ConfigError
from patchmint.jobs.options import with_settings

given: dict[str, Any] = {}


@with_settings(BuildConfig)
def command(
    config: Annotated[str | None, typer.Argument()] = None,
    *,
    settings: dict[str, Any],
    dry_run: Annotated[bool, typer.Option("--dry-run")] = False,
) -> None:
    """Say what was given."""
    given.clear()
    given.update(settings=settings, config=config, dry_run=dry_run)


app = typer.Typer()
app.command()(command)


def run(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return given["settings"]


def help_text() -> str:
    return CliRunner().invoke(app, ["--help"], env={"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"}).output


def test_only_what_was_given_is_set():
    assert run() == {}
    assert run("a.yaml", "--dry-run") == {}
    assert (given["config"], given["dry_run"]) == ("a.yaml", True)


@pytest.mark.parametrize(
    ("option", "typed", "key", "value"),
    [
        ("--labels.box-threshold", "0.3", "labels.box_threshold", 0.3),
        ("--labels", "null", "labels", None),
        ("--tokens", "{size: 128}", "tokens", {"size": 128}),
        ("--grid", "seed-224", "grid", "seed-224"),
        (
            "--grid",
            "{rows: 24, cols: 24, patch_px: 14, fit: pad}",
            "grid",
            {"rows": 24, "cols": 24, "patch_px": 14, "fit": "pad"},
        ),
        ("--models", "official", "models", "official"),
        ("--runner.num-cpus", "null", "runner.num_cpus", None),
        ("--output.samples-per-shard", "10", "output.samples_per_shard", 10),
        ("--source.uri", "0123", "source.uri", "0123"),
        ("--source.uri", "{00..12}.tar", "source.uri", "{00..12}.tar"),
        ("--source.uri", "null", "source.uri", "null"),
        ("--models.segmenter", "null", "models.segmenter", None),
        ("--source.images", "", "source.images", ""),
        ("--source.images", "2017", "source.images", "2017"),
        ("--source.images", '["", b]', "source.images", ["", "b"]),
        ("--source.text-columns", "[a, b]", "source.text_columns", ["a", "b"]),
        ("--source.kind", "visual-genome", "source.kind", "visual-genome"),
    ],
)
def test_values_are_read_as_the_setting_wants(option, typed, key, value):
    found = run(option, typed)
    assert found == {key: value}
    assert type(found[key]) is type(value)


def test_a_value_that_cannot_be_read_is_named():
    with pytest.raises(ConfigError, match=r"--grid '\{rows: ': this isn't a YAML value"):
        run("--grid", "{rows: ")


def test_options_make_a_whole_config():
    settings = run(
        *("--source.kind", "coco", "--source.uri", "data", "--output.uri", "out", "--models", UNTRAINED),
        *("--runner.kind", "ray", "--runner.max-actors", "3", "--labels.box-threshold", "0.3", "--tokens", "null"),
    )
    config = BuildConfig.load(None, settings)
    assert config.labels is not None
    assert (config.labels.box_threshold, config.tokens) == (0.3, None)
    assert config.runner.model_dump()["max_actors"] == 3


def test_every_setting_is_an_option_with_help():
    text = help_text()
    options = {line.split()[1]: line for line in text.splitlines() if " --" in line}
    expected = {f"--{section}" for section in BuildConfig.model_fields}
    for section, field in BuildConfig.model_fields.items():
        for model in sections(field).values():
            expected |= {f"--{section}.{name}" for name in model.model_fields}
    expected = {option.replace("_", "-") for option in expected}
    assert len(expected) > 40
    assert expected <= options.keys()
    for option in expected:
        assert re.search(r"(TEXT|NUMBER|YAML) +\S+", options[option]), option


def test_help_tells_kinds_choices_and_defaults():
    text = " ".join(re.sub("[│\n]", " ", help_text()).split())
    assert "One of folder, webdataset, coco, karpathy, grounding, flickr30k-entities, visual-genome, " in text
    assert "One of caption, phrases. Default: caption." in text
    assert "Minimum score of a box's best word. Default: 0.35." in text
    assert "ray: GPUs per actor. 0.5: two share one; 0: on the CPU. Default: 1." in text
    assert "Default: [null]" not in text
    for panel in BuildConfig.model_fields:
        assert f"─ {panel} ─" in text


def test_brackets_in_descriptions_are_no_markup():
    class Inner(Settings):
        items: list[str] = Field(default=[], description="Words, such as [a, b].")

    class Outer(Settings):
        inner: Inner = Inner()

    toy = typer.Typer()

    @toy.command()
    @with_settings(Outer)
    def command(*, settings: dict[str, Any]) -> None:
        given.update(settings)

    assert "such as [a, b]." in CliRunner().invoke(toy, ["--help"], env={"COLUMNS": "200"}).output


def test_an_unknown_option_is_refused():
    result = CliRunner().invoke(app, ["--labels.box-treshold", "0.3"])
    assert result.exit_code == 2
    assert "--labels.box-threshold" in result.output
