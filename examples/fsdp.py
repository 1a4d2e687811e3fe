"""An evolving Llama under FSDP2: `torchrun --nproc-per-node 2 examples/fsdp.py`. On GPUs or on the CPU.

Skipped layers are neither gathered nor reduced. At the end the shards are written side by side, and put together into a
checkpoint that `from_pretrained` reads.
"""

import tempfile

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

import estfx

TOTAL_STEPS = 15


def main() -> None:
    """Trains through the three stages and saves an ordinary checkpoint."""
    dist.init_process_group()  # nccl on GPUs, gloo on the CPU
    rank = dist.get_rank()
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    torch.manual_seed(0)  # the same weights on every rank, before they are sharded
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
    model = estfx.transform(LlamaForCausalLM(config).to(kind), estfx.Schedule.compound(TOTAL_STEPS), compile=False)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    generator = torch.Generator().manual_seed(rank)
    for step in range(TOTAL_STEPS):
        model.set_step(step)  # on every rank; now and then they compare what they drew
        tokens = torch.randint(256, (4, 32), generator=generator).to(kind)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0:
            kept = sum(model.subnetwork.layers.values())
            print(f"step {step:2}  stage {model.stage_index + 1}  loss {loss.item():.3f}  layers {kept} of 4")
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, state_dict=whole)
            loaded = LlamaForCausalLM.from_pretrained(folder)
            print(f"saved and loaded {sum(p.numel() for p in loaded.parameters()):,} parameters")
    dist.barrier()  # none leaves while another still talks to it
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
