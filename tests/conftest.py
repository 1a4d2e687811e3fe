"""Every check between passes is on, and transformers' advice off, before anything is imported."""

import functools
import gc
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ["ESTFX_VERIFY"] = "2"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["OMP_NUM_THREADS"] = "1"  # of what the tests start: threads of several processes would wait for each other

logging.getLogger("torch.__trace").disabled = True  # else pytest formats every line of it: four times slower

import pytest  # noqa: E402
import torch  # noqa: E402
from changed_files import changed_files, touched_tests  # noqa: E402
from hypothesis import given, settings, strategies  # noqa: E402
from long_tests import days_of, stored_seconds, write_seconds  # noqa: E402
from shared_traces import shared_traces  # noqa: E402

torch.set_num_threads(1)  # the models are tiny, and several test processes share the cores

TESTS = Path(__file__).parent
BEGUN = time.monotonic()
SECONDS = 80  # after which `--changed` begins no more tests that a change may not concern
DAYS = 14  # in which a sweep takes all of its cases, if it says nothing else
os.environ.setdefault("ESTFX_TESTS_DAY", str(int(time.time()) // 86400))  # the same in all processes of a run


# folders and files whose tests are about what comes after a trace, or compare with the original all that a trace gives
SHARING = {
    *("bench", "cli", "costs", "dumping", "integrations", "run_report", "runtime", "schedules", "training"),
    *("test_docs.py", "test_equivalence.py", "test_foreign_models.py", "test_transformation.py"),
}
SHARED_BY_FOLDER = ("run_report",)  # its files have runs in common, which take seconds to make


@pytest.fixture(autouse=True)
def _traces_are_shared(request: pytest.FixtureRequest) -> Iterator[None]:
    """Layers that are alike are traced once in a process, where tracing is not the subject."""
    counts = "traces" in request.fixturenames  # it counts them
    if request.path.relative_to(TESTS).parts[0] not in SHARING or counts:
        yield
        return
    with shared_traces():
        yield


@pytest.fixture(autouse=True, scope="session")
def _the_standard_library_is_read_once() -> None:
    """Most runs of `estfx train` in the tests are on its sources: a second each."""
    from estfx.training import document_sources

    read = functools.cache(lambda folder, read=document_sources._standard_library: tuple(read(folder)))
    document_sources._standard_library = lambda folder: iter(read(folder))


@pytest.fixture(autouse=True, scope="module")
def _what_stays_is_not_looked_through_again() -> Iterator[None]:
    """Graphs and imported modules are millions of objects, and each collection of garbage would look at all of them."""
    _hypothesis_knows_its_random_numbers()
    yield
    gc.collect()
    gc.freeze()


@functools.cache
@settings(max_examples=1, database=None)
@given(strategies.none())
def _hypothesis_knows_its_random_numbers(_: None) -> None:
    """The first example that it runs asks the collector who holds them, which nothing frozen answers."""


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _what_is_registered_is_put_back() -> Iterator[None]:
    """What a test, or a block of the documentation, registers is no other test's to know."""
    from estfx.axes import RESIZERS, RULES
    from estfx.schedules.draws import POLICIES

    tables: tuple[dict[Any, Any], ...] = (POLICIES, RULES, RESIZERS)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.fixture(autouse=True)
def _logging_is_enabled_again() -> Iterator[None]:
    """A page of the documentation may silence all logs of the process; the next test may read them."""
    before = logging.root.manager.disable
    yield
    logging.disable(before)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, as selenium drives it; a test that needs it is skipped where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1500,1100"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write tests/golden anew instead of comparing with it"
    )
    parser.addoption(
        "--changed",
        nargs="?",
        const="HEAD",
        metavar="REVISION",
        help="run what the change since a revision (by default the last commit) touches, in at most two minutes",
    )
    parser.addoption("--every-case", action="store_true", help="run all tests, not only those whose day it is")
    parser.addoption("--write-long-tests", action="store_true", help="store the seconds of tests that take long")


def pytest_configure(config: pytest.Config) -> None:
    """Whether the run is of some tests, which were named or are touched by a change: these all run."""
    if not hasattr(config, "workerinput"):  # else the process that started this one has said it
        chosen = config.args_source is pytest.Config.ArgsSource.ARGS or config.getoption("--changed") is not None
        os.environ["ESTFX_TESTS_ARE_CHOSEN"] = str(int(chosen))


@pytest.hookimpl(optionalhook=True)  # without xdist there is no such hook
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file in one process: what they share is made once, and ranks are started once."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            folder = next((each for each in SHARED_BY_FOLDER if nodeid.startswith(f"tests/{each}/")), None)
            return folder or str(super()._split_scope(nodeid))

    config.option.loadscopereorder = False  # what takes long comes first, see below
    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: str(item.path), reverse=True)  # the rules of operators, which are quick, come last
    long = {} if os.environ["ESTFX_TESTS_ARE_CHOSEN"] == "1" else _days_of_long_ones(items)
    left_out = [item for item in items if not (config.getoption("--every-case") or _is_due(item, long))]
    if config.getoption("--changed") is not None:
        root, near = TESTS.parent, _touched(config)
        items.sort(key=lambda item: near.get(item.path.relative_to(root), 3))  # what is nearest first
        for item in items:
            if near.get(item.path.relative_to(root)):
                item.add_marker(pytest.mark.usefixtures("_in_time"))
    if left_out:
        out = set(left_out)
        items[:] = [item for item in items if item not in out]
        config.hook.pytest_deselected(items=left_out)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `--changed`, files of tests that the change does not touch are not even imported."""
    if config.getoption("--changed") is None or not collection_path.match("test_*.py"):
        return None
    return True if collection_path.relative_to(TESTS.parent) not in _touched(config) else None


def pytest_report_header(config: pytest.Config) -> str | None:
    if (revision := config.getoption("--changed")) is None:
        return None
    return f"changed since {revision}, as far as tests are about it: {len(_touched(config))} files of tests"


@functools.cache
def _touched(config: pytest.Config) -> dict[Path, int]:
    try:
        return touched_tests(TESTS.parent, changed_files(TESTS.parent, config.getoption("--changed")))
    except ValueError as error:
        raise pytest.UsageError(f"--changed: {error}") from None


def _days_of_long_ones(items: list[pytest.Item]) -> dict[str, tuple[int, int]]:
    """Of a sweep's cases none runs more often than the sweep says."""
    marks = {item.nodeid: item.get_closest_marker("sweep") for item in items}
    cases = {name: mark.kwargs.get("days", DAYS) for name, mark in marks.items() if mark is not None and mark.args}
    return days_of({name: seconds for name, seconds in stored_seconds().items() if name in marks}, cases)


