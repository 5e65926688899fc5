"""The study of histories of predictions: what keeping them gives, and where reuse pays."""
