"""The run directory: atomic writer, manifest, lock, checkpoints."""
