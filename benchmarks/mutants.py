"""Plants known bugs, one at a time, and runs the tests: which of them does the default suite catch?

    python benchmarks/mutants.py [ROOM or NAME ...] [--jobs 1] [--named | --whole] [--resume FILE]

The bugs are in `tests/mutants/`, a file for each room of the code. Each is planted in a copy of the working tree, in
which the tests that its entry names run first, then those that `tests/changed_files.py` holds nearest to the file, and
with `--whole` all others of the default suite. The first failure ends it; so does a time limit, since a test that hangs
is noticed too. In the end the tests that caught something run once without any bug: they must pass.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "mutants"
sys.path.append(str(ROOT / "tests"))

from changed_files import touched_tests  # noqa: E402

OPTIONS = ("-x", "-q", "-n", "0", "-p", "no:cacheprovider")
LIMIT = 600  # seconds, after which tests are said to hang
SURVIVED = "survived"
HUNG = -1000  # a status of `warm_pytest.py`


@dataclass(frozen=True)
class Mutant:
    """A bug that can be planted: in `file`, which holds `before` exactly once, `after` takes its place."""

    room: str
    name: str
    file: str
    before: str
    after: str
    wrong: str  # what a user would get
    tests: tuple[str, ...] = ()  # files or names of tests that run first
    unseen: str = ""  # why no test of the default suite catches it

    def planted(self, text: str) -> str:
        """The file with the bug. Raises ValueError unless its place is there exactly once."""
        if (count := text.count(self.before)) != 1:
            raise ValueError(f"{self.name}: {self.file} holds `before` {count} times, not once")
        return text.replace(self.before, self.after)

    @property
    def digest(self) -> str:
        """Of what is planted, so that a result is not taken for that of another bug of the name."""
        return hashlib.blake2b("\0".join((self.file, self.before, self.after)).encode(), digest_size=8).hexdigest()


@functools.cache
def mutants() -> tuple[Mutant, ...]:
    """All of them, in the order of the files."""
    found = []
    for path in sorted(FOLDER.glob("*.yaml")):
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        for entry in yaml.load(path.read_text(encoding="utf-8"), loader):
            tests = tuple(entry.pop("tests", ()))
            found.append(Mutant(room=path.stem, tests=tests, **entry))
    return tuple(found)


def nearest(mutant: Mutant) -> list[str]:
    """The files of tests to run after those that the entry names, nearest first."""
    touched = touched_tests(ROOT, [Path(mutant.file)])
    return [str(path) for path in sorted(touched, key=lambda path: (touched[path], path))]


def copied(to: Path) -> None:
    """Copies the working tree, as git sees it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        source, target = ROOT / name, to / name
        if source.is_symlink() or source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


@dataclass(frozen=True)
class Outcome:
    """How a run of tests ended: what caught the bug, or nothing."""

    caught_by: str | None
    seconds: float


class Place:
    """A copy of the working tree, and a process that runs pytest in it."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        copied(tree)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        environment.pop("PYTHONPATH", None)  # the tree's own takes its place
        self._pytest = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm_pytest.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=tree,
            env=environment,
            text=True,
        )

    def run(self, tests: Sequence[str], limit: float, options: Sequence[str] = OPTIONS) -> tuple[int, str]:
        """The status of pytest, negative for a crash, and what it printed."""
        assert self._pytest.stdin is not None
        assert self._pytest.stdout is not None
        with tempfile.NamedTemporaryFile("r", suffix=".txt") as out:
            order = {"tree": str(self.tree), "arguments": [*options, *tests], "out": out.name, "limit": limit}
            self._pytest.stdin.write(json.dumps(order) + "\n")
            self._pytest.stdin.flush()
            return int(self._pytest.stdout.readline()), out.read()

    def close(self) -> None:
        assert self._pytest.stdin is not None
        self._pytest.stdin.close()
        self._pytest.wait()


def failures(printed: str) -> list[str]:
    """The tests that failed, or the files that could not be read, by pytest's summary."""
    return re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", printed, re.MULTILINE)


