"""Makes every table and figure of the quality experiments from the stored results: docs/quality.md, its record
`docs/quality-record.md`, the pictures, the README's table, and the measured map that is a part of the package.

    python benchmarks/quality/tables.py [--out docs/quality.md]

Losses are in nats a byte of held-out text, of the whole model, at the same positions for all arms. What may be claimed
of them was decided before: claims.py. A page's source names a figure as `{{ above EXPERIMENT ARM }}` (dense) or
`{{ minus EXPERIMENT ARM OTHER }}`, both over the seeds that both have, or with `1,2` at the end over those. By how
much two differences differ is `{{ change EXPERIMENT ARM OTHER ARM OTHER }}`. A claim is `{{ claim EXPERIMENT ARM }}`,
or against dense for as many FLOPs `{{ better EXPERIMENT ARM }}`.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from at_a_glance import above, better, brief, change, claim, in_readme, minus
from behind import Results, lag_table
from claims import FEWEST_SEEDS, Difference, in_seeds
from compared import (
    at_equal_seconds,
    blocks_known,
    check_runs,
    claims_of,
    difference,
    saved,
    saved_at_equal_loss,
    seconds,
    stored,
)
from core_hours import cost_table
from curves import plot
from experiment import ORDER, ROOT, Experiment, found
from factors import CELLS, factor_table
from laws import picture as law_picture
from laws import refit_table
from measured_map import main_experiments, map_table, measured, write
from predictions import prediction_table
from rates import rates_table

from estfx.schedules import MeasuredLosses

README = ("<!-- made by benchmarks/quality/tables.py -->", "<!-- until here -->")  # what it writes there lies between
# arms of the table of all sizes: those that train less than the whole for a while
SMALLER = ("est", "constant", "grown", "stacked", "compound-at-once", "compound")


def table(experiment: Experiment, results: Results, against: Sequence[str]) -> Iterator[str]:
    """One line an arm."""
    heads = [f"loss minus {other}'s" for other in against]
    if len(against) == 2:
        heads.append("minus dense's in equal seconds")
    heads += ["FLOPs saved, model", "layers", "seconds saved"]
    if len(against) == 2:
        heads.append("FLOPs saved at equal loss")
    yield f"| arm | seeds | loss | {' | '.join(heads)} | next line | identifier | copy |"
    yield f"|---|---|---|{'---|' * len(heads)}---|---|---|"
    for name, arm in experiment.arms.items():
        seeds = results.get(name)
        if not seeds:
            yield f"| {name}: {arm.what} | none yet |{' |' * (len(heads) + 4)}"
            continue
        losses = [np.mean(result["block_losses"]) for result in seeds.values()]
        cells = [f"{name}: {arm.what}", str(len(seeds)), f"{np.mean(losses):.4f}"]
        for other in against:
            cells.append(_interval(None if other == name else difference(seeds, results.get(other, {}))))
        if len(against) == 2:
            equal = None if name in against else at_equal_seconds(seeds, results)
            cells.append(_interval(difference(seeds, equal or {})))
        first = next(iter(seeds))
        dense = results.get("dense", {}).get(first)
        for part in ("model", "layers"):
            cells.append("" if dense is None else f"{saved(seeds[first], dense, part):.1%}")
        cells.append(_seconds_saved(seeds))
        if len(against) == 2:
            cells.append("" if name in against else _saving(saved_at_equal_loss(seeds, results)))
        for task in ("next line", "identifier", "copy"):
            right = [answer for result in seeds.values() for answer in result["tasks"].get(task, "")]
            cells.append(f"{right.count('1') / len(right):.1%}" if right else "")
        yield f"| {' | '.join(cells)} |"


def _interval(found: Difference | None) -> str:
    if found is None:
        return ""
    low, high = found.interval()
    known = math.isfinite(low)
    return f"{found.mean:+.4f}" + (f" [{low:+.4f}, {high:+.4f}]" if known else f" ({in_seeds(found.seeds)})")


def _seconds_saved(seeds: dict[int, Any]) -> str:
    """The median of an arm's runs, against as many steps of the whole; nothing where none of its steps is smaller."""
    ratios = [ratio for ratio in map(seconds, seeds.values()) if ratio is not None and ratio != 1.0]
    return f"{1 - np.median(ratios):.1%}" if ratios else ""


def _saving(found: tuple[float, float, float] | None) -> str:
    if found is None:
        return ""
    mean, low, high = found
    if mean < 0:
        return "none"
    return f"{mean:.1%}" + (f" [{low:.1%}, {high:.1%}]" if math.isfinite(low) else "")


def default(known: MeasuredLosses) -> Iterator[str]:
    """Which schedule is the default, and why."""
    yield f"A run that names no schedule has `{known.default}`: {known.why}."


def works() -> Iterator[str]:
    """How many works the held-out blocks are of."""
    of_bytes = blocks_known()["runs/quality/text"]["tokens"]["bytes"]
    pairs = set(zip(of_bytes["kinds"], of_bytes["works"], strict=True))
    names = {"code": "files of code", "manuals": "manuals of services", "speeches": "speeches"}
    yield ", ".join(f"{sum(kind == each for kind, _ in pairs)} {name}" for each, name in names.items())


