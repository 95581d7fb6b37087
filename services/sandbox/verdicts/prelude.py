"""The names a program may use when its row brings no setup code: the usual star imports and the LeetCode node helpers.

Unlike the benchmark's own setup code it leaves every builtin visible (`from math import *` would shadow `pow`), and its
comparisons are iterative, so a list of 100 000 nodes compares.
"""

PRELUDE = """
import bisect, collections, datetime, functools, heapq, itertools, math, operator, random, re, string
from typing import *
from functools import *
from collections import *
from itertools import *
from heapq import *
from bisect import *
from string import *
from operator import *
from math import *
del pow, abs

inf = float("inf")


class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next


class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val, self.left, self.right = val, left, right


def list_node(values):
    head = None
    for value in reversed(values):
        node = ListNode(value)  # also of a program's own class, whose __init__ may take the value alone
        node.next, head = head, node
    return head


def tree_node(values):
    if not values:
        return None
    root, rest = TreeNode(values[0]), iter(values[1:])
    level = deque([root])
    while level:
        node = level.popleft()
        for side in ("left", "right"):
            value = next(rest, None)
            if value is not None:
                setattr(node, side, TreeNode(value))
                level.append(getattr(node, side))
    return root


def is_same_list(a, b):
    while a is not None and b is not None:
        if a.val != b.val:
            return False
        a, b = a.next, b.next
    return a is None and b is None


def is_same_tree(a, b):
    pairs = [(a, b)]
    while pairs:
        a, b = pairs.pop()
        if a is None and b is None:
            continue
        if a is None or b is None or a.val != b.val:
            return False
        pairs += [(a.left, b.left), (a.right, b.right)]
    return True
"""
