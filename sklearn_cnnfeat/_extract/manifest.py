"""What an extraction is bound to, and how two of them differ."""

import json

# Entries of a manifest that follow from others, and are told as a change only for want of these.
_FOLLOW = ("row_shape", "heads", "feature_names", "columns", "label_dtype", "target_names")


def errors_of(manifest):
    return {int(position): reason for position, reason in manifest["errors"].items()}


def differences(before, now):
    """Say what differs between two manifests."""
    if before.get("n_images") != now["n_images"]:
        return [f"{before.get('n_images')} images then, {now['n_images']} now"]
    words = {
        "names": "the names of the images, or their order",
        "labels": "the labels",
        "steps": "the steps of the pipeline behind the network",
    }
    changes = []
    for name, value in now.items():
        old = before.get(name)
        if old == value:
            continue
        if name in words:
            changes.append(words[name])
        elif name == "recipe" and isinstance(old, list) and len(old) == len(value):
            for old_head, head in zip(old, value, strict=True):
                changes += [
                    f"{entry} was {_short(old_head.get(entry))}, is {_short(head[entry])}"
                    for entry in head
                    if old_head.get(entry) != head[entry]
                ]
        elif name == "recipe":
            layers = [[head["layer"] for head in heads] for heads in (old or [], value)]
            changes.append(f"layers were {_short(layers[0])}, are {_short(layers[1])}")
        elif name not in _FOLLOW:
            changes.append(f"{name} was {_short(old)}, is {_short(value)}")
    # What follows from others is told only where nothing else explains it.
    if not changes:
        changes = [name for name in now if before.get(name) != now[name]]
    return list(dict.fromkeys(changes))


def _short(value):
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:197] + "..."
