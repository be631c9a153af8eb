"""The directive ``benchmark``: what a script of ``benchmarks/`` measured, from the file it wrote.

No figure of the site is typed by hand: tables, the machine and the versions are read from
``benchmarks/results/NAME.json`` while the site is built, and the picture is the one beside it.
Where that file is missing, the page says so.
"""

import ast
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
# What a file holds besides results.
_ABOUT = ("machine", "settings")
_MOST_ROWS = 200
# The width of a picture on the page, as a part of its pixels.
_SHOWN = 0.62


def describe(name, benchmarks=BENCHMARKS):
    """Return the text at the top of a script, in paragraphs."""
    tree = ast.parse((benchmarks / f"{name}.py").read_text(encoding="utf-8"))
    return ast.get_docstring(tree).split("\n\n")


def load(name, benchmarks=BENCHMARKS):
    """Return what a script wrote, or None where it has not run."""
    file = benchmarks / "results" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def describe_machine(machine):
    """Return the machine and the versions that figures are of, each as one line."""
    packages = machine.get("packages", {})
    facts = []
    for key, value in machine.items():
        if key == "packages" or value is None or isinstance(value, dict):
            continue
        if isinstance(value, list):
            value = " ".join(str(entry) for entry in value)
        facts.append(f"{_label(key)}: {value}")
    return ", ".join(facts), ", ".join(f"{name} {version}" for name, version in packages.items())


def tabulate(results):
    """Return results as tables: (title, header, rows), all of text.

    Every innermost dictionary of numbers is a row. What it lies in names it: the outermost key is
    the title of a table, those between are the first columns.
    """
    tables = {}
    for keys, record in _records({k: v for k, v in results.items() if k not in _ABOUT}, ()):
        title, *labels = keys or ("",)
        tables.setdefault((title, len(labels)), []).append((labels, record))
    return [
        (title.replace("_", " "), header, rows)
        for (title, n_labels), entries in tables.items()
        for header, rows in [_table(n_labels, entries)]
        if any(header)
    ]


def summarize_parity(results):
    """Return one row a network: the largest deviation over its layers."""
    rows = []
    for name, network in sorted(results["networks"].items()):
        layers = network.get("layers", [])
        rows.append(
            [
                name,
                str(len(layers)),
                *(
                    f"{max(layer[key] for layer in layers):.1e}"
                    if layers and all(layer.get(key) is not None for layer in layers)
                    else "-"
                    for key in ("openvino", "keras", "keras itself")
                ),
            ]
        )
    header = ["network", "layers", "OpenVINO", "engine='keras'", "Keras, another batch size"]
    return [("largest deviation from Keras, relative to the largest number", header, rows)]


def summarize_torch_parity(results):
    """Return one row a network: the largest distances over its layers."""
    keys = ("difference", "PyTorch to float64")
    rows = []
    for name, network in results["networks"].items():
        parts = [network.get("layers", []), network.get("onnx", [])]
        largest = [max((layer[key] for layer in parts[0]), default=None) for key in keys]
        largest.append(max((layer["difference"] for layer in parts[1]), default=None))
        cells = ["-" if value is None else f"{value:.1e}" for value in largest]
        rows.append([name, network.get("statistics", network.get("error", "")), *cells])
    header = ["network", "batch statistics", "to PyTorch", "PyTorch to float64", "to ONNX Runtime"]
    return [("largest difference, relative to the largest number", header, rows)]


def summarize_timm_sample(results):
    """Return the networks that are not converted, under a title that counts the others."""
    records = results["networks"]
    tried = {name: record for name, record in records.items() if "skipped" not in record}
    failed = [[name, record["error"]] for name, record in tried.items() if "error" in record]
    n_left = results["drawn"] - len(records)
    title = (
        f"{len(tried) - len(failed)} of {len(tried)} networks convert; {len(records) - len(tried)} "
        f"were too large, and {n_left} of {results['drawn']} names have not been tried"
    )
    return [(title, ["not converted", "why"], failed or [["none", ""]])]


# Where the general table would be long.
_SPECIAL = {
    "parity": summarize_parity,
    "torch_parity": summarize_torch_parity,
    "timm_sample": summarize_timm_sample,
}


def tables_of(name, results):
    """Return the tables of a benchmark."""
    return _SPECIAL.get(name, tabulate)(results)


def _is_row(value):
    """Whether a dictionary holds single values only, or such dictionaries as `summarize` makes."""
    return all(
        not isinstance(entry, (dict, list)) or _is_summary(entry) or _is_plain_list(entry)
        for entry in value.values()
    )


def _is_summary(value):
    return isinstance(value, dict) and {"median", "low", "high"} == set(value)


def _is_plain_list(value):
    return isinstance(value, list) and not any(isinstance(entry, (dict, list)) for entry in value)


