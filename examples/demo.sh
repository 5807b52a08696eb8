#!/bin/sh
# What `make demo` runs: every line that starts with $ is what you would type. From the repository's root.
set -eu
PATH="$(cd "${BIN:-.venv/bin}" && pwd):$PATH"
run() { printf '\n$ %s\n' "$*"; "$@"; }

cat <<'TEXT'
trajmill on the samples in tests/data.
  real:      the Materials Project task documents; the dump with OQMD entry 6126
  generated: the Alexandria files and the other OQMD dump hold numbers of a machine-learned model,
             written in the databases' own formats with planted faults. They are no DFT data.
TEXT
rm -rf demo
run trajmill build demo.toml
run trajmill build --oqmd tests/data/oqmd/real_entry_6126.sql.gz --out demo/store
run trajmill rejections demo/store --id oqmd-81278-pbe
run trajmill release demo/store demo/release
run trajmill info demo/release
run python examples/read_release.py demo/release mp-1201400-pbe
