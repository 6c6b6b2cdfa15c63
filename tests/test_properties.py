"""Properties of both losses on generated problems: about a thousand here, over 20,000 in `make test-long`."""

from __future__ import annotations

import pytest
from properties import label, transport
from properties.run import holds

CLAIMS = transport.CLAIMS | label.CLAIMS


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_holds(claim, record_property):
    holds(claim, CLAIMS[claim], 70, record_property, anew=False)


@pytest.mark.long
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_holds_in_many_cases(claim, record_property):
    holds(claim, CLAIMS[claim], 1500, record_property, anew=True)
