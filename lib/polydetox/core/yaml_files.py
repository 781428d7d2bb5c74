"""YAML files of the project, read strictly: what is wrong with one is said with its file and line."""

from __future__ import annotations

import copy
import re
from collections.abc import Hashable
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from polydetox.core import paths
from polydetox.core.errors import UserError
from polydetox.core.parameters import validated


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice; PyYAML itself silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor`, whose keys may be given again
                continue
            key = self.construct_object(key_node, deep=deep)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _plain_number(loader: _UniqueKeyLoader, node: yaml.ScalarNode) -> Any:
    """A number; 010 and 1:30, which YAML 1.1 reads as 8 and 90, are refused."""
    value = str(loader.construct_scalar(node))
    if re.fullmatch(r"[-+]?(0[0-9_]+|[0-9_]+(:[0-9.]+)+)", value):
        problem = f"{value} is not the number that it looks like; write that number, or quotes around a text"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    kind = node.tag.rpartition(":")[2]
    return getattr(loader, f"construct_yaml_{kind}")(node)


for _kind in ("int", "float"):
    _UniqueKeyLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _plain_number)


def read_yaml(path: Path) -> Any:
    """Read a YAML file; what is wrong with it is a ``UserError`` that names file and line."""
    try:
        status = path.stat()
        # The workflow asks for the same model file thousands of times; a parse takes milliseconds, a copy nothing.
        return copy.deepcopy(_parsed(path.resolve(), status.st_mtime_ns, status.st_size))
    except FileNotFoundError:
        raise UserError(f"{paths.relative(path)}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{paths.relative(path)}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{paths.relative(path)}{line}: not valid YAML: {problem}") from None
    except OSError as error:
        raise UserError(f"{paths.relative(path)}: cannot be read ({error.strerror})") from None
    # Of a date or number that there is not, of deep nesting.
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{paths.relative(path)}: not valid YAML: {type(error).__name__}: {error}") from None


def read_checked(kind: Any, path: Path, **more: Any) -> Any:
    """Read a YAML file of keys and values, and ``more`` of them, into a class or another type."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{paths.relative(path)}: expected keys and values, see the other files in its folder")
    return validated(kind, {**more, **content}, paths.relative(path))


@lru_cache(maxsize=256)
def _parsed(path: Path, modified: int, size: int) -> Any:
    """The content of a file as it is at this time and size."""
    return yaml.load(path.read_text("utf-8"), _UniqueKeyLoader)
