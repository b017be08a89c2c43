"""`patchmint inspect`: look into data sets."""

from __future__ import annotations

import typer

from patchmint.cli.lazy import LazyCommand, examples, lazy_group

COMMANDS = {
    "ls": LazyCommand(
        "patchmint.cli.inspect.ls:ls_command",
        "List the shards of a data set, or the samples of one tar.",
        ("patchmint inspect ls out/stage1", "patchmint inspect ls s3://bucket/stage1/shards/000000.tar"),
    ),
    "info": LazyCommand(
        "patchmint.cli.inspect.info:info_command",
        "Say what a data set is: versions, models, config, layout, totals.",
        ("patchmint inspect info out/stage1",),
    ),
    "show": LazyCommand(
        "patchmint.cli.inspect.show:show_command",
        "Show one sample: texts with their phrases, patch labels, codes; a document image by image.",
        (
            "patchmint inspect show out/stage1 000000123456",
            "patchmint inspect show out/stage1 '#17' --text 0",
            "patchmint inspect show out/documents '#17' --image 2 --png o.png",
            "patchmint inspect show s3://bucket/stage1 000000123456 --png o.png",
        ),
    ),
    "stats": LazyCommand(
        "patchmint.cli.inspect.stats:stats_command",
        "Samples, texts, sizes, labels, scores, rejects and codes in numbers; and where in the grid labels lie.",
        (
            "patchmint inspect stats out/stage1",
            "patchmint inspect stats out/stage1 --png stats.png --html stats.html",
            "patchmint inspect stats s3://bucket/stage1 --samples 500 --json",
        ),
    ),
    "codes": LazyCommand(
        "patchmint.cli.inspect.codes:codes_command",
        "Which images contain a code, where and how often; and which codes are common, or concentrated.",
        (
            "patchmint inspect codes out/stage1 4568",
            "patchmint inspect codes out/stage1 4568 --limit 60 --sheet 4568.png",
            "patchmint inspect codes out/stage1 --top --sheet top.png",
            "patchmint inspect codes out/stage1 1:17 --json",
        ),
    ),
    "find": LazyCommand(
        "patchmint.cli.inspect.find:find_command",
        "Find samples, or rejects, that are like this; all conditions must hold.",
        (
            "patchmint inspect find out/stage1 --text dog --min-score 0.5",
            "patchmint inspect find out/stage1 --where 'len(phrases) = 0' --keys",
            "patchmint inspect find out/stage1 --where 'list_contains(codes, 17) and width > 2 * height'",
            "patchmint inspect find out/stage1 --where 'list_max(scores) < 0.4' --sort 'list_max(scores)'",
            "patchmint inspect find out/stage1 --where 'list_max(label_shares) > 0.9' --json",
            "patchmint inspect find out/documents --where 'images > 4'",
            "patchmint inspect find out/stage1 --rejects --reason image-missing",
        ),
    ),
    "verify": LazyCommand(
        "patchmint.cli.inspect.verify:verify_command",
        "Check checksums, members, arrays, labels, keys and counts; tars that others wrote as far as that goes.",
        (
            "patchmint inspect verify out/stage1",
            "patchmint inspect verify s3://bucket/stage1 --deep",
            "patchmint inspect verify 000000.tar --json",
        ),
    ),
    "diff": LazyCommand(
        "patchmint.cli.inspect.diff:diff_command",
        "Show what changed from build A to build B: settings, keys, texts, phrases, labels, codes, features.",
        (
            "patchmint inspect diff out/old out/new",
            "patchmint inspect diff out/old s3://bucket/new --samples 1000 --json",
            "patchmint inspect diff out/data out/data --columns-a labels --columns-b labels-2",
        ),
    ),
    "gallery": LazyCommand(
        "patchmint.cli.inspect.gallery:gallery_command",
        "Make a gallery: photos with boxes, patches, coverage, masks and decoded codes, to look through in a browser.",
        (
            "patchmint inspect gallery out/stage1 gallery",
            "patchmint inspect gallery out/stage1 --serve",
            "patchmint inspect gallery out/stage1 --serve --edit",
        ),
    ),
}
"""The commands, in the order of the help; a summary is the first line of the command's docstring."""

inspect_app = typer.Typer(
    name="inspect",
    cls=lazy_group(COMMANDS),
    help="Inspect data sets.",
    epilog=examples("patchmint inspect ls out/stage1", "patchmint inspect show out/stage1 KEY"),
    no_args_is_help=True,
)


@inspect_app.callback()
def _inspect() -> None:
    pass