def judged(mutant: Mutant, place: Place, number: int, reach: str, limit: float) -> Outcome:
    """Plants the bug in a tree, runs the tests, and takes it out again."""
    path = place.tree / mutant.file
    text, begun = path.read_text(encoding="utf-8"), time.monotonic()
    path.write_text(mutant.planted(text), encoding="utf-8")
    os.utime(path, (10**9 + number,) * 2)  # Python knows compiled files by time and size, which may be the same
    try:
        for tests in rounds(mutant, reach):
            status, printed = place.run(tests, limit)
            if status == HUNG:
                return Outcome(f"a hang in {', '.join(tests[:3])}", time.monotonic() - begun)
            if status < 0:
                return Outcome(f"a crash in {', '.join(tests[:3])}", time.monotonic() - begun)
            if status not in (0, 5):  # 5: there was none to run
                if not (caught := failures(printed)):
                    raise RuntimeError(f"{mutant.name}: pytest does not run:\n{printed[-2000:]}")
                return Outcome(caught[0], time.monotonic() - begun)
    finally:
        path.write_text(text, encoding="utf-8")
        os.utime(path, (10**9 - 1 - number,) * 2)
        shutil.rmtree(
            place.tree / ".hypothesis", ignore_errors=True
        )  # or one bug's examples would be tried on the next
    return Outcome(None, time.monotonic() - begun)


def rounds(mutant: Mutant, reach: str) -> Iterator[list[str]]:
    """Tests in the order in which they are tried."""
    done = list(mutant.tests)
    if done:
        yield done
        if reach == "named":
            return
    near = [path for path in nearest(mutant) if path not in done]
    if near:
        yield near
    if reach == "whole":
        yield [f"--ignore={path}" for path in (*done, *near) if path.endswith(".py")]


def selected(names: Sequence[str]) -> list[Mutant]:
    """Those of the rooms or of the names. Exits for a name that is neither."""
    found = mutants()
    known = {mutant.name for mutant in found} | {mutant.room for mutant in found}
    if unknown := sorted(set(names) - known):
        raise SystemExit(f"there is neither a room nor a bug {', '.join(unknown)}")
    return [mutant for mutant in found if not names or {mutant.name, mutant.room} & set(names)]


def known_results(path: Path, chosen: Sequence[Mutant]) -> dict[str, dict[str, Any]]:
    """What a result file says of bugs that were caught; survivors are tried again."""
    before = json.loads(path.read_text(encoding="utf-8"))["mutants"]
    known = {mutant.name: mutant.digest for mutant in mutants()}
    return {
        name: result
        for name, result in before.items()
        if result["digest"] == known.get(name)
        and (result["caught_by"] is not None or name not in {mutant.name for mutant in chosen})
    }


def unsound(results: Mapping[str, Mapping[str, Any]], limit: float) -> set[str]:
    """Of the tests that caught something, those that fail without any bug."""
    tests = {r["caught_by"] for r in results.values() if r["caught_by"] is not None and "::" in r["caught_by"]}
    if not tests:
        return set()
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        _, printed = place.run(sorted(tests), limit, OPTIONS[1:])
        place.close()
    return tests & set(failures(printed))


@functools.cache
def environment() -> Any:
    """Asked of a process of its own: this one imports nothing of what bugs are planted in."""
    code = "import json; from estfx.training import environment; print(json.dumps(environment()))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    return json.loads(told.stdout)


