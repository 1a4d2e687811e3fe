"""Trains a small Llama, draws complementary halves of it, tunes each, and has them answer together. Seconds."""

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
    """Trains a model on new text, with a one-cycle rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for step in range(steps):
        model(**text(first + step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        cycle.step()
    model.eval()


def main() -> None:
    """Prints loss and calibration error on text that was not trained on."""
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
    unseen = text(99)

    def told(what: str, made: torch.nn.Module) -> None:
        with torch.no_grad():
            result = made(**unseen)
        error = estfx.calibration_error(result.logits[:, :-1], unseen["labels"][:, 1:])
        print(f"{what:28} loss {result.loss:.3f}  calibration error {error:.3f}")

    told("the whole model", model)
    children = estfx.children(model, number=4)
    for number, child in enumerate(children):
        told(f"child {number + 1}", child)
        train(child, steps=60, rate=3e-3, first=2000 + 100 * number)
        told("and tuned for 60 steps", child)
    both = estfx.Ensemble(children)
    told("all four", both)
    prompt = unseen["input_ids"][:1, :8]
    print("they go on:", both.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)[0].tolist())


if __name__ == "__main__":
    main()