def _records(value, keys):
    """Yield (keys, record) of everything in a nest of dictionaries and lists."""
    if isinstance(value, list):
        if _is_plain_list(value):
            return
        value = {str(i): entry for i, entry in enumerate(value)}
    if keys and _is_row(value):
        yield keys, value
        return
    single = {k: v for k, v in value.items() if not isinstance(v, (dict, list)) or _is_summary(v)}
    if single:
        yield (keys or ("all",)), single
    for key, entry in value.items():
        if key not in single and isinstance(entry, (dict, list)):
            yield from _records(entry, (*keys, key))


def _table(n_labels, entries):
    columns = list(dict.fromkeys(key for _, record in entries for key in record))
    columns = [key for key in columns if any(_shown(record.get(key)) for _, record in entries)]
    header = [""] * n_labels + [_label(key) for key in columns]
    rows = [
        [*(_LABELS.get(label, label) for label in labels), *_cells(record, columns)]
        for labels, record in entries[:_MOST_ROWS]
    ]
    return header, rows


# What the keys of the files are called for readers, where a unit or more than the words is missing.
_LABELS = {
    "ours": "sklearn-cnnfeat",
    "ours_bfloat16": "sklearn-cnnfeat, bfloat16",
    "ours_int8": "sklearn-cnnfeat, int8",
    "loop": "predict, one image at a time",
    "predict_batches": "predict, batches of 32",
    "frozen": "TensorFlow, frozen graph",
    "median": "images/s",
    "low": "images/s, lowest",
    "high": "images/s, highest",
    "difference": "largest relative difference",
    "set_up_seconds": "set-up, seconds",
    "warm_up_seconds": "warm-up, seconds",
    "peak_rss_mb": "peak memory, MB",
}


def _label(key):
    units = {"mb": "MB", "gb": "GB", "rss": "RSS", "gflop": "GFLOP", "gflops": "GFLOP/s"}
    return _LABELS.get(key) or " ".join(units.get(word, word) for word in key.split("_"))


def _cells(record, columns):
    return [_shown(record.get(key)) for key in columns]


def _shown(value):
    """Return a value as text, numbers with three digits or all of their whole part."""
    if value is None:
        return ""
    if _is_summary(value):
        low, high = _shown(value["low"]), _shown(value["high"])
        return f"{_shown(value['median'])} ({low} - {high})"
    if isinstance(value, list):
        return ""  # single measurements; the file has them
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    if value and abs(value) < 0.1:
        return f"{value:.2g}"
    return f"{value:,.{max(0, 3 - len(str(int(abs(value)))))}f}"


# --- Sphinx -----------------------------------------------------------------------------------


def setup(app):
    """Make the directive known to Sphinx."""
    from docutils import nodes
    from docutils.parsers.rst import Directive
    from PIL import Image

    def fold(html):
        return nodes.raw("", html, format="html")

    def paragraph(text):
        made = nodes.paragraph(text)
        for i, part in enumerate(text.split("`")):
            made += nodes.literal(part, part) if i % 2 else nodes.Text(part)
        return made

    def make_table(header, rows):
        group = nodes.tgroup(cols=len(header))
        group += [nodes.colspec(colwidth=1) for _ in header]
        head, body = nodes.thead(), nodes.tbody()
        for part, lines in ((head, [header]), (body, rows)):
            for line in lines:
                row = nodes.row()
                row += [nodes.entry("", paragraph(cell)) for cell in line]
                part += row
        group += [head, body]
        return nodes.table("", group)

    def make_picture(name, file):
        with Image.open(file) as opened:
            width = round(_SHOWN * opened.width)
        # What is wider than the window scrolls in it: labels keep a size at which they are read.
        frame = nodes.container(classes=["benchmark-picture"])
        frame += nodes.image(
            uri=f"../benchmarks/results/{file.name}",
            alt=f"The figures of benchmarks/{name}.py as a plot",
            width=f"{width}px",
        )
        return frame

    class Benchmark(Directive):
        """Show the figures of one script."""

        required_arguments = 1

        def run(self):
            """Return the description, the picture, and the figures folded away below it."""
            (name,) = self.arguments
            env = self.state.document.settings.env
            env.note_dependency(str(BENCHMARKS / "results" / f"{name}.json"))
            made = [paragraph(text) for text in describe(name)[:1]]
            results = load(name)
            if results is None:
                missing = nodes.note()
                missing += paragraph(
                    f"Not measured yet: benchmarks/results/{name}.json is not there. "
                    f"python benchmarks/{name}.py writes it."
                )
                return [*made, missing]
            picture = BENCHMARKS / "results" / f"{name}.png"
            if picture.exists():
                made.append(make_picture(name, picture))
                env.note_dependency(str(picture))
            machine, packages = describe_machine(results.get("machine", {}))
            made.append(fold("<details><summary>All figures, machine and versions</summary>"))
            made += [paragraph(f"Machine: {machine}."), paragraph(f"Versions: {packages}.")]
            for title, header, rows in tables_of(name, results):
                made += [nodes.rubric(title, title), make_table(header, rows)]
            return [*made, fold("</details>")]

    app.add_directive("benchmark", Benchmark)
    return {"parallel_read_safe": True}
