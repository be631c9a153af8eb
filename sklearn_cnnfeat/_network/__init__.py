"""From a network's name or file to a compiled program that turns pixels into rows."""
