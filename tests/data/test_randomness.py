import numpy as np
import pytest

from clfew.data.randomness import ImageRandom, _mix, epoch_order, identity_order

GOLDEN, MASK = 0x9E3779B97F4A7C15, 2**64 - 1


def slow_mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def slow_uniform(seed: int, epoch: int, index: int, stream: int, columns: int) -> list[float]:
    """Keys hashed part by part, then SplitMix64's sequence from the key, its upper 24 bits."""
    key = 0
    for part in (seed, epoch, stream, index):
        key = slow_mix((key + GOLDEN + part) & MASK)
    numbers = []
    for _ in range(columns):
        key = (key + GOLDEN) & MASK
        numbers.append((slow_mix(key) >> 40) / 2**24)
    return numbers


def test_mix_computes_the_published_splitmix64_sequence():
    # The first outputs of Vigna's splitmix64.c for the seed 1234567.
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    states = [(1234567 + (i + 1) * GOLDEN) & MASK for i in range(5)]
    assert [int(z) for z in _mix(np.array(states, dtype=np.uint64))] == expected
    assert [slow_mix(z) for z in states] == expected


@pytest.mark.parametrize(("seed", "epoch", "stream"), [(0, 0, 0), (7, 123, 1), (2**63 + 5, 1, 0)])
def test_uniform_equals_the_slow_transcription(seed, epoch, stream):
    indices = np.array([0, 1, 17, 2**40])
    random = ImageRandom(seed, epoch, indices).uniform(stream, 6)
    assert random.dtype == np.float32
    assert random.tolist() == [slow_uniform(seed, epoch, int(i), stream, 6) for i in indices]


def test_a_negative_seed_is_taken_modulo_two_to_the_64():
    indices = np.arange(3)
    negative = ImageRandom(-1, 0, indices).uniform(0, 4)
    assert np.array_equal(negative, ImageRandom(2**64 - 1, 0, indices).uniform(0, 4))


def test_random_numbers_of_an_image_do_not_depend_on_its_batch():
    whole = ImageRandom(3, 5, np.arange(50)).uniform(1, 8)
    shuffled = np.random.default_rng(0).permutation(50)
    assert np.array_equal(ImageRandom(3, 5, shuffled).uniform(1, 8), whole[shuffled])
    assert np.array_equal(ImageRandom(3, 5, np.array([41])).uniform(1, 8), whole[[41]])
    # Nor on how many numbers are taken.
    assert np.array_equal(ImageRandom(3, 5, np.arange(50)).uniform(1, 3), whole[:, :3])


def test_seed_epoch_stream_and_image_each_change_all_numbers():
    indices = np.arange(100)
    base = ImageRandom(0, 0, indices).uniform(0, 4)
    others = [
        ImageRandom(1, 0, indices).uniform(0, 4),
        ImageRandom(0, 1, indices).uniform(0, 4),
        ImageRandom(0, 0, indices).uniform(1, 4),
        ImageRandom(0, 0, indices + 100).uniform(0, 4),
    ]
    for other in others:
        assert (base != other).all()
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 0.15


def test_random_numbers_are_uniform_and_uncorrelated():
    random = ImageRandom(0, 0, np.arange(20_000)).uniform(0, 4)
    assert random.min() >= 0 and random.max() < 1
    for column in random.T:
        counts = np.histogram(column, bins=20, range=(0, 1))[0]
        # Chi-square with 19 degrees of freedom: beyond 52 once in 10,000.
        assert ((counts - 1000) ** 2 / 1000).sum() < 52
    correlation = np.corrcoef(random.T) - np.eye(4)
    assert np.abs(correlation).max() < 0.03
    # Neighbouring images, whose keys differ in one bit.
    assert abs(np.corrcoef(random[:-1, 0], random[1:, 0])[0, 1]) < 0.03


def test_epoch_order_is_a_permutation_that_changes_with_epoch_and_seed():
    order = epoch_order(0, 0, 200)
    assert sorted(order.tolist()) == list(range(200))
    assert np.array_equal(order, epoch_order(0, 0, 200))
    for other in (epoch_order(0, 1, 200), epoch_order(1, 0, 200), np.arange(200)):
        assert (order == other).sum() < 10


def test_identity_order_does_not_depend_on_the_listing():
    names = [f"class/{i}.png" for i in range(40)]
    shuffled = [names[i] for i in np.random.default_rng(1).permutation(40)]
    ordered = [names[i] for i in identity_order(5, names)]
    assert [shuffled[i] for i in identity_order(5, shuffled)] == ordered
    assert sorted(ordered) == sorted(names) and ordered != names
    assert [names[i] for i in identity_order(6, names)] != ordered


def test_identity_order_keeps_the_others_when_one_is_added():
    names = [f"{i}.png" for i in range(30)]
    before = [names[i] for i in identity_order(0, names)]
    more = ["new.png", *names]
    after = [more[i] for i in identity_order(0, more)]
    assert [name for name in after if name != "new.png"] == before


def test_identity_order_accepts_names_that_are_not_utf8():
    assert len(identity_order(0, ["caf\udce9.png", "b.png"])) == 2


def test_identity_order_of_nothing_is_an_empty_index():
    order = identity_order(0, [])
    assert order.dtype == np.int64 and len(order) == 0
