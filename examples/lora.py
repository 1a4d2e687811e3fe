"""LoRA adapters on an evolving Llama: continued training of a part of the model at a time. Runs in seconds."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import estfx

TOTAL_STEPS = 15


def main() -> None:
    """Trains adapters on a part of the model that grows, and merges them into the model."""
    torch.manual_seed(0)
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
    base = LlamaForCausalLM(config)  # yours would come out of from_pretrained
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    # the model with its adapters; compile=False, because compiling would take longer than these few steps
    model = estfx.transform(adapted.base_model.model, estfx.Schedule.growing(TOTAL_STEPS), compile=False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    adapted.train()
    for step in range(TOTAL_STEPS):
        model.set_step(step)
        tokens = torch.randint(256, (4, 32))
        loss = adapted(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step:2}  stage {model.stage_index + 1}  loss {loss.item():.3f}")
    estfx.restore(model)
    merged = adapted.merge_and_unload().eval()
    print(f"merged into a {type(merged).__name__} of {sum(p.numel() for p in merged.parameters()):,} parameters")


if __name__ == "__main__":
    main()
