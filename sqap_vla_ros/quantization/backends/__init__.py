"""Integer matrix products: one class per backend, and the table that chooses between them."""
