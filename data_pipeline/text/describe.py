"""Text samples are written out here as people read them."""

from data_pipeline.shards.dataset import Dataset, Sample
from data_pipeline.text.beside import tokenizer_beside
from data_pipeline.text.blocks import BlockCodec
from data_pipeline.text.manifest import TextManifest
from data_pipeline.text.tokenizer import END_OF_TEXT, Tokenizer


class TextDescriber:
    """It tells the text of a sample. Raises DataError when the tokenizer does not lie beside the dataset any more."""

    def __init__(self, dataset: Dataset[TextManifest]) -> None:
        self._tokenizer = tokenizer_beside(dataset, dataset.manifest.tokenizer)
        self._codec = BlockCodec(dataset.manifest.sequence_length, dataset.manifest.dtype)

    def __call__(self, sample: Sample) -> str:
        """It returns the whole block, the token before the first target included."""
        return spelled(self._codec.decode(sample.fields).tolist(), self._tokenizer)


def spelled(ids: list[int], tokenizer: Tokenizer) -> str:
    """It returns the text of a block, with the boundaries between documents spelled out."""
    documents: list[list[int]] = [[]]
    for token in ids:
        if token == tokenizer.end_of_text:
            documents.append([])
        else:
            documents[-1].append(token)
    return END_OF_TEXT.join(map(tokenizer.decode, documents))
