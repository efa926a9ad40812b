"""A small character transformer that predicts the next character of a window."""

from typing import cast, final

from torch import Tensor, nn
from torch.nn import functional as F

from fedcompress.errors import ConfigError
from simulations.models.blueprint import Blueprint

HEAD_SIZE = 16
_WIDENING = 4  # of the feed-forward layer, over the stream
_INITIAL_DEVIATION = 0.02  # of embeddings, as in GPT-2


@final
class Attention(nn.Module):
    """Attention with query, key and value layers of their own, so that heads can be pruned."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Linear(size, heads * HEAD_SIZE)
        self.key = nn.Linear(size, heads * HEAD_SIZE)
        self.value = nn.Linear(size, heads * HEAD_SIZE)
        self.out = nn.Linear(heads * HEAD_SIZE, size)

    def forward(self, asking: Tensor, told: Tensor) -> Tensor:
        """Map (batch, places, size), and what is attended to, to (batch, places, size)."""
        parts = (self.query(asking), self.key(told), self.value(told))
        # The number of heads is told from the layer, which pruning may have narrowed.
        query, key, value = (part.unflatten(2, (-1, HEAD_SIZE)).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(query, key, value)
        return cast("Tensor", self.out(seen.transpose(1, 2).flatten(2)))


@final
class Block(nn.Module):
    """Attention, then two dense layers, each behind a normalisation and beside a shortcut."""

    def __init__(self, size: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(size)
        self.attention = Attention(size, heads)
        self.dense_norm = nn.LayerNorm(size)
        self.widen = nn.Linear(size, inner)
        self.narrow = nn.Linear(inner, size)

    def forward(self, x: Tensor, last_only: bool = False) -> Tensor:
        """Map (batch, places, size) to the same, or to its last place alone."""
        told = self.attention_norm(x)
        asking = told
        if last_only:
            x, asking = x[:, -1:], told[:, -1:]
        x = x + self.attention(asking, told)
        return x + cast("Tensor", self.narrow(F.relu(self.widen(self.dense_norm(x)))))


@final
class CharacterTransformer(nn.Module):
    """Embeddings, blocks of attention, and a dense layer on the last place.

    After Vaswani et al. (2017), normalised before each layer. ``hidden`` gives one equal size for
    each block, that of the stream between them; heads have 16 units. ``width`` scales what lies
    inside of blocks, heads and feed-forward units, and not the stream: what a block leaves out of
    itself is then as if it were 0, also to normalisation.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        if len(blueprint.data_shape) != 1:
            raise ConfigError(
                "model: transformer takes windows of characters, got samples of shape "
                f"{blueprint.data_shape}; use mlp, lenet, resnet or conv4"
            )
        if not blueprint.hidden or len(set(blueprint.hidden)) > 1:
            raise ConfigError(
                f"model: transformer needs blocks of one size, got {blueprint.hidden}; "
                "did you mean (64, 64)?"
            )
        size = blueprint.hidden[0]
        heads = blueprint.scaled(max(1, size // HEAD_SIZE))
        inner = blueprint.scaled(_WIDENING * size)
        self.characters = nn.Embedding(blueprint.num_classes, size)
        self.places = nn.Embedding(blueprint.data_shape[0], size)
        for embedding in (self.characters, self.places):
            nn.init.normal_(embedding.weight, std=_INITIAL_DEVIATION)
        self.blocks = nn.ModuleList(Block(size, heads, inner) for _ in blueprint.hidden)
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, blueprint.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (batch, window) int64 to logits (batch, vocabulary)."""
        stream = self.characters(x) + self.places.weight
        for number, block in enumerate(self.blocks, 1):
            # Only the last place is asked for its next character.
            stream = block(stream, last_only=number == len(self.blocks))
        return cast("Tensor", self.head(self.norm(stream[:, -1])))
