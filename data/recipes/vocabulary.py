"""The tokenizer of the embedded models: whole words where the tasks need them, bytes for everything else.

Byte-level BPE without merges: a piece of text that is a vocabulary entry is one token, any other falls to its bytes,
so every text comes back unchanged. Beside the words of the word problems there are the words of small Python
functions, so that a model trained on those can share this vocabulary.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from mobile_nb.analysis import tasks

CONTEXT = 512  # tokens; the models' rope context
SPECIAL = ("<pad>", "<eos>")
CODE = (
    "def return if else elif for while in not and or is None True False range len sum min max abs sorted reversed "
    "list str int enumerate zip append result total count value values item items number numbers word words text "
    "index first last left right key keys pair pairs i j k n m x y z a b c s t f assert pass break continue lambda "
    "set dict tuple print join split upper lower replace isdigit isalpha startswith endswith even odd largest smallest"
).split()
SYMBOLS = "() (): ): [] : == != <= >= += -= *= // ** [: :] [:: ] [- (): -> ') \" \"\"\" ''' ']) )) ]) ".split()
INDENTS = ("\n   ", "\n       ", "\n           ", "\n\n", "\n\n\n")


def words_of_the_tasks() -> list[str]:
    """Every distinct piece, as the pre-tokenizer cuts it, that the tasks' training problems use."""
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces = set()
    for task in tasks.NAMES:
        for problem in tasks.load(task, split="train", n=8000, seed=0):
            pieces.update(piece for piece, _ in cut.pre_tokenize_str(problem.prompt + problem.solution))
    return sorted(pieces)


def build() -> PreTrainedTokenizerFast:
    """Return the tokenizer; it depends on nothing but the tasks and this file."""
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    texts = [f"{space}{number}" for space in (" ", "") for number in range(100)]
    texts += [f"{space}{word}" for word in CODE for space in (" ", "")]
    texts += [f"{space}{symbol}" for symbol in SYMBOLS for space in (" ", "")]
    texts += INDENTS
    pieces += words_of_the_tasks()
    for text in texts:
        parts = cut.pre_tokenize_str(text)
        pieces.append("".join(piece for piece, _ in parts))
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    core = Tokenizer(BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    core.pre_tokenizer = cut
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
