"""The counter-based generator: known answers, a twin in plain integers, distribution and independence."""

import math

import pytest
import torch

from lit_thinkfast.generation.rng import philox, problem_key, uniforms

MASK = 0xFFFFFFFF


def philox_twin(counter, key):
    """Philox-4x32-10 in unbounded Python integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(second >> 32) ^ c[1] ^ k[0], second & MASK, (first >> 32) ^ c[3] ^ k[1], first & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers published with Random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, words):
    assert tuple(int(w) for w in philox(tuple(torch.tensor(c) for c in counter), key)) == words
    assert tuple(philox_twin(counter, key)) == words


def test_uniforms_equal_the_integer_twin():
    problems = torch.tensor([problem_key("a"), problem_key("b/ü"), -1, 2**63 - 1])
    samples = torch.tensor([0, 7, 2**32 - 1, 255])
    seed = 2**62 + 12345
    found = uniforms(problems[:, None], samples[:, None], torch.tensor([0, 1, 99]), seed=seed)
    for row in range(4):
        for column, position in enumerate((0, 1, 99)):
            problem = int(problems[row])
            words = philox_twin(
                (problem & MASK, (problem >> 32) & MASK, int(samples[row]), position), (seed & MASK, seed >> 32)
            )
            assert float(found[row, column]) == ((words[0] >> 5) * 2**26 + (words[1] >> 6)) / 2**53


def test_a_number_does_not_depend_on_its_neighbours():
    problems = torch.tensor([problem_key(f"p{i}") for i in range(20)])
    whole = uniforms(problems[:, None, None], torch.arange(8)[:, None], torch.arange(30), seed=3)
    assert float(uniforms(problems[11], torch.tensor(5), torch.tensor(17), seed=3)) == float(whole[11, 5, 17])
    assert whole.dtype == torch.float64
    assert len(whole.unique()) == whole.numel()


def test_uniform_in_the_unit_interval_and_independent_along_each_axis():
    problems = torch.tensor([problem_key(f"gsm8k/{i}") for i in range(40)])
    values = uniforms(problems[:, None, None], torch.arange(64)[:, None], torch.arange(100), seed=0)
    assert 0 <= float(values.min()) < 1e-4
    assert 1 - 1e-4 < float(values.max()) < 1
    n = values.numel()
    counts = torch.histc(values.flatten(), bins=100, min=0, max=1)
    chi2 = float(((counts - n / 100) ** 2 / (n / 100)).sum())
    assert abs(chi2 - 99) < 5 * math.sqrt(2 * 99)  # 99 degrees of freedom
    centred = (values - 0.5) * math.sqrt(12)
    for axis in range(3):
        for lag in (1, 2):
            length = values.shape[axis]
            product = centred.narrow(axis, 0, length - lag) * centred.narrow(axis, lag, length - lag)
            assert abs(float(product.mean())) < 5 / math.sqrt(product.numel())
    other = (uniforms(problems[:, None, None], torch.arange(64)[:, None], torch.arange(100), seed=1) - 0.5) * math.sqrt(
        12
    )
    assert abs(float((centred * other).mean())) < 5 / math.sqrt(n)


def test_keys_of_problems_are_fixed_for_ever():
    assert problem_key("gsm8k/0") == int.from_bytes(
        __import__("hashlib").blake2b(b"gsm8k/0", digest_size=8).digest(), "little", signed=True
    )
    assert len({problem_key(str(i)) for i in range(10_000)}) == 10_000
