"""What vectors are worth: metrics, distances, labels, a linear probe, zero-shot classes."""
