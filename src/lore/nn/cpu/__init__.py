"""Kernels for a CPU, and what builds them on first use."""
