"""Ways to take the kept neurons of an MLP's weights, against an MLP of those alone; forward and backward, compiled.

    python benchmarks/gather.py [--device cuda --dtype bfloat16] [--width 768 --tokens 4096 --repeats 15]

Each way is an MLP of which half of the neurons are kept, others at every repeat. The arms are interleaved; times are
medians of the ratios to the small MLP, which gathers nothing, taken repeat by repeat. `rows` stores the second weight
transposed, so that both weights are gathered along rows. Then the same for a projection to heads of 64, of which half
are kept: by the index of every row, and by that of whole heads (`head-major`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from results import write
from timing import arguments, in_turn, ratios, seconds
from torch.nn import functional as F

from estfx.graphs import take

Take = Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]


class _TakeByInverse(torch.autograd.Function):
    """The gradient is read, too: at each position of the whole weight that of the kept one, or zero."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.dim, ctx.size = dim, x.shape[dim]
        return x.index_select(dim, index)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (index,) = ctx.saved_tensors
        places = torch.full((ctx.size,), -1, dtype=torch.int64, device=grad.device)
        places = places.index_copy(0, index, torch.arange(len(index), device=grad.device))
        shape = [-1 if d == ctx.dim else 1 for d in range(grad.ndim)]
        read = grad.index_select(ctx.dim, places.clamp(min=0))
        return torch.where((places >= 0).view(shape), read, 0), None, None


class _TakeInPlace(_TakeByInverse):
    """Zeros, written into in place."""

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (index,) = ctx.saved_tensors
        shape = list(grad.shape)
        shape[ctx.dim] = ctx.size
        return grad.new_zeros(shape).index_copy_(ctx.dim, index, grad), None, None


def selected(x: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    """That of torch, whose gradient accumulates."""
    return x.index_select(dim, index)


def whole(x: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    """Nothing is taken."""
    return x


def window(x: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    """A view of neighbours that always begins at the same place: what no gather could be faster than."""
    return x.narrow(dim, 8, len(index))


WAYS: dict[str, tuple[Take, bool]] = {
    "small": (whole, False),
    "take": (take, False),
    "take, rows": (take, True),
    "in place": (_TakeInPlace.apply, False),  # type: ignore[dict-item]
    "by inverse": (_TakeByInverse.apply, False),  # type: ignore[dict-item]
    "by inverse, rows": (_TakeByInverse.apply, True),  # type: ignore[dict-item]
    "index_select": (selected, False),
    "window": (window, False),
}


HEAD_DIM = 64


def by_row(weight: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    rows = (heads[:, None] * HEAD_DIM + torch.arange(HEAD_DIM, device=heads.device)).flatten()
    return take(weight, 0, rows)


def head_major(weight: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    return take(weight.unflatten(0, (-1, HEAD_DIM)), 0, heads).flatten(0, 1)


def as_it_is(weight: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    return weight


HEAD_WAYS = {"small": as_it_is, "by row": by_row, "head-major": head_major}


def measured(arms: dict[str, Callable[[torch.Tensor], float]], units: int, kept: int, options: Any) -> dict[str, Any]:
    """Prints and gives the ratio of each arm to the small one."""
    drawn = [torch.randperm(units)[:kept].sort().values.to(options.device) for _ in range(options.repeats + 3)]

    def at(run: Callable[[torch.Tensor], float]) -> Callable[[int], float]:
        return lambda repeat: run(drawn[repeat])

    rows = ratios(in_turn({name: at(run) for name, run in arms.items()}, options.repeats, left_out=3), "small")
    for name, row in rows.items():
        print(f"{name:18s} {1000 * row['seconds']:8.2f} ms   {row['ratio']:.3f} of the small one")
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.manual_seed(0)
    neurons, kept = 4 * options.width, 2 * options.width
    made = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    x = torch.randn(options.tokens, options.width, **made).requires_grad_()

    def arm(name: str) -> Callable[[torch.Tensor], float]:
        way, rows = WAYS[name]
        size = kept if name == "small" else neurons
        up = torch.randn(size, options.width, **made).requires_grad_()
        down = torch.randn(*((size, options.width) if rows else (options.width, size)), **made).requires_grad_()

        def mlp(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            hidden = F.gelu(F.linear(x, way(up, 0, index)), approximate="tanh")
            taken = way(down, 0 if rows else 1, index)
            return hidden @ taken if rows else F.linear(hidden, taken)

        compiled = torch.compile(mlp, fullgraph=True)

        def backward(index: torch.Tensor) -> object:
            return torch.autograd.grad(compiled(x, up, down, index), [x, up, down], x.detach())

        return lambda index: seconds(lambda: backward(index), options.device)

    def head_arm(name: str) -> Callable[[torch.Tensor], float]:
        size = options.width // 2 if name == "small" else options.width
        weight = torch.randn(size, options.width, **made).requires_grad_()

        def project(x: torch.Tensor, weight: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
            return F.linear(x, HEAD_WAYS[name](weight, heads))

        compiled = torch.compile(project, fullgraph=True)
        gradient = torch.randn(options.tokens, options.width // 2, **made)

        def backward(heads: torch.Tensor) -> object:
            return torch.autograd.grad(compiled(x, weight, heads), [x, weight], gradient)

        return lambda heads: seconds(lambda: backward(heads), options.device)

    rows = measured({name: arm(name) for name in WAYS}, neurons, kept, options)
    heads = options.width // HEAD_DIM
    found = measured({name: head_arm(name) for name in HEAD_WAYS}, heads, heads // 2, options)
    rows |= {f"heads, {name}": row for name, row in found.items()}
    write(f"gather-{options.width}", vars(options), rows)


if __name__ == "__main__":
    main()
