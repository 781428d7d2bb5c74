"""How the packaged scorer was made: its head, and the candidates that it was compared with."""
