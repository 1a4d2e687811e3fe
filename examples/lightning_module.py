"""An evolving GPT-2 in Lightning (`pip install lightning`). Runs in seconds, on random tokens."""

from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, GPT2LMHeadModel

import estfx
from estfx.integrations.lightning import EvolvingCallback

TOTAL_STEPS, BATCH_SIZE, SEQ_LEN = 15, 4, 32


class RandomTokens(Dataset[torch.Tensor]):
    """Stands for your data."""

    def __len__(self) -> int:
        return TOTAL_STEPS * BATCH_SIZE

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.randint(256, (SEQ_LEN,), generator=torch.Generator().manual_seed(index))


class Evolving(lightning.LightningModule):
    """A module whose decoder trains a part of itself."""

    def __init__(self) -> None:
        super().__init__()
        config = GPT2Config(n_layer=4, n_embd=64, n_head=4, vocab_size=256, n_positions=64)
        # compile=False, because compiling would take longer than these few steps
        self.model = estfx.transform(GPT2LMHeadModel(config), estfx.Schedule.compound(TOTAL_STEPS), compile=False)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """The loss of a batch."""
        loss: torch.Tensor = self.model(input_ids=batch, labels=batch).loss
        print(f"step {self.model.step:2}  stage {self.model.stage_index + 1}  loss {loss.item():.3f}")
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW passes over the parameters of skipped layers, which have no gradient."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    """Trains through the three stages."""
    lightning.seed_everything(0, verbose=False)
    trainer = lightning.Trainer(
        max_steps=TOTAL_STEPS,
        accelerator="cpu",
        callbacks=[EvolvingCallback()],  # counts the steps of the model's own optimizer, and draws at each
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Evolving(), DataLoader(RandomTokens(), batch_size=BATCH_SIZE))


if __name__ == "__main__":
    main()
