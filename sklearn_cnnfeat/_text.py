"""Values as text, for messages."""


def first_few(values):
    """Return the first few values as text."""
    text = ", ".join(map(repr, values[:5]))
    return text + (", ..." if len(values) > 5 else "")
