#!/usr/bin/env python3
"""Sample digests and their chain by another binding of xxHash (python: pip install xxhash); stored in digest.inc, checked by test_digest.c.

    python3 tests/reference/digest.py > tests/reference/digest.inc
"""
import struct

import xxhash


def xxh3(data):
    return int.from_bytes(xxhash.xxh3_128_digest(data), "big")


def sample(source, shard, index, position, tokens):
    return xxh3(struct.pack("<IIQQQ", source, shard, index, position, len(tokens)) + struct.pack(f"<{len(tokens)}i", *tokens))


def chain(before, step, digest):
    words = (before % 2**64, before >> 64, step, digest % 2**64, digest >> 64)
    return xxh3(struct.pack("<5Q", *words))


def tokens_of(count):
    return [(i * i + 7 * i) % 50257 for i in range(count)]


if __name__ == "__main__":
    print("/* Written by tests/reference/digest.py. */")
    link, total = 0, 0
    for step, (source, shard, index, position, count) in enumerate(
        ((0, 0, 0, 0, 1), (1, 0, 0, 0, 1), (0, 1, 0, 0, 1), (0, 0, 1, 0, 1), (0, 0, 0, 1, 1), (0, 0, 0, 0, 2), (3, 1000, 2**40, 2**63, 33),
         (63, 2**32 - 1, 2**64 - 1, 2**64 - 1, 1024))
    ):
        digest = sample(source, shard, index, position, tokens_of(count))
        link, total = chain(link, step, digest), (total + digest) % 2**128
        print(f'SAMPLE({step}, {source}u, {shard}u, {index}u, {position}u, {count}, "{digest:032x}", "{total:032x}", "{link:032x}")')
