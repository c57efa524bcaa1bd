"""From a trace to numbers: metrics, sweeps and tasks, in pandas and plain Python; no torch on this floor."""
