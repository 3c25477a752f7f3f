"""Integer matrix products, one class per backend."""
