"""An AdamW step on all numbers of a weight, against one on the kept rows alone.

    python benchmarks/optimizer.py [--device cuda --dtype bfloat16] [--width 2048 --neurons 5632 --kept 0.5 --layers 6]

The second gathers the kept rows of the weight and of both moments, updates them and writes them back, as an optimizer
would that leaves the moments of what was not trained alone. It is compiled; the first is torch's fused one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from results import write
from timing import arguments, in_turn, ratios, seconds

BETAS, RATE, DECAY, EPSILON = (0.9, 0.95), 1e-4, 0.1, 1e-8


def update_rows(
    weight: torch.Tensor,
    grad: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    index: torch.Tensor,
    step: torch.Tensor,
) -> None:
    """AdamW (Loshchilov and Hutter, 2019) on the rows `index`."""
    own, m, v = weight[index], first[index], second[index]
    m = torch.lerp(m, grad, 1 - BETAS[0])
    v = v * BETAS[1] + (1 - BETAS[1]) * grad * grad
    scale = RATE / (1 - BETAS[0] ** step)
    own = own * (1 - RATE * DECAY) - scale * m / ((v / (1 - BETAS[1] ** step)).sqrt() + EPSILON)
    for whole, rows in ((weight, own), (first, m), (second, v)):
        whole.index_copy_(0, index, rows.to(whole.dtype))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--neurons", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--kept", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=21)
    options = parser.parse_args()
    made = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    shape = (options.neurons, options.width)
    weights = [torch.randn(shape, **made).requires_grad_() for _ in range(options.layers)]
    for weight in weights:
        weight.grad = torch.randn(shape, **made)
    fused = torch.optim.AdamW(weights, lr=RATE, betas=BETAS, weight_decay=DECAY, fused=True)
    states = [(torch.zeros(shape, **made), torch.zeros(shape, **made)) for _ in weights]
    compiled = torch.compile(update_rows, fullgraph=True)
    kept = round(options.kept * options.neurons)
    grads = [torch.randn(kept, options.width, **made) for _ in weights]
    step = torch.tensor(3.0, device=options.device)

    def all_numbers() -> None:
        fused.step()

    @torch.no_grad()
    def kept_rows() -> None:
        index = torch.randperm(options.neurons)[:kept].sort().values.to(options.device)
        for weight, grad, (first, second) in zip(weights, grads, states, strict=True):
            compiled(weight.detach(), grad, first, second, index, step)

    arms: dict[str, Callable[[int], float]] = {
        "all numbers, fused": lambda repeat: seconds(all_numbers, options.device),
        "kept rows, compiled": lambda repeat: seconds(kept_rows, options.device),
    }
    rows = ratios(in_turn(arms, options.repeats, left_out=3), "all numbers, fused")
    for name, row in rows.items():
        print(f"{name:20s} {1000 * row['seconds']:.2f} ms, {row['ratio']:.2f} of all")
    write("optimizer", vars(options), rows)


if __name__ == "__main__":
    main()