def tested(experiments: Sequence[tuple[Experiment, Results]]) -> Iterator[str]:
    """How many claims were tested."""
    asked = [claims_of(results.get(arm, {}), results) for _, results in experiments for arm in SMALLER]
    every = [each for both in asked if both is not None for each in both]
    ready = [each for each in every if each.difference.seeds >= FEWEST_SEEDS]
    yield f"{len(ready)} claims have five seeds so far, of {len(every)} in the record's first table."


def summary(experiments: Sequence[tuple[Experiment, Results]]) -> Iterator[str]:
    """One line for every experiment and arm that is smaller than dense for a while."""
    heads = (
        "seeds",
        "loss minus dense's",
        "by kind of text",
        "no worse than dense",
        "minus dense-short's",
        "better than dense-short",
        "minus dense's in equal seconds",
        "FLOPs saved, model",
        "layers",
        "seconds saved",
        "FLOPs saved at equal loss",
    )
    yield f"| model | tokens a parameter | arm | {' | '.join(heads)} |"
    yield f"|---|---|---|{'---|' * len(heads)}"
    for experiment, results in experiments:
        dense, short = results["dense"], results.get("dense-short", {})
        one = next(iter(dense.values()))
        for name in SMALLER:
            seeds = results.get(name, {})
            against = difference(seeds, dense)
            if against is None:
                continue
            no_worse, than_short = claims_of(seeds, results) or ("", "")
            cells = [
                experiment.title,
                f"{one['tokens'] / one['parameters']:.0f}",
                name,
                str(against.seeds),
                _interval(against),
                ", ".join(f"{kind} {mean:+.3f}" for kind, mean in against.by_kind.items()),
                str(no_worse),
                _interval(difference(seeds, short)),
                str(than_short),
                _interval(difference(seeds, at_equal_seconds(seeds, results) or {})),
                *(f"{saved(seeds[min(seeds)], one, part):.1%}" for part in ("model", "layers")),
                _seconds_saved(seeds),
                _saving(saved_at_equal_loss(seeds, results)),
            ]
            yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "quality.md")
    arguments = parser.parse_args()
    folder = Path(__file__).parent
    every = [
        (path.stem, Experiment.from_yaml(path), stored(path.stem))
        for path in sorted((folder / "experiments").glob("*.yaml"), key=_place)
    ]
    main_ones = main_experiments((experiment, own) for _, experiment, own in every)
    known = measured(main_ones)
    if (package := arguments.out.parents[1] / "estfx" / "schedules").is_dir():
        write(known, package)
    together: dict[str, Results] = {}
    lags, sections = [], []
    for name, experiment, own in every:
        if not own:
            continue
        results = own
        if experiment.beside is not None:
            other = Experiment.from_yaml(found(experiment.beside))
            experiment = experiment.model_copy(update={"arms": {**other.arms, **experiment.arms}})
            results = stored(experiment.beside) | own
        check_runs(experiment, results)
        together[name] = results
        lags.append((experiment.title, own, results))
        sections += [f"## {experiment.title}", ""]
        against = [arm for arm in ("dense", "dense-short") if arm in experiment.arms]
        sections += [*table(experiment, results, against), ""]
        picture = arguments.out.parent / "images" / f"quality-{name}.svg"
        plot(experiment, results, picture)
        sections += [f"![Held-out loss against FLOPs, and steps behind dense](images/{picture.name})", ""]
    law_picture("est", arguments.out.parent / "images" / "quality-law.svg")
    words = {
        "brief": brief(main_ones),
        "default": default(known),
        "map": map_table(known),
        "cost": cost_table({name: own for name, _, own in every if own}),
        "factors": factor_table({cell: stored(cell) for cell in CELLS}),
        **{name: rates_table(name) for name, *_ in every if name.startswith("rates")},
        "works": works(),
        "tested": tested(main_ones),
        "refit": refit_table("est"),
        "summary": summary(main_ones),
        "lags": lag_table(lags),
        "laws": prediction_table(),
    }
    filled = {word: "\n".join(lines) for word, lines in words.items()}
    record = arguments.out.with_name(f"{arguments.out.stem}-record.md")
    for source, path, more in (("page.md", arguments.out, []), ("record.md", record, ["", *sections])):
        page = fill((folder / source).read_text(encoding="utf-8"), filled, together)
        path.write_text("\n".join([page.rstrip(), *more]).rstrip() + "\n", encoding="utf-8")
        print(f"written to {path}")
    readme = arguments.out.parents[1] / "README.md"
    if readme.exists():
        before, _, rest = readme.read_text(encoding="utf-8").partition(README[0])
        _, _, after = rest.partition(README[1])
        made = "\n".join(["", *in_readme(main_ones), ""])
        readme.write_text(f"{before}{README[0]}{made}{README[1]}{after}", encoding="utf-8")


def fill(page: str, filled: Mapping[str, str], results: Mapping[str, Results]) -> str:
    """A page with its tables, figures and claims. Raises KeyError for one that is not there."""
    words = (above, minus, change, claim, better)
    making: dict[str, Callable[..., str]] = {word.__name__: word for word in words}

    def made(match: re.Match[str]) -> str:
        word, *of = match[1].split()
        if not of:
            return filled[word]
        text = making[word](results[of[0]], *of[1:])
        if not text:
            raise KeyError(f"{match[1]}: there is no run of it")
        return text

    return re.sub(r"\{\{ ([^}]+) \}\}", made, page)


def _place(path: Path) -> tuple[int, str]:
    """Experiments stand in the order of what their names begin with."""
    return ORDER.index(path.stem.split("-")[0]), path.stem


if __name__ == "__main__":
    main()
