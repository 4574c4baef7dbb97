"""The encoders: sizes, loss, checkpoints, settings, and how several processes share them."""
