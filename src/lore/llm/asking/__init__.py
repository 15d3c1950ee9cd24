"""When to ask an adviser, and one ask from question to answer or named failure."""
