"""Tests run longest first, a file at a time; `make quick` leaves out those that are slow.

`make durations` measures how long each takes: durations.json. A name in its `groups` is that of a file, or the start of
some of its tests' ids, which then run apart from the file's others. `slow` has the ids of tests that take more than
`SLOW` seconds beside three others on two cores.
"""

import json
from collections import Counter
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

TABLE = Path(__file__).with_name("durations.json")
MEASURED = json.loads(TABLE.read_text())
SECONDS: dict[str, float] = MEASURED["groups"]
SLOW = 0.5
_APART = sorted((name for name in SECONDS if "::" in name), key=len, reverse=True)


def group_of(nodeid: str) -> str:
    """The tests that run in one go, in one process."""
    test = nodeid.removeprefix("tests/")
    return next((name for name in _APART if test.startswith(name)), test.partition("::")[0])


class LongestFirst(LoadScopeScheduling):
    """Gives each worker the longest group that is left; items come in this order (`pytest_collection_modifyitems`)."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


class Stopwatch:
    """Adds up how long groups take, and writes it to the table at the end. Short ones are left out: they come last."""

    def __init__(self) -> None:
        self._seconds = Counter(dict.fromkeys(_APART, 0.0))
        self._slow: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[group_of(report.nodeid)] += report.duration
        if report.when == "call" and report.duration > SLOW:  # without fixtures: the next test would need these
            self._slow.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        kept = {name: round(took) for name, took in sorted(self._seconds.items()) if took >= 3 or "::" in name}
        TABLE.write_text(json.dumps({"groups": kept, "slow": sorted(self._slow)}, indent=1) + "\n")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--measure", action="store_true", help="write durations.json anew")
    parser.addoption("--quick", action="store_true", help="leave out tests that durations.json calls slow")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--measure") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Stopwatch())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        slow = {item.nodeid for item in items} & set(MEASURED["slow"])
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in slow])
        items[:] = [item for item in items if item.nodeid not in slow]
    items.sort(key=lambda item: -SECONDS.get(group_of(item.nodeid), 0))


@pytest.hookimpl(optionalhook=True)  # there are runs without xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LongestFirst:
    config.option.loadscopereorder = False  # xdist would put those with most tests first
    return LongestFirst(config, log)
