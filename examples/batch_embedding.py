"""Embed a batch of texts and search in it: `python batch_embedding.py [--texts N]`.

The model is WordLlama with 256 dimensions (16 MB), whose package brings the weights. Each instance loads it once.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import numpy.typing as npt

import flame

WHO = ("The cat", "A dog", "The central bank", "Our football team", "The physicist", "A cook")
DID = ("slept on", "ran across", "raised rates because of", "won despite", "measured", "prepared")
WHAT = ("the warm sofa", "the garden", "rising prices", "heavy rain", "a distant star", "a tomato soup")


class Embedder:
    """The model, in an instance."""

    def __init__(self) -> None:
        import wordllama

        # Where the package has its files; nothing is fetched.
        own = Path(wordllama.__file__).parent
        self.model = wordllama.WordLlama.load(cache_dir=own, disable_download=True)

    def embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """Vectors of length 1, one per text."""
        return np.asarray(self.model.embed(texts, norm=True), dtype=np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--query", default="a scientist looks at the sky")
    arguments = parser.parse_args()
    dice = random.Random(0)
    texts = [" ".join(dice.choice(part) for part in (WHO, DID, WHAT)) + "." for _ in range(arguments.texts)]
    with flame.Runner("batch-embedding") as runner:
        embedder = runner.service(Embedder)
        batches = [texts[first : first + 500] for first in range(0, len(texts), 500)]
        futures = [embedder.embed(batch) for batch in batches]
        (query,) = embedder.embed([arguments.query]).get()
        list(flame.progress(futures, "embedding"))
        vectors = np.concatenate(runner.get(futures))
    best = list(dict.fromkeys(texts[index] for index in np.argsort(vectors @ query)[::-1]))[:3]
    print(f"{len(vectors)} texts, {vectors.shape[1]} dimensions; nearest to {arguments.query!r}:", *best, sep="\n  ")


if __name__ == "__main__":
    main()
