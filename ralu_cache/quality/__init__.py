"""How good pictures are: likeness to references, and what they show of their prompts."""
