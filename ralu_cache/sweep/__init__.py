"""Sweeps: many settings over many prompts and seeds, their speed and quality, and what to choose of them.

Uses the library as its users do, through `api`; imports no engine. Never imported by the rooms before it.
"""
