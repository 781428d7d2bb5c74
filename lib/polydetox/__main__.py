"""``python -m polydetox`` is the command ``polydetox``."""

from polydetox.cli import main

raise SystemExit(main())
