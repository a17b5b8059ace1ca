"""Students over HTTP: what a running server does."""
