"""How good pictures are: likeness to references, and what they show of their prompts.

Judges arrays of pictures and prompts. Imports no other room; optional packages only when a metric asks for them.
"""