def score(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    caught = sum(result["caught_by"] is not None for result in results.values())
    return {"planted": len(results), "caught": caught, "share": round(caught / max(1, len(results)), 4)}


def write(path: Path, results: Mapping[str, Mapping[str, Any]], options: argparse.Namespace, begun: float) -> None:
    """Writes what is known so far, in the order of the list."""
    order = [mutant.name for mutant in mutants()]
    ordered = {name: results[name] for name in order if name in results}
    record = {
        "command": " ".join(["python", "benchmarks/mutants.py", *sys.argv[1:]]),
        "options": {
            "tests": options.reach,
            "unchecked": options.unchecked,
            "limit": options.limit,
            "day": os.environ["ESTFX_TESTS_DAY"],
        },
        "environment": environment(),
        "took_seconds": round(time.monotonic() - begun),
        "figures": {
            "all": score(ordered),
            **{
                room: score({name: result for name, result in ordered.items() if result["room"] == room})
                for room in dict.fromkeys(result["room"] for result in ordered.values())
            },
        },
        "mutants": ordered,
    }
    aside = path.with_name(f"{path.name}.unfinished")
    aside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    aside.replace(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="rooms or names of bugs; by default all")
    parser.add_argument("--jobs", type=int, default=1, help="bugs at once, each in a copy of its own")
    reach = parser.add_mutually_exclusive_group()
    one: dict[str, Any] = {"dest": "reach", "action": "store_const", "default": "nearest"}
    reach.add_argument("--named", const="named", help="run no other tests than those that entries name", **one)
    reach.add_argument("--whole", const="whole", help="run the whole default suite on what survives", **one)
    parser.add_argument("--unchecked", action="store_true", help="leave out the run without any bug at the end")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for a run of tests")
    parser.add_argument("--resume", type=Path, help="a result file: what it says of bugs that were caught is kept")
    parser.add_argument("--out", type=Path, help="where the result is written; by default benchmarks/results/")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    os.environ.setdefault("ESTFX_TESTS_DAY", str(int(time.time()) // 86400))  # of sweeps, the same for all bugs
    chosen, begun = selected(options.names), time.monotonic()
    out = options.out or ROOT / "benchmarks" / "results" / f"mutants-cpu-{time.strftime('%Y-%m-%d')}.json"
    results = known_results(options.resume, chosen) if options.resume else {}
    todo = [mutant for mutant in chosen if mutant.name not in results]
    lock = threading.Lock()
    with tempfile.TemporaryDirectory() as folder:
        places: queue.Queue[Place] = queue.Queue()
        for number in range(options.jobs):
            places.put(Place(Path(folder) / str(number)))

        def work(number: int, mutant: Mutant) -> None:
            place = places.get()
            try:
                found = judged(mutant, place, number, options.reach, options.limit)
            finally:
                places.put(place)
            with lock:
                results[mutant.name] = {
                    "room": mutant.room,
                    "digest": mutant.digest,
                    "caught_by": found.caught_by,
                    "seconds": round(found.seconds, 1),
                }
                write(out, results, options, begun)
                print(
                    f"{mutant.room}: {mutant.name}: {found.caught_by or SURVIVED} ({found.seconds:.0f} s)", flush=True
                )

        with ThreadPoolExecutor(options.jobs) as executor:
            for each in [executor.submit(work, number, mutant) for number, mutant in enumerate(todo)]:
                each.result()
        while not places.empty():
            places.get().close()
    wrong = set() if options.unchecked else unsound(results, 10 * options.limit)
    for result in results.values():
        if result["caught_by"] in wrong:
            result["caught_by"] = None
    write(out, results, options, begun)
    report(results, wrong, out)


def report(results: Mapping[str, Mapping[str, Any]], wrong: set[str], out: Path) -> None:
    """Prints the score and the survivors, with the reason where one is known."""
    by_name = {mutant.name: mutant for mutant in mutants()}
    survivors = [by_name[name] for name, result in results.items() if result["caught_by"] is None]
    for test in sorted(wrong):
        print(f"fails without any bug, so that it caught nothing: {test}")
    for mutant in survivors:
        print(f"{SURVIVED}: {mutant.room}: {mutant.name}: {mutant.wrong}")
        if mutant.unseen:
            print(f"    {mutant.unseen}")
    total = score(results)
    print(f"{total['caught']} of {total['planted']} caught ({total['share']:.1%}); written to {out}")


if __name__ == "__main__":
    main()