def _is_due(item: pytest.Item, long: Mapping[str, tuple[int, int]]) -> bool:
    """Whether today is the day of a case of a sweep or of a long test; of any other test, always."""
    today = int(os.environ["ESTFX_TESTS_DAY"])
    mark = item.get_closest_marker("sweep")
    if mark is None or item.nodeid in long:
        days, first = long.get(item.nodeid, (1, 0))
        return today % days == first
    numbers = [item.callspec.indices[name] for name in mark.args]
    (number,) = numbers or [mark.kwargs["day"]]
    days = mark.kwargs.get("days", DAYS)
    return bool(number % days == today % days)


_seconds: dict[str, float] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Where several processes run the tests, the first one is told of all of them."""
    if report.when == "call" and report.passed:
        _seconds[report.nodeid] = report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--write-long-tests") and not hasattr(session.config, "workerinput"):
        write_seconds(_seconds)


@pytest.fixture
def _in_time() -> None:
    if time.monotonic() - BEGUN > SECONDS:
        pytest.skip("left out by --changed, since the two minutes are over; all tests: pytest -n auto")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a graph's text with the file of that name in tests/golden, source lines left out."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / f"{name}.txt"
        text = re.sub(r"# \S+:\d+(; )?", "# ", text)
        text = re.sub(r" +# ?$", "", text, flags=re.MULTILINE)
        if request.config.getoption("--update-golden"):
            path.write_text(text)
        assert text == path.read_text()

    return check
