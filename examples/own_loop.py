"""An evolving GPT-2 in a training loop of your own. Runs in seconds, on random tokens."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import estfx

TOTAL_STEPS = 15


def main() -> None:
    """Trains through the three stages and prints what each step keeps."""
    torch.manual_seed(0)
    config = GPT2Config(n_layer=4, n_embd=64, n_head=4, vocab_size=256, n_positions=64)
    model = GPT2LMHeadModel(config)
    # compile=False, because compiling would take longer than these few steps
    model = estfx.transform(model, estfx.Schedule.compound(TOTAL_STEPS), compile=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for step in range(TOTAL_STEPS):
        model.set_step(step)  # says which part this step trains
        tokens = torch.randint(256, (4, 32))
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        running = [name for name, runs in model.subnetwork.layers.items() if runs]
        print(f"step {step:2}  stage {model.stage_index + 1}  loss {loss.item():.3f}  runs {', '.join(running)}")
    model.eval()  # the whole model, from here on as if nothing had happened
    print(model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5, do_sample=False, pad_token_id=0).tolist())


if __name__ == "__main__":
    main()
