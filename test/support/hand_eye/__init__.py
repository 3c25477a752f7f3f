"""A synthetic camera, tool and tag, and recordings of them."""
