"""Features of more images than memory holds: into a file, resumed after any interruption."""
