"""A run as the chapters and the report read it, and what their tables and figures share."""
