"""Search among vectors: in a matrix, in an index on disk, in Milvus."""
