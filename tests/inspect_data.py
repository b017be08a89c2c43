"""Commands of `patchmint inspect` in this process, and changes to the data sets of `shard_data`."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
from shard_data import LAYOUT, make_sample
from typer.testing import CliRunner

from patchmint.cli.inspect import inspect_app
from patchmint.config import BuildConfig
from patchmint.errors import InputError
from patchmint.pipeline.plan import make_plan, to_batches
from patchmint.samples import SourceText
from patchmint.shards.layout import TokensLayout
from patchmint.storage import open_storage


def inspect(*arguments, rc=None):
    """Run a command; it must end with `rc`, if that is given."""
    done = CliRunner().invoke(inspect_app, [*map(str, arguments)])
    assert rc in (None, done.exit_code), (done, done.stdout, done.stderr, done.exception)
    return done


def answer(*arguments, rc=0):
    """What a command says with --json."""
    return json.loads(inspect(*arguments, "--json", rc=rc).stdout)


def refusal(*arguments, kind=InputError):
    """The message of the error with which a command ends."""
    failed = inspect(*arguments).exception
    assert isinstance(failed, kind), (arguments, failed)
    return str(failed)


def with_tokens(*sizes, grid=(4, 4), preprocessing="pad-64-bicubic"):
    """`LAYOUT` with codes of codebooks of these sizes."""
    tokens = TokensLayout(member="vqgan", grid=grid, codebook_sizes=sizes, preprocessing=preprocessing)
    return LAYOUT.model_copy(update={"tokens": tokens})


def texted(sample, *texts, **changes):
    """A sample with other texts, with other fields of its source, without phrases; its first texts' labels stay."""
    source = replace(sample.planned.sample, texts=tuple(map(SourceText, texts)), **changes)
    labels = {name: getattr(sample, name) for name in ("selector", "coverage")}
    labels = {name: array if array is None else array[: len(texts)] for name, array in labels.items()}
    return replace(sample, planned=replace(sample.planned, sample=source), phrases=(), **labels)


def edit_json(path, change):
    """Change a file's document in place."""
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


def edit_column(path, name, change):
    """Replace the list of values of a sidecar's column."""
    table = pq.read_table(path)
    at = table.schema.get_field_index(name)
    field = table.schema.field(at)
    pq.write_table(table.set_column(at, field, pa.array(change(table[name].to_pylist()), field.type)), path)


def unfinish(folder, unit=1):
    """Take away what a build writes when it comes to this unit, and after it."""
    for path in ("dataset.json", f"commits/{unit:06}.json", f"shards/{unit:06}.tar", f"sidecars/{unit:06}.parquet"):
        (folder / path).unlink()


def plan_six(folder):
    """The plan of six samples in units of three."""
    source = {"kind": "folder", "uri": "in"}
    config = BuildConfig(source=source, output={"uri": str(folder), "samples_per_shard": 3})
    return make_plan(to_batches(make_sample(n).planned.sample for n in range(6)), config, {}, open_storage(folder))
