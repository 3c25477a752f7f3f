"""Sections of a recipe, and what is wrong with them; `recipe` joins them."""
