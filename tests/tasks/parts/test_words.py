from __future__ import annotations

import random
from itertools import pairwise

import pytest

from ftkit.tasks.parts.words import Pieces, Unit, at_spaces, at_word_breaks, best_windows, of_words, window_ranges, windows_of


def test_words_joined_by_one_space_keep_their_places() -> None:
    sentence = of_words(["New York", "", "is", "\u200b", "big"])
    assert sentence.text == "New York  is \u200b big"
    assert sentence.words == ["New York", "", "is", "\u200b", "big"]


def test_texts_divided_at_spaces() -> None:
    assert at_spaces("  Anna\tlives ,\nhere ").words == ["Anna", "lives", ",", "here"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Anna lives in Lima, Peru.", ["Anna", "lives", "in", "Lima", ",", "Peru", "."]),
        ("3.14 or 2,000; v2 a_b 10:30.", ["3.14", "or", "2,000", ";", "v2", "a_b", "10:30", "."]),
        ("don't (really)", ["don", "'", "t", "(", "really", ")"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("e\u0301te\u0301!", ["e\u0301te\u0301", "!"]),
        ("ok 👩‍🚀🙂", ["ok", "👩‍🚀", "🙂"]),
        ("a\u200b b\ufeff", ["a", "b"]),
        ("\u200b", ["\u200b"]),
        ("Œuvre naïve über", ["Œuvre", "naïve", "über"]),
    ],
)
def test_texts_divided_at_word_breaks(text: str, words: list[str]) -> None:
    sentence = at_word_breaks(text)
    assert sentence.words == words
    assert sentence.text == text


def test_one_window_where_all_fits() -> None:
    assert window_ranges([1, 2, 3], 6, 2) == [(0, 3)]


def test_windows_share_words_and_the_last_one_is_full() -> None:
    assert window_ranges([1] * 10, 4, 2) == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert window_ranges([1] * 9, 4, 1) == [(0, 4), (3, 7), (5, 9)]
    assert window_ranges([1] * 9, 4, 0) == [(0, 4), (4, 8), (5, 9)]


def test_words_are_read_where_their_context_is_longest() -> None:
    assert best_windows([1] * 10, [(0, 6), (4, 10)]) == [0] * 5 + [1] * 5
    assert best_windows([1] * 12, [(0, 8), (4, 12)]) == [0] * 6 + [1] * 6


def test_windows_of_random_sentences_lose_no_word() -> None:
    generator = random.Random(0)
    for _ in range(300):
        room = generator.randrange(2, 20)
        sizes = [generator.randrange(1, room // 2 + 1) for _ in range(generator.randrange(1, 60))]
        ranges = window_ranges(sizes, room, generator.randrange(0, room))
        assert (ranges[0][0], ranges[-1][1]) == (0, len(sizes))
        assert all(sum(sizes[start:end]) <= room for start, end in ranges)
        assert all(start < later <= end < latest for (start, end), (later, latest) in pairwise(ranges))
        owners = best_windows(sizes, ranges)
        assert owners == sorted(owners)
        assert all(ranges[owner][0] <= word < ranges[owner][1] for word, owner in enumerate(owners))


@pytest.mark.parametrize("max_length", [8, 9, 20, 1000])
@pytest.mark.parametrize("overlap", [0, 3, 50])
def test_every_word_is_read_once_at_its_own_pieces(max_length: int, overlap: int) -> None:
    generator = random.Random(overlap)
    sizes = [generator.choice([1, 1, 2, 3, 40]) for _ in range(70)]
    units = [Unit([100 * number + 7] * size, 0, size - 1) for number, size in enumerate(sizes)]
    windows = windows_of(Pieces([1], units, [2], ([0], 5, [3])), max_length, overlap)
    assert [word for window in windows for word in window.words] == list(range(70))
    for window in windows:
        assert len(window.ids) <= max_length
        assert (window.ids[0], window.ids[-1]) == (1, 2)
        assert window.types == [0, *[5] * (len(window.ids) - 2), 3]
        for word, (start, end) in zip(window.words, window.spans, strict=True):
            assert set(window.ids[start:end]) == {100 * word + 7}
            assert end - start == min(sizes[word], (max_length - 2) // 2 if max_length < 1000 else 40)
    assert any(window.cut for window in windows) == (max_length < 1000)


def test_a_length_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="max_length 8 leaves no room beside 7 special tokens"):
        windows_of(Pieces([1] * 4, [Unit([5], 0, 0)], [2] * 3), 8, 0)
