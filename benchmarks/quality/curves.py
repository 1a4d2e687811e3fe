"""The picture of an experiment: held-out loss against the FLOPs spent, and how far each arm is behind dense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from behind import Results, lags_over_time
from experiment import Experiment

__all__ = ["plot"]


def plot(experiment: Experiment, results: Results, path: Path) -> None:
    """Held-out loss against the FLOPs spent, and how many steps the arms are behind dense: means over seeds."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = path.stem  # the same file from the same results
    from matplotlib import pyplot

    dense = results.get("dense", {})
    lags = {name: lag for name, seeds in results.items() if (lag := lags_over_time(seeds, dense))}
    width = 12 if lags else 7
    figure, panels = pyplot.subplots(1, 1 + bool(lags), figsize=(width, 4.2), layout="constrained", squeeze=False)
    axes = panels[0, 0]
    colours = {name: pyplot.cm.tab20(number % 20) for number, name in enumerate(results)}
    for name, seeds in results.items():
        if experiment.arms[name].stopped is not None:
            continue
        curves = [result["held_out_curve"] for result in seeds.values()]
        steps = [step for step, _ in curves[0]]
        losses = np.mean([[loss for _, loss in curve] for curve in curves], axis=0)
        one = next(iter(seeds.values()))
        axes.plot([_spent(one, step) for step in steps], losses, label=name, color=colours[name])
    axes.set_xlabel("FLOPs of the whole model, in steps that train all of it")
    axes.set_ylabel("held-out loss, nats a token")
    every = [
        loss
        for seeds in results.values()
        for r in seeds.values()
        for _, loss in r["held_out_curve"][len(r["held_out_curve"]) // 3 :]
    ]
    axes.set_ylim(min(every) - 0.05, float(np.quantile(every, 0.9)))
    for name, lag in lags.items():
        panels[0, 1].plot(*zip(*lag, strict=True), color=colours[name])
    if lags:
        panels[0, 1].set_xlabel("steps of the run, until the learning rate falls")
        panels[0, 1].set_ylabel("steps behind dense")
    figure.legend(loc="outside right upper")
    figure.suptitle(experiment.title)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _spent(result: dict[str, Any], step: int) -> float:
    shares = ((s["flops_of_whole_model"], s["start"], s["stop"]) for s in result["stages"])
    return sum(share * (min(step, stop) - start) for share, start, stop in shares if step > start)
