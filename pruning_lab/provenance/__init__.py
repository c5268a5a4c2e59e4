"""Record what a result was computed from: source code, files, environment variables."""
