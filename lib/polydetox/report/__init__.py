"""The report: results as tables and figures, the assembled Quarto book, and its two renderers."""
