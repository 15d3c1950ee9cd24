"""Hydra's YAML files; a package, so that the installed command finds them from any folder."""
