"""What the laws said of runs that were not made yet, beside what was measured since.

    python benchmarks/quality/predictions.py predict     # writes down what the laws say; once, before the runs
    python benchmarks/quality/predictions.py             # compares that with what was measured since

Predictions are kept with the date and the points that they were made from, and are never made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from claims import in_seeds
from compared import stored
from experiment import RESULTS, Experiment, Plans, found
from laws import Point, fitted, once, point_of, points

__all__ = ["prediction_table"]

FILE = RESULTS / "predictions.json"
# experiments by schedule, whose runs are not made before the predictions are
ASKED = {
    "est": ("steps-400", "steps-1000", "steps-8000", "steps-19200", "steps-48000"),
    "compound": ("steps-400", "tiny-gpt2"),
}


def _asked(name: str) -> tuple[int, float]:
    """Steps and tokens a parameter of an experiment that need not have been run."""
    config = Plans.load(found(name)).config("dense")
    results = stored("mini-gpt2")["dense"]
    parameters = next(iter(results.values()))["parameters"]  # the same model in all that is asked
    steps = config.train.total_steps
    return steps, steps * config.train.batch_size * config.data.seq_len / parameters


def predictions() -> dict[str, Any]:
    """What the laws say of experiments that have no results of the arm in question."""
    made: dict[str, Any] = {"made": str(date.today()), "laws": [], "points": {}, "of": []}
    for arm, names in ASKED.items():
        known = points(arm)
        made["points"][arm] = [asdict(point) for point in known]
        for of in ("steps", "tokens") if arm == "est" else ("tokens",):
            law = fitted(known, of, logarithmic=arm == "est")
            made["laws"].append({"arm": arm, **asdict(law)})
            for name in names:
                if stored(name).get(arm):
                    raise SystemExit(f"{name} was run with {arm} already; nothing can be predicted of it.")
                steps, tokens = _asked(name)
                x = {"steps": steps, "tokens": tokens}[of]
                value, low, high = law.at(x)
                row = {"arm": arm, "experiment": name, "by": of, "x": x, "value": value, "low": low, "high": high}
                made["of"].append(row | {"extrapolates": law.extrapolates(x)})
    return made


def prediction_table() -> Iterator[str]:
    """The predictions, and what was measured since.

    Among the points that they were made from one kind of run is there twice. So beside them stands what the same law
    says if it counts once.
    """
    made = json.loads(FILE.read_text())
    heads = [f"predicted on {made['made']}", "by a law in", "says", "95 %", "each kind of run counted once"]
    yield f"| {' | '.join(heads)} | outside the law's data | measured |"
    yield "|---|---|---|---|---|---|---|"
    own = {arm: once([Point(**each) for each in known]) for arm, known in made["points"].items()}
    for row in made["of"]:
        corrected = fitted(own[row["arm"]], row["by"], logarithmic=row["arm"] == "est").at(row["x"])
        point = point_of(row["experiment"], stored(row["experiment"]), row["arm"])
        what = f"{row['arm']}, {Experiment.from_yaml(found(row['experiment'])).title}"
        form = "{:.3f}" if row["arm"] == "est" else "{:.1%}"
        measured = "not yet" if point is None else f"{form.format(point.value)}, {in_seeds(point.seeds)}"
        says, low, high = (form.format(row[key]) for key in ("value", "low", "high"))
        middle, least, most = map(form.format, corrected)
        outside = "yes" if row["extrapolates"] else "no"
        cells = [what, row["by"], says, f"[{low}, {high}]", f"{middle} [{least}, {most}]", outside, measured]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["predict"])
    if parser.parse_args().what == "predict":
        if FILE.exists():
            raise SystemExit(f"{Path(FILE).name} is there: predictions are made once, before the runs.")
        FILE.write_text(json.dumps(predictions(), indent=2) + "\n")
    for arm in ASKED:
        for point in points(arm):
            print(arm, point)
    for law in json.loads(FILE.read_text())["laws"]:
        slope = f"{law['slope']:.3f} ± {2 * law['slope_error']:.3f}"
        print(f"{law['arm']} by {law['of']}: slope {slope} a doubling, residuals {law['spread']:.2f}")
    print(*prediction_table(), sep="\n")


if __name__ == "__main__":
    main()
