"""Attention of any form: projections, positions, norms, gates and sinks around a core."""

from __future__ import annotations

import torch
from drawn_decoders.across import across_heads
from drawn_decoders.convolutions import Causal
from drawn_decoders.cores import attended
from drawn_decoders.form import LONGEST, AttentionForm
from drawn_decoders.positions import allowed, angles, buckets, distances, rotated, rotated_size, slopes
from drawn_decoders.projections import Output, Projection
from drawn_decoders.units import Norm, Units, WithUnits, places, share, weight
from torch import nn
from torch.nn import functional as F

__all__ = ["Attention", "Heads"]

Tables = tuple[torch.Tensor, ...] | None  # cosines and sines, a bias, or buckets


class Heads(WithUnits):
    """What any attention has once queries, keys and values are there: positions, core, norm, gate and output."""

    def __init__(self, form: AttentionForm, hidden: int, rotated: int = 0) -> None:
        super().__init__()
        self.form = form
        self.queries = form.heads * form.group
        self.rotated = rotated or rotated_size(form)
        width = self.queries * form.value_size
        self.out = Output(form.output, self.queries, form.value_size, hidden, form.bias)
        if form.gate != "none":
            self.gate = nn.Linear(hidden, width if form.gate == "each channel" else self.queries)
        if form.output_norm != "none":
            self.output_norm = Norm(form.value_size if form.output_norm == "each head" else width)
        match form.positions:
            case "relative":
                self.bias = nn.Embedding(2 * LONGEST - 1, self.queries)
            case "table":
                self.bias_table = weight(self.queries, 2 * LONGEST - 1)
            case "slopes":
                self.hold(slopes=slopes(self.queries))
            case "none":
                pass
            case _:
                cos, sin = angles(self.rotated, LONGEST)
                self.hold(cos=cos, sin=sin)
        if form.sinks == "column":
            self.sinks = weight(self.queries)
        elif form.sinks == "keys":
            self.key_sinks, self.value_sinks = (
                weight(form.heads, 1, form.key_size),
                weight(form.heads, 1, form.value_size),
            )
        self.talking = weight(self.queries, self.queries) if form.across == "talking" else None
        self.remembers = False
        self.last: torch.Tensor | None = None
        self.held: torch.Tensor | None = None  # a plain tensor, one number for each of the query heads

    def hold(self, **tables: torch.Tensor) -> None:
        for name, table in tables.items():
            if self.form.tables == "buffer":
                self.register_buffer(name, table)
            elif self.form.tables == "tensor":
                setattr(self, name, table)

    def units(self) -> list[Units]:
        form, (path, dim) = self.form, Output.closing[self.form.output]
        key, size = ("heads", form.heads) if form.heads > 1 else ("groups", form.group)
        if form.across == "talking":  # what heads are mixed into closes where they did
            own = Units("heads", size, "talking", key, 0)
            return [own, Units("neurons", self.queries, f"out.{path}", "talked", dim)]
        if form.across == "first added" and 1 in (form.heads, form.group):  # the first is never left out
            key, size = "others", size - 1
        return [Units("heads", size, f"out.{path}", key, dim)]

    def mask(self) -> torch.Tensor | None:
        """`total / kept` for each of the query heads; None for the whole."""
        kept, form = self.kept, self.form
        if not kept.keys() - {"talked"}:
            return None
        if "others" in kept:
            return torch.cat([torch.ones(1, dtype=torch.float64), share(self.queries - 1, kept["others"])])
        grid = torch.ones(form.heads, form.group, dtype=torch.float64)
        if "heads" in kept:
            grid *= share(form.heads, kept["heads"])[:, None]
        else:
            grid *= share(form.group, kept["groups"])
        return (grid.T if form.expansion == "tile" else grid).reshape(-1)

    def mask_of_keys(self) -> torch.Tensor | None:
        """Likewise for the heads of keys."""
        if "heads" in self.kept:
            return share(self.form.heads, self.kept["heads"])
        return self.mask() if self.form.heads > 1 else None

    def turned(self, q: torch.Tensor, k: torch.Tensor, tables: Tables) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys [b, h, t, d], rotated if the form says so."""
        size, length = self.rotated, q.shape[2]
        if not size:
            return q, k
        if self.form.tables == "given":
            assert tables is not None
            cos, sin = tables
        elif self.form.tables == "computed":
            cos, sin = angles(size, length)
        else:
            cos, sin = self.cos[:length], self.sin[:length]
        return rotated(self.form.positions, q, cos, sin), rotated(self.form.positions, k, cos, sin)

    def scores_bias(self, length: int, tables: Tables) -> torch.Tensor | None:
        """What is added to the scores, [h, t, s]."""
        given, kind = self.form.tables == "given", self.form.positions
        if kind == "slopes":
            if given:
                assert tables is not None
                return tables[0]
            own = slopes(self.queries) if self.form.tables == "computed" else self.slopes
            return own[:, None, None] * distances(length)
        if kind not in ("relative", "table"):
            return None
        numbers = tables[0] if given and tables is not None else buckets(length)
        return self.bias(numbers).permute(2, 0, 1) if kind == "relative" else self.bias_table[:, numbers]

    def mixed(
        self,
        x: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        may: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """Of queries, keys and values [b, h, t, d], and the stream, what goes back into the stream."""
        form, (b, t, _) = self.form, x.shape
        if may is None and (form.masking != "causal" or form.window or bias is not None or form.sinks == "keys"):
            may = allowed(t, form.window)
        if form.sinks == "keys":
            k, v = (
                torch.cat([sink.expand(b, *sink.shape), y], 2)
                for sink, y in ((self.key_sinks, k), (self.value_sinks, v))
            )
            may = F.pad(may, (1, 0), value=True)
            bias = None if bias is None else F.pad(bias, (1, 0))
        mixed, weights = attended(form, q, k, v, may, bias, self.sinks if form.sinks == "column" else None)
        if self.remembers:
            self.last = mixed if weights is None else weights
        mixed = mixed.transpose(1, 2)
        if self.held is not None:
            mixed = mixed * self.held[:, None]
        mask = self.mask()
        if self.talking is not None and mask is not None:
            mixed = mixed * mask[:, None]
        mixed = across_heads(form.across, mixed, places(mask, 1), self.talking)
        if self.talking is not None:
            mask = share(self.queries, self.kept["talked"]) if "talked" in self.kept else None
        if form.output_norm == "each head":
            mixed = self.output_norm(mixed)
        if form.gate == "each head":
            mixed = mixed * self.gate(x).sigmoid()[..., None]
        mixed = mixed.reshape(b, t, -1)
        if form.output_norm == "all heads":
            mixed = self.output_norm(mixed, places(mask, form.value_size))
        if form.gate == "each channel":
            mixed = mixed * self.gate(x).sigmoid()
        return mixed if mask is None else mixed * mask.repeat_interleave(form.value_size)


class Attention(Heads):
    """Multi-head, grouped or multi-query attention."""

    def __init__(self, form: AttentionForm, hidden: int) -> None:
        super().__init__(form, hidden)
        self.project = Projection(form, hidden)
        keys, queries = form.heads * form.key_size, self.queries * form.key_size
        if form.query_norm != "none":
            own = form.query_norm == "own"
            shapes = ((self.queries, form.key_size), (form.heads, form.key_size)) if own else ((queries,), (keys,))
            if form.query_norm == "each head":
                shapes = ((form.key_size,), (form.key_size,))
            self.q_norm, self.k_norm = (Norm(*shape) for shape in shapes)
        if form.convolved:
            self.q_filter, self.k_filter = Causal(queries), Causal(keys)

    def forward(self, x: torch.Tensor, may: torch.Tensor | None = None, tables: Tables = None) -> torch.Tensor:
        return self.out(self.before_output(x, may, tables))

    def before_output(self, x: torch.Tensor, may: torch.Tensor | None, tables: Tables) -> torch.Tensor:
        form, (b, t, _) = self.form, x.shape
        q, k, v = self.project(x)
        if form.convolved:
            q, k = (conv(y.reshape(b, t, -1)).view(y.shape) for conv, y in ((self.q_filter, q), (self.k_filter, k)))
        if form.query_norm in ("each head", "own"):
            q, k = self.q_norm(q), self.k_norm(k)
        elif form.query_norm == "all heads":
            q = self.q_norm(q.reshape(b, t, -1), places(self.mask(), form.key_size)).view(q.shape)
            k = self.k_norm(k.reshape(b, t, -1), places(self.mask_of_keys(), form.key_size)).view(k.shape)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        q, k = self.turned(q, k, tables)
        return self.mixed(x, q, k, v, may, self.scores_bias(t, tables))
