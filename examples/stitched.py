"""Trains a small and a large Llama, stitches them, tunes the stitches, and shows what each costs. Seconds."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import estfx


def text(seed: int) -> dict[str, torch.Tensor]:
    """A batch of a made-up language: each token follows from the two before it."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(32, (16, 32), generator=generator)
    for i in range(2, 32):
        tokens[:, i] = (3 * tokens[:, i - 1] + 5 * tokens[:, i - 2] + 7) % 32
    return {"input_ids": tokens, "labels": tokens}


def train(model: torch.nn.Module, steps: int, first: int) -> None:
    """Trains a model on new text."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for step in range(steps):
        model(**text(first + step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def tune(stitched: estfx.Stitched, steps: int) -> None:
    """Trains low-rank updates that all stitches share, and what each has alone; a stitch is drawn for each step."""
    stitched.add_updates(rank=8)
    own = [parameter for parameter in stitched.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=3e-3)
    stitched.train()
    for step in range(steps):
        stitched.draw()
        stitched(**text(3000 + step)).loss.backward()
        stitched.note()
        optimizer.step()
        optimizer.zero_grad()
    stitched.eval()


def llama(hidden_size: int, num_hidden_layers: int) -> LlamaForCausalLM:
    """A Llama of that size for the made-up language."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=4,
        max_position_embeddings=32,
    )
    return LlamaForCausalLM(config)


def main() -> None:
    """Prints the palette before and after it is tuned."""
    torch.manual_seed(0)
    small, large = llama(32, 4), llama(96, 6)
    train(small, steps=120, first=1000)
    train(large, steps=120, first=2000)
    stitched = estfx.stitch(small, large, [text(seed) for seed in range(8)])
    unseen = [text(99)]
    print(estfx.Palette.of(stitched, unseen))
    tune(stitched, steps=120)
    print(estfx.Palette.of(stitched, unseen))


if __name__ == "__main__":
    main()
