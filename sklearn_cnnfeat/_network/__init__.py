"""From a network's name or file to a compiled network that turns pixels into rows."""
