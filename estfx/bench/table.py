"""A measurement as two tables: of time, and of what else it takes."""

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from estfx.bench.result import ArmResult, BenchResult, Spread
from estfx.bench.settings import ARMS

__all__ = ["print_result"]

SPEED = ("ms a\nstep", "for-\nward", "back-\nward", "opti-\nmizer", "time", "(range)", "FLOPs", "time /\nFLOPs")
COST = ("tokens a\nsecond", "MFU", "peak\nMiB", "saved\nMiB", "compiling,\nseconds", "graphs", "later\ngraphs")


def print_result(console: Console, result: BenchResult) -> None:
    """Prints the arms, a row each, and what they are."""
    settings = result.settings
    console.print(
        f"{settings.model.name}: {result.parameters / 1e6:,.1f} M parameters, "
        f"{settings.batch_size} x {settings.seq_len} tokens a step, {settings.dtype}\n",
        highlight=False,
    )
    _print_table(console, result, SPEED, _speed)
    _print_table(console, result, COST, _cost)
    for arm in result.arms:
        failure = f"; FAILED: {arm.failed}" if arm.failed else ""
        console.print(f"{arm.name}: {ARMS[arm.name]}{failure}", soft_wrap=True, highlight=False)
    console.print(
        f"\nTime and FLOPs are of those of `compiled`, medians over {settings.rounds} rounds; MFU is of "
        f"{result.peak_flops / 1e12:.3g} TFLOP/s, {result.peak_flops_source}; the peak is over what parameters and "
        "optimizer states take, what is saved is for the backward pass; graphs are those that "
        "torch.compile made in the first steps, and later.",
        highlight=False,
    )


def _print_table(
    console: Console, result: BenchResult, columns: Sequence[str], cells: Callable[[ArmResult], list[str]]
) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("arm", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for arm in result.arms:
        table.add_row(arm.name, *(["failed"] if arm.failed else cells(arm)))
    console.print(table)


def _speed(arm: ArmResult) -> list[str]:
    times = [_there(each) for each in (arm.seconds, arm.forward, arm.backward, arm.optimizer)]
    ratio = _there(arm.time_ratio)
    return [
        *(f"{1000 * each.median:.1f}" for each in times),
        f"{ratio.median:.3f}",
        f"{ratio.low:.2f}-{ratio.high:.2f}",
        f"{arm.flops_ratio:.3f}",
        f"{arm.time_per_flops:.3f}",
    ]


def _cost(arm: ArmResult) -> list[str]:
    return [
        f"{arm.tokens_per_second:,.0f}",
        f"{arm.mfu:.1%}",
        _mebibytes(arm.peak_bytes),
        _mebibytes(arm.saved_bytes),
        f"{arm.compile_seconds:.1f}",
        str(arm.compilations),
        str(arm.compilations_later),
    ]


def _mebibytes(number: int | None) -> str:
    return "-" if number is None else f"{number / 2**20:,.0f}"


def _there(spread: Spread | None) -> Spread:
    assert spread is not None  # of an arm that did not fail
    return spread
