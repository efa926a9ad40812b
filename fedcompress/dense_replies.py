"""Replies that hold the whole model again, as a strategy inside reads them."""

from flwr.app import Message

from fedcompress import protocol
from fedcompress.flower_adapter import with_content
from fedcompress.incoming import Answer, read_payload
from fedcompress.memories import Memories
from fedcompress.sent import Sent


def dense_reply(answer: Answer, sent: Sent, server_round: int) -> Message:
    """Decode an answer to the model that the client trained.

    Parameters
    ----------
    answer : Answer
        A reply that verified; where its parts were let go, its payload is read again.
    sent : Sent
        What its node was sent.
    server_round : int
        The round.

    Returns
    -------
    Message
        The reply with its arrays dense; of a client without compressor the reply itself.
    """
    if sent.compressor is None:
        return answer.reply
    if not answer.parts:
        answer = read_payload(answer.reply, sent, server_round, Memories(0))
    model = protocol.advance(sent.reference, answer.dense())
    # Integers go in as float64, which holds every counter exactly: rules such as q-FedAvg
    # compute in place and fail on integer arrays.
    floats = {name: x if x.is_floating_point() else x.double() for name, x in model.items()}
    return with_content(answer.reply, protocol.with_model(answer.reply.content, floats))
