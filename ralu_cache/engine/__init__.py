"""What touches diffusers: the call, its scheduler, the hooks in the denoiser, the blocks, layers and attention of it.

A run belongs to one call of one pipeline, in one context; all that it changes hangs on that `Call`.
Imports nothing of `sweep`, `quality`, `cli` or the front; knows model classes by the adapter protocol only.
"""
