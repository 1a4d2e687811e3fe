"""`estfx.search`: the best part of a given size, without training."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from estfx.errors import EstfxError
from estfx.programs import analysed, compiler_of
from estfx.scoring import Scores, score
from estfx.searching.candidate_runs import CandidateRuns
from estfx.searching.candidates import Space
from estfx.searching.evolution import Evolution, Settings
from estfx.searching.search_result import SearchResult
from estfx.tracing import ATTRIBUTE, LayerPatterns, at_rest, in_mode, trace
from estfx.waiting import tell, working

__all__ = ["search"]

KINDS = ("parameters", "flops", "seconds")


@working("looking for the layers")
def search(
    model: nn.Module,
    batches: Iterable[Any],
    target: Mapping[str, float],
    *,
    scores: Scores | None = None,
    population: int = 100,
    kept: int = 10,
    generations: int = 50,
    levels: int = 8,
    round_to: int = 1,
    seed: int = 0,
    compile: bool = False,
    example_inputs: object = None,
    named_layers: LayerPatterns | None = None,
    state: str | Path | None = None,
    told: Callable[[int, float], object] = lambda generation, loss: None,
) -> SearchResult:
    """The part of a model, of a given size, that has the lowest loss on calibration text. Nothing is trained.

    It begins with the units that the scores say are best, the same share in every layer, and lets candidates evolve:
    the number of units by layer, which units, and which layers. Candidates with as many units run through the same
    programs, with other indices.

    Args:
        model: any decoder, transformed or not. It stays as it is.
        batches: calibration text of one shape, as the model's forward takes it; see `estfx.score`.
        target: the most that is to be left, as shares of the whole layers: `{"parameters": 0.7}`, `"flops"` of a
            forward pass, `"seconds"` of one as measured here; or several.
        scores: of units and layers; by default by activation, and layers by influence.
        population: candidates of a generation: half is mutated, three tenths have two parents, the rest is mutated
            more.
        kept: how many of all so far, the best ones, are the parents of the next generation.
        generations: after the first.
        levels: into how many steps a layer's numbers of units are divided. More of them need more programs.
        round_to: neurons are kept in multiples of it.
        seed: of all that is drawn.
        compile: the programs, with torch.compile.
        example_inputs: as `transform` takes them; by default the first batch.
        named_layers: as `transform(layers=…)` takes them.
        state: a file in which the search is written after each generation. If it is there, the search goes on.
        told: called after each generation, with its number and the lowest loss.

    Raises:
        EstfxError: a target that is none, or cannot be met; no text; a state of another search.

    Source: the outline, the numbers and the rates of mutation are those of arXiv 2409.17372, which cuts inside of
    heads; here heads are cut.
    """
    given = list(batches)
    settings = _checked(given, target, population, kept, generations, levels, round_to, seed)
    runtime = vars(model).get(ATTRIBUTE)
    named_layers = runtime.named if named_layers is None and runtime is not None else named_layers
    if scores is None:
        scores = score(model, "activation", given, example_inputs=example_inputs, named_layers=named_layers)
    begun = time.perf_counter()
    with at_rest(model), in_mode(model, training=False):
        tell("looking for the layers")
        decoder = trace(model, given[0] if example_inputs is None else example_inputs, layers=named_layers)
        variants = {name: analysed(traced, scales=False) for name, traced in decoder.traced.items()}
        runs = CandidateRuns(decoder, variants, given, compiler_of(compile, None, None, outside=False))
        sizes = {
            name: {role.name: role.axis.size for role in variants[info.program].roles.found}
            for name, info in decoder.infos.items()
        }
        space = _space(sizes, scores, levels, round_to)
        evolution = Evolution(space, runs, settings)
        evolution.check()
        fingerprint = _fingerprint(settings, space, given) if state is not None else {}
        seconds = _taken(evolution, state, fingerprint)
        whole = runs.loss(None)
        for each in evolution.run():
            tell(f"generation {each.generation} of {generations}, lowest loss {each.history[-1][1]:.4f}")
            if state is not None:
                spent = seconds + time.perf_counter() - begun
                _write(each, Path(state), fingerprint, spent)
            told(each.generation, each.history[-1][1])
    best = evolution.result()
    units = {
        name: {role: list(units) for role, units in roles.items() if len(units) < sizes[name][role]}
        for name, roles in best.units.items()
    }
    return SearchResult(
        units={name: roles for name, roles in units.items() if roles},
        layers=tuple(name for name in decoder.order if name not in best.skipped),
        skipped=tuple(name for name in decoder.order if name in best.skipped),
        sizes={name: roles for name, roles in sizes.items() if roles},
        loss=evolution.best[0][0],
        first_loss=evolution.first,
        whole_loss=whole,
        shares={kind: evolution.share(best, kind) for kind in target},
        history=tuple(evolution.history),
        candidates=evolution.judged,
        programs=runs.programs,
        compilations=runs.compilations,
        seconds=seconds + time.perf_counter() - begun,
    )


def _checked(
    batches: list[Any],
    target: Mapping[str, float],
    population: int,
    kept: int,
    generations: int,
    levels: int,
    round_to: int,
    seed: int,
) -> Settings:
    if not batches:
        raise EstfxError('a search needs calibration text: pass batches, such as [{"input_ids": tokens}].')
    if not target or (unknown := next((kind for kind in target if kind not in KINDS), None)) is not None:
        asked = f"target {unknown!r}" if target else "an empty target"
        raise EstfxError(f"{asked}: a target names shares of {', '.join(KINDS)}, such as {{'parameters': 0.7}}.")
    for kind, share in target.items():
        if not 0 < share < 1:
            raise EstfxError(f"target {kind}={share}: it is a share of the whole, above 0 and below 1.")
    least = {"population": (population, 1), "kept": (kept, 1), "generations": (generations, 0), "levels": (levels, 1)}
    for name, (number, smallest) in {**least, "round_to": (round_to, 1)}.items():
        if number < smallest:
            raise EstfxError(f"{name}={number}: it is {smallest} at least.")
    return Settings(dict(target), population, kept, generations, seed)


def _space(sizes: Mapping[str, Mapping[str, int]], scores: Scores, levels: int, round_to: int) -> Space:
    widths: dict[str, dict[str, tuple[int, ...]]] = {}
    known: dict[str, dict[str, list[float]]] = {}
    for name, roles in sizes.items():
        for role, size in roles.items():
            found = scores.units.get(name, {}).get(role)
            if found is None or len(found) != size:
                has = "none" if found is None else str(len(found))
                raise EstfxError(
                    f"the scores are of another model: of {size} {role} of layer `{name}` they have {has}."
                )
            multiple = round_to if role.split("_")[0] == "neurons" and size >= round_to else 1
            steps = {max(multiple, round(size * step / levels / multiple) * multiple) for step in range(1, levels + 1)}
            widths.setdefault(name, {})[role] = tuple(sorted({min(step, size) for step in steps} | {size}))
            known.setdefault(name, {})[role] = found.tolist()
    return Space(known, widths, {name: matters for name, matters in scores.layers.items() if name in sizes})


# -- the file ------------------------------------------------------------------------------------------------------


def _fingerprint(settings: Settings, space: Space, batches: list[Any]) -> dict[str, Any]:
    """What a search is made of, so that another is not gone on with. The number of generations may grow."""
    digest = hashlib.blake2b(digest_size=8)
    for leaf in torch.utils._pytree.tree_leaves(batches):
        digest.update(leaf.cpu().numpy().tobytes() if isinstance(leaf, torch.Tensor) else repr(leaf).encode())
    scored = hashlib.blake2b(json.dumps([space.scores, space.layers]).encode(), digest_size=8).hexdigest()
    own = {name: value for name, value in asdict(settings).items() if name != "generations"}
    widths = hashlib.blake2b(json.dumps(space.widths).encode(), digest_size=8).hexdigest()
    return {**own, "widths": widths, "scores": scored, "text": digest.hexdigest()}


def _taken(evolution: Evolution, state: str | Path | None, fingerprint: Mapping[str, Any]) -> float:
    """Takes the state that was written, if there is one; gives the seconds that it took."""
    if state is None or not Path(state).exists():
        return 0.0
    try:
        data = json.loads(Path(state).read_text(encoding="utf-8"))
        before, seconds = data["search"], float(data["seconds"])
        differing = [name for name in fingerprint if before.get(name) != fingerprint[name]]
        if not differing:
            evolution.take(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EstfxError(f"`{state}` holds no search of estfx: {type(error).__name__}: {error}.") from error
    if differing:
        raise EstfxError(f"`{state}` is of another search: {', '.join(differing)} differ. Name another file.")
    return seconds


def _write(evolution: Evolution, path: Path, fingerprint: Mapping[str, Any], seconds: float) -> None:
    beside = path.with_name(f".{path.name}.new")
    data = {"search": fingerprint, "seconds": seconds, **evolution.to_json()}
    beside.write_text(json.dumps(data) + "\n", encoding="utf-8")
    os.replace(beside, path)
