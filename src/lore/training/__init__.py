"""A run: options to objects, acting, learning, evaluation, checkpoints, the folder it leaves."""
