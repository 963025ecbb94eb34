"""Any transformers AutoModel as text encoder, and its tokenizer."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from xmodal.data.strings import refuse_string
from xmodal.data.tokenized import tokenizer_identity
from xmodal.data.vocabulary import TokenBatch
from xmodal.encoders.base import TextEncoder, check_dropout
from xmodal.numerics import DropShare, Size, normalize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class BERTEncoder(TextEncoder):
    """A transformer over subwords and a linear layer into the joint space, one state a subword.

    A caption longer than the transformer has positions for is cut, as its tokenizer cuts: the last subwords go, the
    special ones at the end stay. Of a transformer with an encoder and a decoder (T5, BART) it is the encoder alone.
    Weights that are stored in half precision are used in float32.

    Args:
        model: folder or hub id for `AutoModel` and `AutoTokenizer`.
        dim: dim of the joint space.
        normalize: L2-normalize every state.
        load_weights: False builds the architecture only, for weights that are loaded afterwards.
        frozen: keep the transformer as it is and train the linear layer alone.
        dropout: share of the values of the projected states that is dropped in training, before the normalization. The
            transformer has dropout of its own, in its configuration.

    Raises:
        ValueError: for a share that is not at least 0 and below 1, or a transformer that gives no states of text.

    >>> from pathlib import Path
    >>> from transformers import BertConfig, BertModel, BertTokenizer
    >>> _ = Path("vocab.txt").write_text("\\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog"]))
    >>> _ = BertTokenizer("vocab.txt").save_pretrained("bert")
    >>> _ = BertModel(BertConfig(hidden_size=12, num_hidden_layers=1, vocab_size=7)).save_pretrained("bert")
    >>> encoder = BERTEncoder("bert", dim=8)
    >>> encoder(*encoder.tokenizer(["a dog", "dog"])).shape
    torch.Size([2, 4, 8])
    """

    tokenizer: SubwordTokenizer  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        model: str,
        dim: Size,
        normalize: bool = True,
        load_weights: bool = True,
        frozen: bool = False,
        dropout: DropShare = 0.0,
    ) -> None:
        super().__init__()
        check_dropout(dropout=dropout)
        from transformers import AutoConfig, AutoModel

        if load_weights:
            whole = AutoModel.from_pretrained(model)
        else:
            whole = AutoModel.from_config(AutoConfig.from_pretrained(model))
        self.transformer = _text_tower(model, whole).float()
        self._config = whole.config  # the encoder's own may not be that of an encoder and a decoder
        if frozen:
            self.transformer.requires_grad_(False)
        if (pooler := getattr(self.transformer, "pooler", None)) is not None:
            # It sees the first subword only and is not used here: without a gradient, training must not wait for one.
            pooler.requires_grad_(False)
        self.projection = nn.Linear(self.transformer.config.hidden_size, dim)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.dim = dim
        self.normalize = normalize
        self.dropout = dropout
        # More than a Tokenizer: it can be saved.
        self.tokenizer = SubwordTokenizer(model, most_subwords(self.transformer))  # type: ignore[assignment]

    def forward(
        self, tokens: Int[Tensor, "caption word"], word_mask: Bool[Tensor, "caption word"]
    ) -> Float[Tensor, "caption word dim"]:
        """Encode every real subword; padding comes out as zero."""
        states = self.transformer(input_ids=tokens, attention_mask=word_mask.long()).last_hidden_state
        words = F.dropout(self.projection(states), self.dropout, self.training)
        words = normalize(words, floor=1e-8) if self.normalize else words
        return words.masked_fill(~word_mask[..., None], 0.0)

    @property
    def tokenizer_identity(self) -> str:
        """That of the files of its tokenizer."""
        return self.tokenizer.identity()

    def save_architecture(self, folder: Path) -> None:
        """Write what `BERTEncoder(folder, load_weights=False)` needs: configuration and tokenizer, no weights."""
        self._config.save_pretrained(folder)
        self.tokenizer.save(folder)

    @classmethod
    def options_to_load(cls, options: dict[str, Any], folder: Path) -> dict[str, Any]:
        """The architecture from the folder, whatever the weights once came from."""
        return {**options, "model": str(folder), "load_weights": False}


def _text_tower(model: str, whole: Any) -> Any:
    """What gives the states of a text: all of a transformer, or its encoder where a decoder follows."""
    tower = whole.get_encoder() if whole.config.is_encoder_decoder else whole
    if tower.main_input_name != "input_ids" or not hasattr(tower.config, "hidden_size"):
        raise ValueError(
            f"{model} is a {type(whole).__name__}, which does not turn the subwords of a text into states of one size; "
            "wanted a text model, such as BERT, RoBERTa, GPT-2 or T5"
        )
    return tower


def most_subwords(transformer: nn.Module) -> int | None:
    """The longest caption that a transformer has positions for, special subwords included; None for any length.

    RoBERTa, MPNet and their kin count positions from one after that of the padding, so that of 514 positions 512 can
    be used: their table of positions says so by its `padding_idx`.

    >>> from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel
    >>> sizes = {"hidden_size": 12, "num_hidden_layers": 1, "vocab_size": 7, "max_position_embeddings": 34}
    >>> most_subwords(BertModel(BertConfig(**sizes))), most_subwords(RobertaModel(RobertaConfig(**sizes)))
    (34, 32)
    """
    limit = getattr(transformer.config, "max_position_embeddings", None)
    if limit is None or limit < 1:  # relative positions, as in T5; some say -1
        return None
    usable = [
        table.num_embeddings - table.padding_idx - 1
        for name, table in transformer.named_modules()
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding) and table.padding_idx is not None
    ]
    return min([limit, *usable])


class SubwordTokenizer:
    """The tokenizer that belongs to a transformer, with the call of `xmodal.data.Vocabulary`.

    It pads at the end and cuts at the end, whichever side its files name: in front of a caption, padding would move its
    words to other positions, and a score would depend on what else is in the batch.

    Args:
        model: folder or hub id for `AutoTokenizer`.
        limit: the most subwords that the transformer takes; the tokenizer's own files may lack it, or say more.

    >>> from pathlib import Path
    >>> from transformers import BertTokenizer
    >>> _ = Path("vocab.txt").write_text("\\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog"]))
    >>> _ = BertTokenizer("vocab.txt").save_pretrained("bert")
    >>> SubwordTokenizer("bert")(["a dog", "dog"])
    TokenBatch(tokens=tensor([[2, 5, 6, 3],
            [2, 6, 3, 0]]), word_mask=tensor([[ True,  True,  True,  True],
            [ True,  True,  True, False]]))
    """

    def __init__(self, model: str, limit: int | None = None) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model)
        # Set afterwards, so that a tokenizer which pads there anyway is saved, and hashed, as it came.
        self.tokenizer.padding_side = self.tokenizer.truncation_side = "right"
        if self.tokenizer.pad_token is None:  # as GPT-2's: what fills up is masked, so that any token will do
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # None leaves the tokenizer's own limit, which may be a number too large for its own code.
        self.limit = limit if limit is not None and limit < self.tokenizer.model_max_length else None

    def save(self, folder: Path) -> None:
        """Write what `AutoTokenizer` reads."""
        self.tokenizer.save_pretrained(folder)

    @property
    def words(self) -> list[str]:
        """Every subword, in the order of its number."""
        return self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer))))

    def identity(self) -> str:
        """A hash of all that the numbers of a caption depend on."""
        with tempfile.TemporaryDirectory() as folder:  # the only complete account that every tokenizer can give
            self.save(Path(folder))
            files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            contents = (path.read_bytes().decode("latin-1") for path in files)
            return tokenizer_identity("transformers", version("tokenizers"), str(self.limit), *contents)

    def __call__(self, captions: Sequence[str]) -> TokenBatch:
        """Subword ids and mask, padded to the longest caption and cut at the limit.

        Raises:
            ValueError: there is no caption, or one is empty; or one string, which is no list of captions.
        """
        refuse_string("captions", captions, "captions")
        if len(captions) == 0:
            raise ValueError("there is no caption to encode")
        for position, caption in enumerate(captions):
            if not caption.strip():
                raise ValueError(f"caption {position} is empty")
        encoded = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.limit, return_tensors="pt"
        )
        return TokenBatch(encoded["input_ids"], encoded["attention_mask"].to(torch.bool))
