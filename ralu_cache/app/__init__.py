"""`ralu-cache app`: a page in the browser on which a full and an accelerated picture of the same seed are compared.

Imports every room but the engine, and of the front how a model is loaded and called; nothing imports it but the command
line. Gradio (extra `app`) is imported by `page` and `serve` alone.
"""
