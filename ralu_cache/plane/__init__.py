"""Where tokens are: canvas, token maps, transitions, noise schedules, regions, plans, guidance intervals, presets.

Pure: tensors and frozen dataclasses. Imports no other room, and never diffusers, transformers or matplotlib.
"""
