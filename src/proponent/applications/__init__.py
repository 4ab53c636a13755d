"""Questions people ask of results: which rows are wrong, repeated, memorized, misleading."""
