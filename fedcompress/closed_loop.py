"""What may stand in a loop that feeds an encoder's own error back into its next input."""

from fedcompress.chain import Chain
from fedcompress.compressor import Compressor, all_inside
from fedcompress.errors import SpecError


def check_loop(owner: str, compressor: Compressor, may_expand: bool = False) -> None:
    """Raise `SpecError` unless ``owner`` may feed the error of ``compressor`` back.

    Parameters
    ----------
    owner : str
        Name of the compressor that closes the loop.
    compressor : Compressor
        What it is to stand around.
    may_expand : bool
        Whether stages whose error can exceed their input are stable in this loop.
    """
    for inner in all_inside(compressor):
        if inner.name == owner:
            raise SpecError(f"{owner}: stands twice around the same chain; write it once")
        if inner.corrects:
            raise SpecError(
                f"{owner}: cannot stand around {inner.name}, since both correct an update for "
                "earlier rounds; leave one of them out"
            )
        if inner.expands and not may_expand:
            raise SpecError(
                f"{owner}: {inner.name} may err by more than what it is given, and the residual "
                f"would grow without bound; leave {owner} out"
            )
        for stage in inner.stages if isinstance(inner, Chain) else ():
            if stage.expands and not may_expand:
                raise SpecError(
                    f"{owner}: {stage} may err by more than what it is given, and the residual "
                    f"would grow without bound; {stage.contracting}"
                )
