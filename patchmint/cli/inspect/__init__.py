"""`patchmint inspect`: look into data sets."""

from __future__ import annotations

import typer

from patchmint.cli.inspect.codes import codes_command
from patchmint.cli.inspect.diff import diff_command
from patchmint.cli.inspect.find import find_command
from patchmint.cli.inspect.gallery import gallery_command
from patchmint.cli.inspect.info import info_command
from patchmint.cli.inspect.ls import ls_command
from patchmint.cli.inspect.show import show_command
from patchmint.cli.inspect.stats import stats_command
from patchmint.cli.inspect.verify import verify_command
from patchmint.cli.terminal import examples

inspect_app = typer.Typer(
    name="inspect",
    help="Look into data sets.",
    epilog=examples("patchmint inspect ls out/stage1", "patchmint inspect show out/stage1 KEY"),
    no_args_is_help=True,
)

inspect_app.command("ls", epilog=examples("patchmint inspect ls out/stage1"))(ls_command)
inspect_app.command("info", epilog=examples("patchmint inspect info out/stage1"))(info_command)
inspect_app.command("show", epilog=examples("patchmint inspect show out/stage1 KEY"))(show_command)
inspect_app.command("stats", epilog=examples("patchmint inspect stats out/stage1"))(stats_command)
inspect_app.command("codes", epilog=examples("patchmint inspect codes out/stage1 4568"))(codes_command)
inspect_app.command("find", epilog=examples("patchmint inspect find out/stage1 --text dog"))(find_command)
inspect_app.command(
    "verify",
    epilog=examples(
        "patchmint inspect verify out/stage1",
        "patchmint inspect verify s3://bucket/stage1 --deep",
        "patchmint inspect verify 000000.tar --json",
    ),
)(verify_command)
inspect_app.command("diff", epilog=examples("patchmint inspect diff out/old out/new"))(diff_command)
inspect_app.command("gallery", epilog=examples("patchmint inspect gallery out/stage1 gallery"))(gallery_command)
