"""What of a model's size decides its cost, from its folder without its weights."""

import math
import re
from dataclasses import dataclass

from tutelage.models.checkpoints import ModelFolder

_EMBEDDING = re.compile(r"wte|wpe|\w*embed\w*|embeddings?")
_HEAD = re.compile(r"(lm_head|embed_out|output)\.weight")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a decoder."""

    parameters: int
    """Stored numbers."""
    body: int
    """Numbers that every token is multiplied with, head and embeddings aside."""
    head: int
    """Numbers of the head: vocabulary times width, tied or not."""
    layers: int
    """Decoder layers."""
    width: int
    """Numbers of a hidden state."""
    inner: int
    """Numbers in the middle of a layer's perceptron."""
    queries: int
    """Numbers of all query heads together."""
    keys: int
    """Numbers of all key heads together, and of all value heads."""
    vocabulary: int
    """Rows of the head."""

    @property
    def cached(self) -> int:
        """Numbers that a token keeps in the decoding cache."""
        return 2 * self.layers * self.keys

    def kept(self, *, checkpointing: bool) -> int:
        """Numbers that a token keeps for the backward pass, attention matrices aside.

        Two norms with their inputs, queries, keys and values, what attention gives, and four
        times the inner width; with `checkpointing` every layer's input and one layer's all.
        """
        layer = 6 * self.width + 2 * self.queries + 2 * self.keys + 4 * self.inner
        if checkpointing:
            return self.layers * self.width + layer
        return self.layers * layer


def shape_of(folder: ModelFolder) -> Shape:
    """The sizes that config.json and the headers of the weights tell.

    A model without weights here (it is at a server) counts as a Llama of these sizes.
    """
    width = folder.width or 1
    layers = folder.number("num_hidden_layers", "n_layer") or 1
    heads = folder.number("num_attention_heads", "n_head") or 1
    size = folder.number("head_dim") or width // heads
    key_heads = folder.number("num_key_value_heads") or heads
    inner = folder.number("intermediate_size", "n_inner", "ffn_dim") or 4 * width
    queries, keys = heads * size, key_heads * size
    head = folder.vocabulary * width
    if folder.tensors:
        counts = {name: math.prod(shape) for name, shape in folder.tensors.items()}
        parameters = sum(counts.values())
        outside = sum(
            count
            for name, count in counts.items()
            if _HEAD.fullmatch(name)
            or _EMBEDDING.fullmatch(name.removesuffix(".weight").rpartition(".")[2])
        )
        body = parameters - outside
    else:
        body = layers * (2 * width * (queries + keys) + 3 * width * inner)
        parameters = body + 2 * head
    return Shape(
        parameters=parameters,
        body=body,
        head=head,
        layers=layers,
        width=width,
        inner=inner,
        queries=queries,
        keys=keys,
        vocabulary=folder.vocabulary or 1,
    )
