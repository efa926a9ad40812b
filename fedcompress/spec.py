"""Spec strings: one frozen grammar for every place where a compressor is named.

::

    spec       = link ("|" link)*            a chain of stages, ended by a coder
               | wrapper(spec)               such as error_feedback(top_k(0.01) | entropy())
    link       = name "(" arguments ")"
    arguments  = literals, positional or by keyword

Parsed as a syntax tree and never evaluated. ``parse(str(c)) == c`` for every compressor.
"""

import ast
import inspect
from collections.abc import Callable
from functools import lru_cache

from fedcompress.chain import Chain, chain
from fedcompress.checks import near
from fedcompress.coder import Coder
from fedcompress.compressor import Compressor
from fedcompress.errors import FedcompressError, SpecError
from fedcompress.registry import coders, compressors, stages
from fedcompress.stage import Stage

_MOST_CHARACTERS = 4096


def parse(spec: object) -> Compressor:
    """Make the compressor that a spec string names.

    Parameters
    ----------
    spec : str, Compressor, Stage or Coder
        Such as ``"error_feedback(top_k(0.01) | quantize(4) | entropy())"``; a compressor is
        given back as it is, a lone stage or coder becomes a chain. A chain without a coder
        ends with ``entropy()``.

    Raises
    ------
    SpecError
        If the string is not in the grammar, names something unknown, or a setting or an order
        cannot work.

    Examples
    --------
    >>> parse("top_k(0.01)|quantize(4)")
    top_k(0.01) | quantize(4) | entropy()
    """
    if isinstance(spec, Compressor):
        return spec
    if isinstance(spec, Stage | Coder):
        return chain(spec)
    if not isinstance(spec, str):
        raise SpecError(f"spec: expected a string, got {type(spec).__name__}")
    return _parse(spec)


@lru_cache(maxsize=256)
def _parse(spec: str) -> Compressor:
    if not spec.isprintable():
        raise SpecError(f"spec: {spec!r} holds characters that cannot be written")
    if len(spec) > _MOST_CHARACTERS:
        raise SpecError(f"spec: {len(spec)} characters are more than {_MOST_CHARACTERS}")
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
        part = _build(tree, spec)
        str(part).encode()
    except (SyntaxError, RecursionError, MemoryError, ValueError, OverflowError) as error:
        if isinstance(error, FedcompressError):
            raise
        raise SpecError(
            f"spec: cannot read {spec!r}; write for example 'top_k(0.01) | quantize(4) | entropy()'"
        ) from error
    return part if isinstance(part, Compressor) else chain(part)


def _build(node: ast.expr, spec: str) -> Compressor | Stage | Coder:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return chain(*(_link(link, spec) for link in _links(node)))
    if isinstance(node, ast.Call):
        return _call(node, spec)
    if isinstance(node, ast.Name):
        raise SpecError(f"spec: {node.id} in {spec!r} needs parentheses; write {node.id}()")
    raise SpecError(
        f"spec: {ast.unparse(node)!r} in {spec!r} is not a call; "
        "write for example 'top_k(0.01) | entropy()'"
    )


def _links(node: ast.expr) -> list[ast.expr]:
    links: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        links.append(node.right)
        node = node.left
    return [node, *reversed(links)]


def _link(node: ast.expr, spec: str) -> Stage | Coder:
    part = _build(node, spec)
    if isinstance(part, Compressor):
        name = "a chain in parentheses" if isinstance(part, Chain) else part.name
        raise SpecError(
            f"spec: {name} cannot be a link of a chain in {spec!r}; "
            "put it around the whole chain, as in error_feedback(top_k(0.01) | entropy())"
        )
    return part


def _call(node: ast.Call, spec: str) -> Compressor | Stage | Coder:
    if not isinstance(node.func, ast.Name):
        raise SpecError(f"spec: {ast.unparse(node.func)!r} in {spec!r} is not a plain name")
    name = node.func.id
    arguments = [_argument(argument, spec) for argument in node.args]
    keywords: dict[str, object] = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in keywords:
            raise SpecError(f"spec: {name} in {spec!r} takes each setting once, by name")
        keywords[keyword.arg] = _argument(keyword.value, spec)
    make: Callable[..., Compressor | Stage | Coder] | None = (
        stages().get(name) or coders().get(name) or compressors().get(name)
    )
    if make is None:
        known = [*stages(), *coders(), *compressors()]
        raise SpecError(f"spec: unknown stage {name!r} in {spec!r}; {near(name, known)}")
    try:
        return make(*arguments, **keywords)
    except TypeError as error:
        settings = ", ".join(inspect.signature(make).parameters) or "nothing"
        raise SpecError(
            f"{name}: cannot take these settings in {spec!r}; it takes: {settings}"
        ) from error


def _argument(node: ast.expr, spec: str) -> object:
    if isinstance(node, ast.Call | ast.BinOp | ast.Name):
        return _build(node, spec)
    if isinstance(node, ast.Dict):
        pairs: dict[object, object] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if not isinstance(key, ast.Constant) or key.value in pairs:
                raise SpecError(f"spec: patterns in {spec!r} are strings, each written once")
            pairs[key.value] = _argument(value, spec)
        return pairs
    return ast.literal_eval(node)
