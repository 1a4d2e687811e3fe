"""An evolving Llama under DDP: `torchrun --nproc-per-node 2 examples/ddp.py`. On GPUs or on the CPU."""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

import estfx

TOTAL_STEPS = 15


def main() -> None:
    """Trains through the three stages; each rank takes other random tokens, and all the same subnetwork."""
    dist.init_process_group()  # nccl on GPUs, gloo on the CPU
    rank = dist.get_rank()
    device = torch.device("cuda", rank % torch.cuda.device_count()) if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)  # the same weights on every rank
    config = LlamaConfig(
        num_hidden_layers=4,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=256,
        bos_token_id=0,
        eos_token_id=0,
    )
    # compile=False, because compiling would take longer than these few steps
    model = estfx.transform(LlamaForCausalLM(config).to(device), estfx.Schedule.compound(TOTAL_STEPS), compile=False)
    # skipped layers have no gradient, which DDP must be told to expect
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-3)
    ddp.train()
    generator = torch.Generator().manual_seed(rank)
    for step in range(TOTAL_STEPS):
        model.set_step(step)  # on every rank; now and then they compare what they drew
        tokens = torch.randint(256, (4, 32), generator=generator).to(device)
        loss = ddp(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0:
            kept = sum(model.subnetwork.layers.values())
            print(f"step {step:2}  stage {model.stage_index + 1}  loss {loss.item():.3f}  layers {kept} of 4")
    dist.barrier()  # none leaves while another still talks to it
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
