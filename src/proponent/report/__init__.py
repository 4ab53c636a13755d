"""What a person looks at: terminal summaries, tables, plots, the one-file HTML report."""
