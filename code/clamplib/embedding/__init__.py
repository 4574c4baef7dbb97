"""From items to vectors: reading, sequences, segments, the encoder, folders of files, the cache."""
