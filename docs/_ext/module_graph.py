"""Draw the dependency diagram of the architecture page from the imports of the package.

A node is a module, or a package of modules. It is drawn on the lowest level above all nodes that it
imports. ``python docs/_ext/module_graph.py`` writes ``docs/images/modules.svg``.
"""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "sklearn_cnnfeat"
PICTURE = ROOT / "docs" / "images" / "modules.svg"
# These gather names for users and contain nothing.
_LEFT_OUT = {"__init__.py", "__main__.py"}
_COLORS = ["#fdf3dc", "#e6f5e6", "#e8f0fb", "#efe8fb", "#f4f4f4"]
# Not plain spaces, of which only one is drawn.
_BETWEEN = "\u00a0\u00a0 "
_WIDTH, _ROW, _GAP, _LETTER = 760, 22, 14, 7.4


def modules():
    """Return, for each module, the modules that it imports."""
    graph = defaultdict(set)
    for path in sorted(PACKAGE.rglob("*.py")):
        module = _module(path.relative_to(PACKAGE).parts)
        if module in _LEFT_OUT:
            continue
        graph[module] |= {other for other in _imported(path) if other not in (module, *_LEFT_OUT)}
    return dict(graph)


def _module(parts):
    return parts[0] if parts[0].endswith(".py") else f"{parts[0]}/"


def _imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == PACKAGE.name:
            for alias in node.names:
                names = [*node.module.split(".")[1:], alias.name]
                if (PACKAGE / names[0]).is_dir():
                    yield f"{names[0]}/"
                elif (PACKAGE / f"{names[0]}.py").exists():
                    yield f"{names[0]}.py"


def levels_of(graph):
    """Return the modules of each level, lowest first; a circular import is an error."""
    level = {}
    for module in TopologicalSorter(graph).static_order():
        level[module] = 1 + max((level[other] for other in graph[module]), default=-1)
    n_levels = 1 + max(level.values())
    return [sorted(name for name in level if level[name] == n) for n in range(n_levels)]


def draw(levels):
    """Return the SVG as text."""
    parts, y = [], 12
    for n in reversed(range(len(levels))):
        lines = _wrap(levels[n])
        height = _ROW * len(lines) + _GAP
        parts.append(
            f'<rect x="40" y="{y}" width="{_WIDTH - 52}" height="{height}" rx="6" '
            f'fill="{_COLORS[n % len(_COLORS)]}" stroke="#777"/>'
            f'<text x="20" y="{y + height / 2 + 5:g}" text-anchor="middle" class="s">{n + 1}</text>'
        )
        for i, line in enumerate(lines):
            place = f'x="{_WIDTH / 2 + 14:g}" y="{y + _ROW * (i + 1):g}"'
            parts.append(f'<text {place} text-anchor="middle">{_BETWEEN.join(line)}</text>')
        y += height + 10
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 2}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="14" xml:space="preserve">\n'
        "<style>.s{font-size:11px;fill:#555}</style>\n"
        f'<rect width="{_WIDTH}" height="{y + 2}" fill="white"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def _wrap(names):
    lines = [[]]
    for name in names:
        if sum(len(other) + 3 for other in (*lines[-1], name)) * _LETTER > _WIDTH - 80:
            lines.append([])
        lines[-1].append(name)
    return lines


if __name__ == "__main__":
    PICTURE.write_text(draw(levels_of(modules())), encoding="utf-8")
