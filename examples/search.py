"""Trains a small Llama, searches for its best part, cuts it out, refits and tunes it. A minute."""

import tempfile

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


def train(model: torch.nn.Module, steps: int, rate: float, first: int) -> None:
    """Trains a model on new text."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    for step in range(steps):
        model(**text(first + step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def main() -> None:
    """Prints the loss on text that was not trained on, after each step of the way."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=32,
    )
    model = LlamaForCausalLM(config)
    train(model, steps=120, rate=3e-3, first=1000)
    calibration = [text(seed) for seed in range(8)]
    unseen = text(99)

    def told(what: str, made: torch.nn.Module) -> None:
        with torch.no_grad():
            print(
                f"{what:28} {sum(p.numel() for p in made.parameters()):7,} parameters  loss {made(**unseen).loss:.3f}"
            )

    told("the whole model", model)
    found = estfx.search(model, calibration, {"parameters": 0.5}, population=24, kept=6, generations=8)
    print(found)
    small = estfx.cut(model, found.units, layers=found.layers)
    told("cut", small)
    estfx.reform(small, model, calibration)
    told("and refitted", small)
    train(small, steps=60, rate=1e-3, first=2000)
    told("and tuned for 60 steps", small)
    with tempfile.TemporaryDirectory() as folder:
        estfx.save(small, folder)
        told("loaded again", estfx.load(folder).eval())


if __name__ == "__main__":
    main()
