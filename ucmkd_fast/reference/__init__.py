"""Readable torch statements of every op: the oracle of the tests.

Nothing here is fast and nothing here is native. Every function works in any
floating dtype and is differentiable by autograd as it stands.
"""
