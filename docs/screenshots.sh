#!/bin/sh
# Screenshots of a report for the documentation: docs/screenshots.sh RUN (needs chromium, and pillow to cut).
set -eu
page=$1/report/index.html
docs=$(dirname "$0")
whole=$(mktemp -d)
trap 'rm -rf "$whole"' EXIT
"${CHROMIUM:-chromium}" --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1000,6400 \
  --screenshot="$whole/page.png" "file://$(realpath "$page")" 2>/dev/null
"${PYTHON:-python3}" - "$whole/page.png" "$docs" <<'PYTHON'
import sys

import numpy as np
from PIL import Image

page, docs = np.asarray(Image.open(sys.argv[1]).convert("RGB")), sys.argv[2]
empty = (page == page[-1, 2]).all((1, 2))  # rows of the background alone
end = np.flatnonzero(~empty)[-1] + 24
gaps = np.flatnonzero(empty[:end])
half = gaps[np.abs(gaps - end / 2).argmin()]  # the gap between two sections that is nearest the middle
for name, rows in (("report-top", slice(0, half)), ("report-bottom", slice(half, end))):
    Image.fromarray(page[rows]).save(f"{docs}/{name}.png", optimize=True)
PYTHON
