"""Training of M3 and CLaMP 3: pieces, batches, objectives, state, the one loop."""
