"""The adviser: what a language model is shown, asked and charged, and how its answers become a prior."""
