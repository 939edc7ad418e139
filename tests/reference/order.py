#!/usr/bin/env python3
"""The order of samples, written a second time from docs/data.md; its output is stored in order.inc and checked by test_order.c.

    python3 tests/reference/order.py > tests/reference/order.inc
"""
WORD = 2**64


def mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def derive(key, number):
    return mix((mix((key + 0x9E3779B97F4A7C15) % WORD) + number) % WORD)


def encrypt(keys, half, value):
    """One pass of the Feistel network over numbers of 2 * half bits."""
    left, right = divmod(value, 2**half)
    for key in keys:
        left, right = right, left ^ (mix((right + key) % WORD) % 2**half)
    return left * 2**half + right


def permute(key, round_, index, n):
    if n == 1:
        return 0
    half = ((n - 1).bit_length() + 1) // 2
    keys = [derive(derive(key, round_), r) for r in range(8)]
    value = encrypt(keys, half, index)
    while value >= n:
        value = encrypt(keys, half, value)
    return value


def deal(weights, position):
    """(source, earlier draws of it) of draw `position`, by counting how many of the first draws each subtree has."""

    def count(first, end, wanted, total):
        # How many of the first `total` draws of node [first, end) belong to source `wanted`.
        if end - first == 1:
            return total
        middle = first + (end - first) // 2
        left = total * sum(weights[first:middle]) // sum(weights[first:end])
        if wanted < middle:
            return count(first, middle, wanted, left)
        return count(middle, end, wanted, total - left)

    for source in range(len(weights)):
        before = count(0, len(weights), source, position)
        if count(0, len(weights), source, position + 1) == before + 1:
            return source, before
    raise AssertionError("nobody got the draw")


def draw(seed, samples, weights, position):
    source, before = deal(weights or samples, position)
    epoch, index = divmod(before, samples[source])
    return source, permute(derive(seed, source), epoch, index, samples[source]), before, epoch


MIXTURES = [  # (seed, samples, weights), the same list stands in test_order.c
    (0, [1000], None),
    (7, [3, 1, 5, 2], None),
    (42, [1000, 10, 2**40 + 1], [1, 1, 8]),
    (2**64 - 1, [5, 5, 5, 5, 5], [3, 1, 4, 1, 5]),
    (1, [2**62, 2**62 + 3, 12345678901], None),
    (3, [10, 20], [2**62, 2**62 + 1]),
]

if __name__ == "__main__":
    print("/* Written by tests/reference/order.py. */")
    for n in (1, 2, 3, 4, 5, 16, 17, 255, 1000003, 2**40 + 1, 2**62 + 1, 2**64 - 1):
        for key, round_ in ((0, 0), (0x0123456789ABCDEF, 0), (0x0123456789ABCDEF, 1), (2**64 - 1, 2**40)):
            for index in sorted({0, n // 3, n - 1}):
                print(f"PERMUTE({key:#x}u, {round_}u, {index}u, {n}u, {permute(key, round_, index, n)}u)")
    for number, (seed, samples, weights) in enumerate(MIXTURES):
        for position in [*range(12), 999, 1000, 1001, 10**6 + 3, 10**12 + 7, 2**63 - 1, 2**63, 2**64 - 2]:
            source, sample, before, epoch = draw(seed, samples, weights, position)
            print(f"DRAW({number}, {position}u, {source}u, {sample}u, {before}u, {epoch}u)")
