"""Where metrics go: JSONL (the record), W&B, the terminal."""
