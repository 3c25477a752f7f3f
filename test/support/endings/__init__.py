"""How processes end: interrupted where it is hard to hit, and killed, with what they leave."""
