"""How good are parts of a trained model: by scores, by search, refitted, tuned, and as Torch-Pruning prunes?

    python benchmarks/cuts.py [--models gpt2 llama] [--minutes 4] [--candidates 300] [--weights FOLDER]

A small GPT-2 and a small Llama with grouped queries are trained on the text of Python's own standard library, bytes as
tokens. Then parts of 90, 80, 70, 60 and 50 % of the layers' parameters are cut out, and their loss on held-out text is
taken, in nats a byte. Torch-Pruning (`pip install --no-deps torch-pruning==1.6.1`) prunes the same models as its own
example for language models does, which has to be told the heads by name. It is left out where it is not installed.
With `--weights` the trained models are kept there.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from results import write
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import estfx
from estfx.training import Blocks, documents
from estfx.training.text_data import corpus_of

RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5)
LENGTH, BATCH = 128, 16
TUNING = 100  # steps
Batches = list[dict[str, torch.Tensor]]
Row = dict[str, float | str]


def built(name: str) -> Any:
    torch.manual_seed(0)
    if name == "gpt2":
        config = GPT2Config(n_layer=6, n_embd=192, n_head=8, vocab_size=257, n_positions=LENGTH)
        return GPT2LMHeadModel(config)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=16,
            num_key_value_heads=8,
            vocab_size=257,
            max_position_embeddings=LENGTH,
        )
    )


class Text:
    """Blocks to train on, to calibrate by, and to judge by."""

    def __init__(self) -> None:
        corpus = corpus_of(documents(["standard-library"], "text"))
        self.train, self.held_out = Blocks(corpus.train, LENGTH), Blocks(corpus.held_out, LENGTH)

    def batch(self, numbers: list[int], of: Blocks | None = None) -> dict[str, torch.Tensor]:
        rows = [(of or self.train)[number]["input_ids"] for number in numbers]
        return {"input_ids": torch.stack(rows)}

    def drawn(self, seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return self.batch(torch.randint(len(self.train), (BATCH,), generator=generator).tolist())

    def spread(self, of: Blocks, number: int) -> Batches:
        chosen = [i * len(of) // number for i in range(number)]
        return [self.batch(chosen[i : i + BATCH], of) for i in range(0, number, BATCH)]


def loss_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch, labels=batch["input_ids"], use_cache=False).loss  # type: ignore[no-any-return]


def held_out(model: Any, batches: Batches) -> float:
    model.eval()
    with torch.no_grad():
        return sum(float(loss_of(model, batch)) for batch in batches) / len(batches)


def train(
    model: Any, text: Text, rate: float, *, seconds: float = math.inf, steps: float = math.inf, first: int
) -> int:
    """By steps or by seconds; the rate rises in the first twentieth and falls along half a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    model.train()
    begun, step = time.monotonic(), 0
    while (done := max((time.monotonic() - begun) / seconds, step / steps)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, done * 20 + 0.01) * (0.5 + 0.5 * math.cos(math.pi * done))
        loss_of(model, text.drawn(first + step)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
    model.eval()
    return step


def in_layers(model: Any) -> int:
    """Parameters of the layers."""
    outer = {id(p) for part in (model.get_input_embeddings(), model.get_output_embeddings()) for p in part.parameters()}
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    return sum(p.numel() for p in model.parameters() if p.ndim > 1 and id(p) not in outer | tables)


# -- estfx -------------------------------------------------------------------------------------------------------------


def random_scores(like: estfx.Scores, seed: int) -> estfx.Scores:
    torch.manual_seed(seed)
    units = {name: {role: torch.rand(len(each)) for role, each in roles.items()} for name, roles in like.units.items()}
    return estfx.Scores("random", units, {}, like.order)


def by_scores(model: Any, calibration: Batches, ratio: float, scores: estfx.Scores) -> Any:
    """The best units, the same share in each layer; no layer is skipped."""
    scores = estfx.Scores(scores.by, scores.units, {}, scores.order)
    options: dict[str, Any] = {"scores": scores, "population": 1, "kept": 1, "generations": 0, "levels": 32}
    found = estfx.search(model, calibration[:1], {"parameters": ratio}, **options)
    return estfx.cut(model, found.units, layers=found.layers)


def of_estfx(model: Any, text: Text, calibration: Batches, judge: Batches, candidates: int) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    begun = time.monotonic()
    scores = {by: estfx.score(model, by, calibration) for by in ("magnitude", "gradient", "activation")}  # type: ignore[arg-type]
    print(f"scores: {time.monotonic() - begun:.0f} s", flush=True)
    for ratio in RATIOS:
        losses = [
            held_out(by_scores(model, calibration, ratio, random_scores(scores["magnitude"], s)), judge)
            for s in range(3)
        ]
        note(rows, f"{ratio:.0%} random", loss=sum(losses) / 3, least=min(losses), most=max(losses))
        for by, each in scores.items():
            small = by_scores(model, calibration, ratio, each)
            note(rows, f"{ratio:.0%} {by}", **kept(model, small), loss=held_out(small, judge))
            if by == "activation":
                finished(rows, f"{ratio:.0%} {by}", model, small, text, calibration, judge)
        generations = candidates // 40 - 1
        found = estfx.search(
            model,
            calibration[:2],
            {"parameters": ratio},
            scores=scores["activation"],
            population=40,
            kept=8,
            generations=generations,
        )
        small = estfx.cut(model, found.units, layers=found.layers)
        note(
            rows,
            f"{ratio:.0%} search",
            **kept(model, small),
            loss=held_out(small, judge),
            candidates=found.candidates,
            seconds_each=found.seconds / found.candidates,
            programs=found.programs,
            compilations=found.compilations,
            layers=len(found.layers),
        )
        finished(rows, f"{ratio:.0%} search", model, small, text, calibration, judge)
    return rows


def finished(
    rows: dict[str, Row], name: str, model: Any, small: Any, text: Text, calibration: Batches, judge: Batches
) -> None:
    """Refitted, and then tuned; and tuned without being refitted."""
    tuned = copy.deepcopy(small)
    train(tuned, text, 1e-3, steps=TUNING, first=10**6)
    note(rows, f"{name}, tuned", loss=held_out(tuned, judge))
    estfx.reform(small, model, calibration)
    note(rows, f"{name}, refitted", loss=held_out(small, judge))
    train(small, text, 1e-3, steps=TUNING, first=10**6)
    note(rows, f"{name}, refitted and tuned", loss=held_out(small, judge))


def kept(model: Any, small: Any) -> Row:
    return {"share": in_layers(small) / in_layers(model)}


def note(rows: dict[str, Row], name: str, **figures: Any) -> None:
    rows[name] = {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
    print(f"  {name:42} {rows[name]}", flush=True)


# -- Torch-Pruning -----------------------------------------------------------------------------------------------------


def of_torch_pruning(model: Any, text: Text, calibration: Batches, judge: Batches) -> dict[str, Row]:
    """Pruned as in its example for language models, by as little, in steps of 1 %, as makes it small enough."""
    try:
        import torch_pruning as tp
    except ImportError:
        return {"Torch-Pruning": {"loss": "not installed"}}
    rows: dict[str, Row] = {}
    kinds: dict[str, tuple[Callable[[], Any], bool]] = {
        "Torch-Pruning, magnitude": (lambda: tp.importance.GroupMagnitudeImportance(p=2), True),
        "Torch-Pruning, Taylor": (lambda: tp.importance.GroupTaylorImportance(), True),
        "Torch-Pruning, magnitude, stream whole": (lambda: tp.importance.GroupMagnitudeImportance(p=2), False),
        "Torch-Pruning, Taylor, stream whole": (lambda: tp.importance.GroupTaylorImportance(), False),
    }
    for name, (importance, narrows_stream) in kinds.items():
        for ratio in RATIOS:
            try:
                small = pruned(tp, model, calibration, ratio, importance, narrows_stream)
                note(rows, f"{ratio:.0%} {name}", **kept(model, small), loss=held_out(small, judge))
                train(small, text, 1e-3, steps=TUNING, first=10**6)
                note(rows, f"{ratio:.0%} {name}, tuned", loss=held_out(small, judge))
            except Exception as error:
                note(
                    rows,
                    f"{ratio:.0%} {name}",
                    loss=f"fails: {type(error).__name__}: {str(error).splitlines()[0][:160]}",
                )
    return rows


def pruned(tp: Any, model: Any, calibration: Batches, ratio: float, importance: Any, narrows_stream: bool) -> Any:
    nearly = 1 - (ratio**0.5 if narrows_stream else ratio)
    for percent in range(max(1, int(100 * nearly) - 3), 100):
        small = copy.deepcopy(model).train(False)
        told = told_of(small)
        if not narrows_stream:
            told["pruning_ratio_dict"] = dict.fromkeys(told.pop("wide"), percent / 100)
        else:
            told.pop("wide")
        for batch in calibration:  # Taylor needs gradients
            loss_of(small, batch).backward()
        pruner = tp.pruner.BasePruner(
            small,
            example_inputs={"input_ids": calibration[0]["input_ids"][:1], "use_cache": False},
            importance=importance(),
            pruning_ratio=percent / 100 if narrows_stream else 0.0,
            head_pruning_ratio=percent / 100,
            prune_num_heads=True,
            prune_head_dims=False,
            ignored_layers=[small.lm_head],
            output_transform=lambda out: out.logits.sum(),
            **told,
        )
        pruner.step()
        small.zero_grad()
        updated(small)
        if in_layers(small) <= ratio * in_layers(model):
            return small
    raise ValueError(f"it cannot be made as small as {ratio:.0%}")


def told_of(model: Any) -> dict[str, Any]:
    """What Torch-Pruning has to be told: which modules are heads, and how many."""
    heads: dict[nn.Module, int] = {}
    wide = []
    for module in model.modules():
        if hasattr(module, "q_proj"):
            heads[module.q_proj] = model.config.num_attention_heads
            heads[module.k_proj] = heads[module.v_proj] = model.config.num_key_value_heads
        elif hasattr(module, "c_attn"):
            heads[module.c_attn] = model.config.n_head
        wide += [getattr(module, name) for name in ("gate_proj", "up_proj", "c_fc") if hasattr(module, name)]
    return {"num_heads": heads, "wide": wide}


def updated(model: Any) -> None:
    """The numbers that the code reads, which the example sets by hand."""
    for module in model.modules():
        if hasattr(module, "q_proj"):
            groups = module.q_proj.out_features // module.head_dim
            module.num_key_value_groups = groups // (module.k_proj.out_features // module.head_dim)
        if hasattr(module, "split_size") and hasattr(module, "c_attn"):
            module.split_size = module.c_attn.weight.shape[1] // 3
            module.num_heads = module.split_size // module.head_dim


# -- speed -------------------------------------------------------------------------------------------------------------


def speed(model: Any, small: Any, calibration: Batches) -> dict[str, Row]:
    """Tokens a second of both in turn, medians of ratios."""
    ids = calibration[0]["input_ids"]

    def prefill(each: Any) -> float:
        begun = time.perf_counter()
        with torch.no_grad():
            each(input_ids=ids, use_cache=False)
        return ids.numel() / (time.perf_counter() - begun)

    def decoding(each: Any) -> float:
        begun = time.perf_counter()
        each.generate(ids[:1, :16], max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=256)
        return 64 / (time.perf_counter() - begun)

    rows: dict[str, Row] = {}
    for name, measured in (("prefill", prefill), ("decoding", decoding)):
        pairs = [(measured(model), measured(small)) for _ in range(12)][2:]
        ratios = sorted(two / one for one, two in pairs)
        whole, cut = (sorted(each)[5] for each in zip(*pairs, strict=True))
        note(rows, name, whole=whole, cut=cut, ratio=ratios[len(ratios) // 2], least=ratios[0], most=ratios[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=["gpt2", "llama"], default=["gpt2", "llama"])
    parser.add_argument("--minutes", type=float, default=4, help="of training, for each model")
    parser.add_argument("--candidates", type=int, default=300, help="of each search")
    parser.add_argument("--weights", type=Path, help="a folder in which trained models are kept")
    options = parser.parse_args()
    text, rows = Text(), {}
    calibration, judge = text.spread(text.train, 4 * BATCH), text.spread(text.held_out, 8 * BATCH)
    for name in options.models:
        folder = options.weights / name if options.weights is not None else None
        if folder is not None and folder.exists():
            model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        else:
            model = built(name)
            print(f"{name}: {train(model, text, 1e-3, seconds=60 * options.minutes, first=0)} steps", flush=True)
            if folder is not None:
                model.save_pretrained(folder)
        found: dict[str, Row] = {}
        note(found, "whole", loss=held_out(model, judge), parameters_of_layers=in_layers(model))
        found |= of_estfx(model, text, calibration, judge, options.candidates)
        found |= of_torch_pruning(model, text, calibration, judge)
        scores = estfx.score(model, "activation", calibration)
        found |= speed(model, by_scores(model, calibration, 0.5, scores), calibration)
        rows |= {f"{name}: {row}": figures for row, figures in found.items()}
    write("cuts", vars(options) | {"weights": str(options.weights or "")}, rows)


if __name__ == "__main__":
    main()
