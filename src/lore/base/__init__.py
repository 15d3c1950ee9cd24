"""What every room may use: types that pass between them, random streams, files, plugins, errors."""
