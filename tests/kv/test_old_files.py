"""A file of version 1, which lacks extra keys and events, still loads and answers the same."""

import base64
import zlib

from llmds_nb import KVCache

# By the release before version 2: KVCache(6, 2, key=b"k", eviction="lfu") with a sequence, a pin, a
# quota, and five cached pages.
FILE = """
eNrtm01sG0UUx23HThtKoSTlG4pZCpSwhZ398q4p5VCkqoITn4Ikspx4HVtx7NS7jtKGXEABqVQCxIELHxIVEhKp6IEPge
gJQQ+oCCGQioSERM4gVUL0RGHeejddJl6b9Akaove/bObN/N68eTueZN86lXTC17xUKEw7XrFU9IqFgpSflyYqzsSU25p2
pbw0PyqVGtOjUj6rMY0ZLGcrupwdlSoND4yWojDd1HxTteSCSdV13TZsQ8mBETyD1dRVO6cZOQWMM8VJB4yMMUvXDNYeOl
Ottx3YKstxJ4btWxuNmj+9YTPVNBSLgdV1DvrTGxafTjXB5DWm/HGqmbMZUxR9QZKlilMsOc2VdRSDKUZGeLijEmCaAldl
TM5ym9u2mQyubGwMGiXv0Iwf7ahUrjWKHjPbg5zZ6oRXbdTbXbVyq22ecg61LeZ4YJgtuJVi20W9VauBrV6AFPih+LHXnT
mvwNfvLz/MUMGtHnYuWFZCZyuhzTSdcnUO3Der9Uno9ZotB3pmnaYbxMYgD65TrPEsaJqqmlbO0G1uq9WmS26hPs7tDIZw
dsJrNR3efuiJfUW+C6QFGbIGe8LPAu85YOowFhYk5UeYKTM2xgfB3mmUy67j8U0zoshMV6wxTvNtEk+bumythgGVDUPRge
d7qsvsqiWrqx0AK+cMQwUHsP+6RbAaB1K2FNOfn++zrvF3Wj2wMtNM2wQPcCf/5kJToy5ktcMKfJjnUFX9IODWx7tgnVLI
SZ/3bwJ8hLrwzFY7u7BkZtntVfAPV9dFdHAAqMz4ccHXsJDNZn/b/9jQS/nx4/17X198+uXl5Uz7+EmkguufgZJCOxGj4P
hKnC1/94s+vPh48tMvH0w9+0xdHJcS2h8I7T6h3WveuHG9OPJLfskv+b3UftPCNdljvncFP33CuZrucd4uxZzvcbzYPiHw
6cTFKeQzSL4fyW9C8puR/ACSvwzJb0HylyP5rUj+CiR/JZLfhuSvQvKDSH4IyW9H8lcj+WuQ/LVI/jokfz2SvwHJ34jkb0
LyNyP5HUj+FiSfRfK3InkJyd+G5Hci+duR/B1I/k4kvwvJ34Xkh5H83UheRvK7kfw9SP5eJK8geYbkVSSvIXkdyRtI3kTy
OSRvIXkbyeeR/H1Ifg+Svx/J70XyDyD5f1onWKvfS91OrbN44p7b12t81KY2tddPe2CDry+5xvGbaX+si/sV/p7NxNTrxX
GfBdewbtsfU78fEvrF9wrhe4OBmLjC/rC+FdZJw+fdTUIb+/fTiRj7RlUq5n4nBHvyIvMb5zcp7JO4/v/aL4lEIpFIJBKJ
RCKRSCQSiUQibRRBPRRqqeeDmnuyQ7/4c7RG/8X+c+rzj7YmZ37fd+p0a9d86CP0G6fou4hwfNTvHz+/urO0u+/H0rcfff
7kwaOJaGxhvJ38Rv9vK1q7Dt/VHz373Nfy4PffDC5+dWT7e5/MDQhxdvoORbJHvPDOZOu2156q9T1y+u2l5TM7fpCraSEP
5yPvNKLKdIg9+t2C6eoL77z1ynByzzHljQMfn3l/S2Qc+E2vIb+hHeY88tO5w6c+/PXNRe/kwydfLB3PBGPSQUzJSHzRHK
X+xX0oqj+Sl5SQKxKdW9G9Hv3cLyVW//8miUQikUgkEolEIpFIpP/n838qeM4P61uZxIVaUbT/LyvCNP0=
"""
ANSWERS = [  # of that release
    [4, 2, 4],
    [0, 1, 2, 3],
    [0, 1],
    [6, 1, 3, 5, 2],
    [4, 2, 2],
    [4, 0, 2],
    [4, 0, 0],
    [4, 0, 0],
    [8, 9],
]


def answers(cache):
    prompts = [[i, 1, 2, 3] for i in range(3)]
    found = [[cache.match(prompt) for prompt in prompts]]
    found += [cache.tokens(0).tolist(), cache.page_table(0).indices.tolist()]
    found += [list(cache.stats()[:5])]
    cache.unpin(1)
    for _ in range(4):
        cache.evict(1)
        found.append([cache.match(prompt) for prompt in prompts])
    cache.check()
    return [*found, cache.append(0, [4, 5]).tolist()]


def test_a_file_of_version_1_answers_the_same(tmp_path):
    path = tmp_path / "old.llmds"
    path.write_bytes(zlib.decompress(base64.b64decode(FILE)))
    assert answers(KVCache.load(path)) == ANSWERS
    again = KVCache.from_bytes(KVCache.load(path).to_bytes())  # as version 2
    assert answers(again) == ANSWERS
    cache = KVCache.load(path, mmap=True)
    assert cache.attach(5, [2, 1, 2], extra=[(0, 1, "image")]) == 0
    cache.reset()
    assert cache.match([0, 1]) == 0
    cache.check()
