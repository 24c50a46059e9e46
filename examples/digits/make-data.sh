#!/bin/sh
# SPDX-License-Identifier: MIT
# Writes digits_data.inc from scikit-learn's digits.csv.gz; README.md has the command.
set -eu
if [ $# -ne 1 ]; then
    echo "usage: $0 digits.csv.gz >digits_data.inc" >&2
    exit 2
fi
cat <<'END'
/* SPDX-License-Identifier: CC-BY-4.0
 * Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak (1998), UCI Machine Learning
 * Repository, https://doi.org/10.24432/C50P49; the test set. Only the notation was changed.
 * A row is an image: 64 pixels, row by row, from 0 (white) to g = 16 (black), then the digit.
 * Made by make-data.sh; README.md has source and licence. */
END
gzip -dc "$1" | awk -F, '{
    for (i = 1; i <= 64; i++)
        row = row substr("0123456789abcdefg", $i + 1, 1)
    print "\"" row $65 "\","
    row = ""
}'
