"""An evolving GPT-2 in a loop with accelerate, gradient accumulation included. Runs in seconds, on random tokens.

By itself, or on several GPUs: `accelerate launch --multi_gpu --num_processes 2 examples/accelerate_loop.py`.
"""

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, GPT2LMHeadModel

import estfx

TOTAL_STEPS, BATCH_SIZE, SEQ_LEN, ACCUMULATION = 15, 2, 32, 2


class RandomTokens(Dataset[torch.Tensor]):
    """Stands for your data."""

    def __init__(self, processes: int) -> None:
        self.size = TOTAL_STEPS * BATCH_SIZE * ACCUMULATION * processes

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.randint(256, (SEQ_LEN,), generator=torch.Generator().manual_seed(index))


def main() -> None:
    """Trains through the three stages and prints the loss of each step."""
    torch.manual_seed(0)
    # of several processes DDP must be told that skipped layers have no gradient
    skipping = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATION, kwargs_handlers=[skipping])
    config = GPT2Config(n_layer=4, n_embd=64, n_head=4, vocab_size=256, n_positions=64)
    # compile=False, because compiling would take longer than these few steps
    evolving = estfx.transform(GPT2LMHeadModel(config), estfx.Schedule.compound(TOTAL_STEPS), compile=False)
    optimizer = torch.optim.AdamW(evolving.parameters(), lr=1e-3)
    loader = DataLoader(RandomTokens(accelerator.num_processes), batch_size=BATCH_SIZE)
    model, optimizer, loader = accelerator.prepare(evolving, optimizer, loader)
    model.train()
    for number, tokens in enumerate(loader):
        evolving.set_step(number // ACCUMULATION)  # one subnetwork for all micro-batches of an optimizer step
        with accelerator.accumulate(model):
            loss = model(input_ids=tokens, labels=tokens).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            accelerator.print(f"step {evolving.step:2}  stage {evolving.stage_index + 1}  loss {loss.item():.3f}")
    accelerator.unwrap_model(model).eval()  # the whole model, from here on as if nothing had happened


if __name__ == "__main__":
    main()
