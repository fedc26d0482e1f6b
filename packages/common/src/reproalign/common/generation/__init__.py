"""Generation: samplers, resumable sampling, best of n."""
