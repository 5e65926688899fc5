"""What was computed, and what it is still worth: marked features, ledger, layer caches, key-value memory, forecasts.

Pure: imports `plane` alone, and never diffusers, transformers or matplotlib.
"""
