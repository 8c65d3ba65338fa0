"Spaces of other tokenizers are seen, too"
from clm_nb.look.token_text import token_texts


def test_sentencepiece_spaces_are_seen():
    class Metaspace:
        batch_decode = lambda self, rows, **_: ["the", "x"][:len(rows)]
        convert_ids_to_tokens = lambda self, ids: ["▁the", "x"][:len(ids)]
    assert token_texts(Metaspace(), [1, 2]) == ["·the", "x"]
