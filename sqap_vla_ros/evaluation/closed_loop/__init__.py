"""Success in closed loop on the embedded simulator, every recipe on the same episodes."""
