"""The grid of rates of each schedule."""

import rates
from rates import Rate


def run(loss, peak=8e-3, steps=1000, total=None, share=0.2, falls_with="steps", **schedule):
    train = {
        "total_steps": total or steps,
        "learning_rate": peak,
        "decay_share": share,
        "learning_rate_shape": "warmup_stable_decay",
        "learning_rate_falls_with": falls_with,
    }
    config = {"schedule": schedule, "train": train, "model": {"name": "gpt2"}}
    return {0: {"config": config, "steps": steps, "block_losses": [loss, loss]}, 1: {"block_losses": [0.0]}}


def test_runs_are_told_apart_by_what_they_train_and_not_by_their_names():
    found = rates.grid_of(
        {
            "dense": run(1.0, preset="dense"),
            "faster": run(0.9, 16e-3, preset="dense"),
            "sooner": run(0.8, 16e-3, share=0.4, preset="dense"),
            "a": run(1.2, steps=750, preset="dense"),
            "stopped": run(1.3, steps=750, total=1000, preset="dense"),  # its rate never fell
            "b": run(1.4, preset="est", idle_units="updated"),  # as the preset has it, unless it is told otherwise
            "c": run(1.5, preset="est", resample_every=100),  # another schedule than the preset
            "e": run(1.7, preset="est", policy="rolling", kept_units="as_is"),
            "h": run(1.75, preset="est", policy="rolling", kept_units="as_is", cycle_steps=500),  # it goes round faster
            "f": run(1.8, preset="compound"),
            "g": run(1.9, falls_with="flops", preset="compound"),  # its rate goes another way
            "d": {1: run(1.6, preset="compound")[0]},  # of another seed
        },
        whole_steps=1000,
    )
    assert found == {
        "dense": {Rate(8e-3, 0.2): 1.0, Rate(16e-3, 0.2): 0.9, Rate(16e-3, 0.4): 0.8},
        "dense for as many FLOPs": {Rate(8e-3, 0.2): 1.2},
        "EST": {Rate(8e-3, 0.2): 1.4},
        "compound": {Rate(8e-3, 0.2): 1.8},
        "EST with a rolling window": {Rate(8e-3, 0.2): 1.7},
    }


def test_the_table_compares_the_best_of_each_with_the_best_of_dense(monkeypatch):
    made = {
        "mini-gpt2": {"dense": run(1.0, preset="dense"), "est": run(1.4, preset="est")},
        "rates-mini-gpt2": {"d": run(0.9, 16e-3, preset="dense"), "e": run(1.25, 4e-3, preset="est")},
    }
    monkeypatch.setattr(rates, "stored", made.get)
    head, _, dense, est = rates.rates_table("rates-mini-gpt2")
    assert head.endswith("| 4e-3, 20% | 8e-3, 20% | 16e-3, 20% | best minus dense's best | perhaps better with |")
    assert dense == "| dense |  | 1.0000 | **0.9000** | +0.0000 | a higher peak, another fall |"
    assert est == "| EST | **1.2500** | 1.4000 |  | +0.3500 | a lower peak, another fall |"
