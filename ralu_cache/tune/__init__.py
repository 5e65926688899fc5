"""Choosing settings for a model: so far, the calibration of TeaCache's polynomial.

Uses the library as its users do, through `api`; imports no engine. Never imported by the rooms before it.
"""
