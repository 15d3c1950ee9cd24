"""Mathematics that takes numbers, not options: layers, distributions, optimiser, ensembles."""
