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

# By the release before version 3: KVCache(8, 2, key=b"k", max_events=4) with three sequences,
# of which one has extra keys and one is a fork.
FILE_2 = """
eNrtm8uP20Qcx5N4H11ehT6glFcwr7KY1uO3A7SHggBx5SU2wfImTjdsHtvYWe2y5AC0iAuifwBHDpUqqlbqoVQVEkLaM0hAj1Tq
FYRACA5VW2bGNrhunCz721Ihfl8p8no8n+9vfr+ZWLFHu2M8x7UiOk7LC9yaG7iOI5ZWxGazVfOd9qxYEokoiX7Q7VWDXtej5y+9
ut+tznm0dc5za16XNq2UxVqn5TbaflksFWdmymKjLErFsqjK7ChXpCJt88M2g7AjqVTYSS1YXvAYVBbrzY4bECPs5C02qkGj0w4v
Nbu9qHkp6LqsjUbsuu0DXhSQ0AAzilS0Wac4jm3UDGKYhl4WK5UwnL/cmu00/4aUiNOyOdoj7MA7GkMC9FnjvLccjtmYDXvNLzr+
nBsm2e41m6yt5S453qLXDvhIePC2s+BG6Vj8nKbqLDR4AQhrYJcdv/E2N1J4S1xvntpC16s3llisbqN9gLXTOfPYlUWv60elVPp0
2ujkVef9Xsv/a+Z4EM0gimrZth3WPx6dYsrENm2aKGuf6wSsUTVNSzVti6g8Hbp0QgtbNWSdEDkeMO9ryJZqWaatJwcddul0mhyU
bdvSdd3krb53kAcmumrrhsrLE3TmuZes6EShgXkivuc2aQ6Wohm2bGq62JdYNmz98nVFr71oaKwjmwCxNENzIKRCO7F13qnXfS+g
RZiRJaLJFp0/ll42bWiSdS3MUEnXZY3xrBLDDK7FGSkZMjEYTjMfGp4MMGCsRFRi8QGE83aViaokTAZ7cJyaRFVgM5dtYUmKMsiC
1YFohCjcgk5ztoU8qIyUTPB0ZWTzRJGzLSw7tKBLZmgSAwwYygxMOhv9YrH42/Mvb/24NPvZxN5PDr9x5MIFIXe1rkTKp85zI/RL
/duftOnDr+TPrD5beO+ddiHDt7BGXyG3NqV9RvmuNR/0RV/0Rd/r5Rv9TM2NRcf4vpjP4E+krgup49iI8Z5Kxfmn/OlUHmO59Snm
x4H8BJCfBPKbgPwUkL8JyN8M5G8B8rcC+duA/GYgfzuQvwPIbwHyW4H8NiC/HcjfCeTvAvI7gPzdQH4nkL8HyN8L5O8D8vcD+QeA
fBHIPwjkRSD/EJB/GMg/AuQfBfKPAfldQP5xID8N5J8A8hKQfxLI7wbye4C8DOQJkFeAvArkNSCvA3kDyJtA3gLyNpAvAfmngPzT
QP4ZIL8XyO8D8mt9T5CWMOI8l/F8fjb1/F7I4CbWmU8+9V4i/n0TPyfF97vJ1Hmsg8fe+v7Xo1+cG9tdXz1/6dDm5777uf5D+ZvX
tx3f/9r0xRdOZtXv/yZhxPyNeg80SjE3lbFe8hlHIbcx+rfjoVAoFAqFQqFQKBQKhUKhUCgUCoVCoVA3Uhu177U69VXF/WPP+0eO
npp88+yPxwf1GbT3dvLD/sUTn3+96/QhXztvntmZ9knuUQoJ9suPPv3gXWHLuU1XJtrHqr9vz4rHPmzv73K0p5zPGFPy7+QedHo8
ybEXhtQjuRcfx036pvPOp/oKa/DNpcY7bH4K0edSql8y5/yQOqTrndxXZdfHM+q63vHGmtjgOsSavE6+Wf2gvjdSbI7HhnxvUKhh
St4rhdRaEnKj/9cHhUKhUCgUCoVCoVAo1H/j+T9+j3s59V60MIL9E37mtEw=
"""
ANSWERS_2 = [
    [0, 1, 2, 3, 4],
    [0, 1, 2],
    [0, 1, 2],
    [0, 1, 2, 3, 4, 3, 4],
    [8, 3, 5, 3, 0],
    [2, 4],
    ["stored", "stored", "stored"],
    [5, 10],
    [13, 9],
    [8, 1, 7, 3, 0],
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


def more_answers(cache):
    extra = [(2, 9, "image")]
    found = [cache.tokens(i).tolist() for i in range(3)]
    found += [cache.page_table([0, 1, 2]).indices.tolist(), list(cache.stats()[:5])]
    found += [[cache.match([0, 1, 2, 3, 5]), cache.match([0, 1, 2, 3, 5], extra=extra)]]
    found += [[event.kind for event in cache.events()], cache.append(0, [4, 5]).tolist()]
    return [*found, cache.append_many([1, 2], [6, 6]).tolist(), list(cache.stats()[:5])]


def test_a_file_of_version_2_answers_the_same():
    data = zlib.decompress(base64.b64decode(FILE_2))
    assert more_answers(KVCache.from_bytes(data)) == ANSWERS_2
    cache = KVCache.from_bytes(data)
    assert more_answers(KVCache.from_bytes(cache.to_bytes())) == ANSWERS_2
    cache.set_tokens(0, 5, cache.reserve(0, 1)[:0])
    assert cache.tokens(0).tolist() == [0, 1, 2, 3, 4, -1]
    cache.check()
