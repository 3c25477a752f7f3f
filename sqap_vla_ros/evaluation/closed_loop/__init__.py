"""Success in closed loop on the embedded simulator; every recipe runs the same episodes."""
