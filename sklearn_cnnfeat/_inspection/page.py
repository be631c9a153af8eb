"""The HTML file of `explore`: facts as JSON, pictures and maps as text, one script, one style."""

import html
import json
from base64 import b64encode
from importlib.resources import files

from sklearn_cnnfeat._files import replaced_whole

# In the file, names of photographs and classes are text that no browser takes for anything else.
_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def as_json(facts):
    """Return facts as JSON that may stand inside a script element."""
    text = json.dumps(facts, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for letter, escape in _ESCAPES.items():
        text = text.replace(letter, escape)
    # Names of files that are not UTF-8 hold lone surrogates.
    return text.encode("utf-8", "replace").decode("utf-8")


def write_page(to, facts, blobs):
    """Write the page, whole or not at all.

    The script reads `facts` as JSON, and `blobs`, pictures and maps by the name of their element,
    as lines of base64; these are written as they come.
    """
    folder = files("sklearn_cnnfeat._inspection") / "page_files"
    parts = {
        name: (folder / name).read_text(encoding="utf-8")
        for name in ("page.html", "explore.css", "explore.js")
    }
    before, after = parts["page.html"].split("<!-- data -->")
    title = html.escape(facts["title"])
    before = before.replace("{{title}}", title).replace("/* style */", parts["explore.css"])
    with replaced_whole(to, ".html") as path, open(path, "w", encoding="utf-8") as file:
        file.write(before)
        file.write(f'<script type="application/json" id="facts">{as_json(facts)}</script>\n')
        for name, lines in blobs.items():
            file.write(f'<script type="text/plain" id="{name}">')
            for k, data in enumerate(lines):
                file.write("\n" if k else "")
                file.write(b64encode(data).decode("ascii"))
            file.write("</script>\n")
        # Last, and not by replacement: a script may hold anything.
        start, end = after.split("/* script */")
        file.write(start + parts["explore.js"] + end)
