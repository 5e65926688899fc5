"""Sweeps: many settings over many prompts and seeds, their speed and quality, and what to choose of them."""
