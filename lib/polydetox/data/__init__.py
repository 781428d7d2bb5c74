"""The data: where it lies, how it is fetched, and its readers."""
