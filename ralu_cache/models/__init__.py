"""The embedded models: small, really trained, package data in the folders `ralu_cache/tiny_*`.

Imports no other room; diffusers only when a model is loaded.
"""
