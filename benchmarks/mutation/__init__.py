"""Changes of the pure rooms by a machine, and which of them no test notices: `python -m benchmarks.mutation`."""
