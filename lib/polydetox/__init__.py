"""polydetox: reproduce, test and extend two papers on making language models less toxic."""

__version__ = "0.1.0"
