"""Batches by padded area, worked by hand, and for any lengths."""

from hypothesis import given
from hypothesis import strategies as st

from common.packing import consecutive


def test_by_hand():
    assert consecutive([7, 5, 5, 2, 1], 10) == [[0], [1, 2], [3, 4]]  # longest first: 7 | 5+5 | 2·2
    assert consecutive([1, 2, 5, 5, 7], 10) == [[0, 1], [2, 3], [4]]  # shortest first: the last row is the width
    assert consecutive([1, 1, 1], 100, rows=2) == [[0, 1], [2]]
    assert consecutive([30, 1], 10) == [[0], [1]], "a row that is too long alone"
    assert consecutive([], 10) == []


@given(st.lists(st.integers(1, 50)), st.integers(1, 200), st.none() | st.integers(1, 5))
def test_whole_in_order_and_within_bounds(lengths, area, rows):
    parts = consecutive(lengths, area, rows)
    assert [i for part in parts for i in part] == list(range(len(lengths)))
    for part in parts:
        width = max(lengths[i] for i in part)
        assert len(part) == 1 or width * len(part) <= area
        assert rows is None or len(part) <= rows
