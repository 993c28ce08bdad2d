#!/usr/bin/env bash
# Builds `corral` and `corral-bench` with the release profile, for figures: no debug assertions.
#
#     bash bench/release.sh
#
# RocksDB is not compiled again: Cargo would do that for each profile (12 to 30 minutes on two cores), though its own C++
# options are the same in both. The library that the development profile made is linked instead. A folder of its own,
# because that choice is part of what Cargo remembers of a build.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../.ci/setup"
install_packages figures

newest_rocksdb() {
    find "$CARGO_TARGET_DIR/debug/build" -path '*/librocksdb-sys-*/out/librocksdb.a' -printf '%T@ %h\n' 2>/dev/null |
        sort -n | tail -1 | cut -d' ' -f2-
}

library=$(newest_rocksdb)
if [ -z "$library" ]; then
    run cargo build --locked --workspace --bins
    library=$(newest_rocksdb)
fi
release=${CORRAL_RELEASE_DIR:-$CARGO_TARGET_DIR-release}
begin=$SECONDS
run env ROCKSDB_LIB_DIR="$library" ROCKSDB_STATIC=1 CARGO_TARGET_DIR="$release" \
    cargo build --locked --release -p corral-server -p corral-bench --bins "$@"
echo "in $((SECONDS - begin)) s: $release/release/corral and $release/release/corral-bench"
