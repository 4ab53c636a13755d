"""The audit: from a table of training data to what is wrong with it, checked by refitting."""
