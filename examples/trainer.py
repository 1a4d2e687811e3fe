"""An evolving Llama with grouped-query attention in transformers' Trainer. Runs in seconds, on random tokens."""

import tempfile

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import estfx
from estfx.integrations.transformers import EvolvingCallback

TOTAL_STEPS, BATCH_SIZE, SEQ_LEN = 15, 4, 32


class RandomTokens(Dataset[dict[str, torch.Tensor]]):
    """Stands for your data."""

    def __len__(self) -> int:
        return TOTAL_STEPS * BATCH_SIZE

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(256, (SEQ_LEN,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": tokens}


def main() -> None:
    """Trains through the three stages; Trainer's logs say what each step keeps."""
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
    schedule = estfx.Schedule.compound(TOTAL_STEPS)
    model = LlamaForCausalLM(config)
    plan = estfx.plan(model, schedule, batch_size=BATCH_SIZE, seq_len=SEQ_LEN)
    # compile=False, because compiling would take longer than these few steps
    model = estfx.transform(model, schedule, compile=False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=TOTAL_STEPS,
            per_device_train_batch_size=BATCH_SIZE,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        Trainer(model=model, args=arguments, train_dataset=RandomTokens(), callbacks=[EvolvingCallback(plan)]).train()
    print(f"saved {plan.saving_layers:.2%} of the layers' FLOPs, {plan.saving_model:.2%} of the whole model's")


if __name__ == "__main__":
    main()
