"""Where results meet the disk: fingerprints, stages of a run, matrices written chunk by chunk."""
