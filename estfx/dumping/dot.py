"""Graphs of a stage for Graphviz, and drawn by it."""

from __future__ import annotations

import shutil
import subprocess

from estfx.dumping.records import GraphRecord, KindRecord, NodeRecord, record_of
from estfx.dumping.stage_graphs import StageGraphs
from estfx.errors import EstfxError
from estfx.graphs import COLORS, sort_of

__all__ = ["dot", "edges", "svg"]


def dot(graphs: StageGraphs) -> str:
    """A digraph with a cluster for each kind, and in it one for each branch."""
    record = record_of(graphs)
    lines = [
        "digraph estfx {",
        f"    label={_quoted(f'{record.model}, stage {record.stage} of {record.num_stages}')};",
        '    labelloc="t"; fontname="sans-serif"; compound=true;',
        '    node [shape=box, style="filled,rounded", fillcolor="white", fontname="sans-serif", fontsize=10];',
    ]
    for number, kind in enumerate(record.kinds):
        lines += _kind(kind, f"k{number}")
    return "\n".join([*lines, "}"]) + "\n"


def svg(graphs: StageGraphs) -> str:
    """The digraph, laid out by Graphviz's program `dot`."""
    program = shutil.which("dot")
    if program is None:
        raise EstfxError(
            "the format svg is drawn by Graphviz's program `dot`, which is not installed (on Debian: apt install "
            "graphviz). --format html needs no program, and --format dot writes what `dot -Tsvg` takes."
        )
    done = subprocess.run([program, "-Tsvg"], input=dot(graphs), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EstfxError(f"Graphviz could not draw the graph: {done.stderr.strip()}")
    return done.stdout


def _kind(kind: KindRecord, key: str) -> list[str]:
    """Nodes and edges stand outside of the clusters, which name them: Netron reads no statement within a subgraph."""
    lines = []
    for node in kind.graph.nodes:
        given = node.op in ("input", "weight")
        name = (node.target or node.name) if given else node.text.partition("(")[0]
        label = "\\n".join(filter(None, [name, node.type, node.axes, node.source]))
        shape = "ellipse" if given else "box"
        lines.append(f"    {_id(key, node.name)} [label={_quoted(label)}, shape={shape}, fillcolor={_color(node)}];")
    lines.append(f"    {_id(key, 'return')} [label=return, shape=ellipse];")
    lines += [f"    {_id(key, one)} -> {_id(key, other)};" for one, other in edges(kind.graph)]
    lines += [f"    {_id(key, name)} -> {_id(key, 'return')};" for name in _names(kind.graph.returns)]
    roles = ", ".join(f"{role} {kept} of {size}" for role, (kept, size) in kind.roles.items())
    lines += [f"    subgraph cluster_{key} {{", f"        label={_quoted(f'{kind.name}: {roles}')}; color=gray;"]
    lines += [f"        {_id(key, name)};" for name in ("return", *(n.name for n in kind.graph.nodes))]
    for number, (title, names) in enumerate(kind.graph.branches):
        members = " ".join(f"{_id(key, name)};" for name in names)
        label = f"label={_quoted(title)}; color=lightgray;"
        lines.append(f"        subgraph cluster_{key}_{number} {{ {label} {members} }}")
    return [*lines, "    }"]


def edges(graph: GraphRecord) -> list[tuple[str, str]]:
    """From each value to those that are made of it."""
    return [(one, node.name) for node in graph.nodes for one in dict.fromkeys(_names([node.args, node.kwargs]))]


def _names(value: object) -> list[str]:
    if isinstance(value, dict):
        if isinstance(name := value.get("node"), str):
            return [name]
        return [name for each in value.values() for name in _names(each)]
    return [name for each in value for name in _names(each)] if isinstance(value, (list, tuple)) else []


def _color(node: NodeRecord) -> str:
    return _quoted(COLORS[sort_of(node.axes)])


def _id(key: str, name: str) -> str:
    return f'"{key}/{name}"'


def _quoted(text: str) -> str:
    inner = text.replace('"', '\\"')
    return f'"{inner}"'
