"""The graph behind a Tensor, to look at."""

from .tensor import Node


def graph(tensor):
    """The graph behind ``tensor`` as DOT text, inputs on top (see it with ``dot -Tsvg``)."""
    def label(x):
        return f"{getattr(x, 'name', 'leaf')}\\n{'×'.join(map(str, x.shape)) or 'scalar'}"

    lines, seen, stack = ["digraph {", "  node [shape=box, fontname=monospace]"], set(), [tensor.node or tensor]
    while stack:
        x = stack.pop()
        if x in seen:
            continue
        seen.add(x)
        style = "" if isinstance(x, Node) else ", style=rounded"
        lines.append(f'  n{id(x)} [label="{label(x)}"{style}]')
        for edge in (e for e in getattr(x, "edges", ()) if e is not None):
            lines.append(f"  n{id(edge)} -> n{id(x)}")
            stack.append(edge)
    return "\n".join(lines + ["}"])
