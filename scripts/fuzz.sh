#!/bin/sh
# Fuzzes what a guest or a peer can send: every target of the package beamline-fuzz, one after the other.
#
#   FUZZ_SECONDS  seconds per target (60)
#   FUZZ_TARGET   one target alone
#   FUZZ_KEEP     1: put what was found worth keeping into fuzz/corpus, minimised
#
# Prints executions, coverage and corpus size of each target. Ends non-zero where one broke, and says where
# the input is that broke it.
set -eu
cd "$(dirname "$0")/.."
CARGO=${CARGO:-cargo}
target_dir=${CARGO_TARGET_DIR:-$PWD/target}
seconds=${FUZZ_SECONDS:-60}
all='vfio_user_stream vfio_user_client pci_config virtqueue gpu_commands marker_ring renderer_messages control_api virtio_devices guest_bus platform_devices boot_images config_files peers'
targets=${FUZZ_TARGET:-$all}
# The most bytes of an input.
max_len=2048

if ! command -v c++ >/dev/null 2>&1; then
    echo "fuzz: no C++ compiler, which libFuzzer is built with (mend: apt-get install g++)" >&2
    exit 1
fi
RUSTC_WORKSPACE_WRAPPER=$PWD/scripts/fuzz-rustc.sh RUSTC_WRAPPER=$PWD/scripts/fuzz-rustc-parsers.sh \
    "$CARGO" build --locked -p beamline-fuzz --features libfuzzer --profile fuzz
fuzzer=$target_dir/fuzz/beamline-fuzz
work=$target_dir/fuzz-work
broken=0

# Runs the fuzzer on one target, with bounds on memory and on the time of one input.
fuzz() {
    BEAMLINE_FUZZ_TARGET=$target "$fuzzer" -rss_limit_mb=512 -timeout=5 -max_len="$max_len" -len_control=20 "$@"
}

# A small corpus with nearly the same coverage as all that is known, in place of the one in the repository.
keep_corpus() {
    # Fewer than 240 files in all: more where an input ends at the first thing that is wrong.
    case $target in
    vfio_user_stream) keep=44 ;;
    vfio_user_client) keep=40 ;;
    renderer_messages) keep=36 ;;
    virtio_devices) keep=4 ;;
    guest_bus) keep=4 ;;
    platform_devices | boot_images | config_files | peers) keep=8 ;;
    marker_ring | control_api) keep=12 ;;
    *) keep=18 ;;
    esac
    rm -rf "$work/$target/least"
    mkdir -p "$work/$target/least"
    fuzz -use_counters=0 -set_cover_merge=1 "$work/$target/least" "fuzz/corpus/$target" "$work/$target/corpus" \
        >"$work/$target/merge.log" 2>&1
    rm -f "fuzz/corpus/$target"/*
    # The largest ones where there are too many: they reach most.
    find "$work/$target/least" -type f -printf '%s %p\n' | sort -rn | head -n "$keep" |
        while read -r _size file; do cp "$file" "fuzz/corpus/$target/"; done
}

for target in $targets; do
    if ! echo " $all " | grep -q " $target "; then
        echo "fuzz: FUZZ_TARGET is $target; it is one of: $all" >&2
        exit 2
    fi
    mkdir -p "$work/$target/corpus" "$work/$target/broken" "fuzz/corpus/$target"
    log=$work/$target/log
    rc=0
    fuzz -max_total_time="$seconds" -print_final_stats=1 -use_value_profile=1 \
        -artifact_prefix="$work/$target/broken/" \
        "$work/$target/corpus" "fuzz/corpus/$target" >"$log" 2>&1 || rc=$?
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    coverage=$(sed -n 's/.* cov: \([0-9]*\) ft.*/\1/p' "$log" | tail -n 1)
    files=$(sed -n 's/.* corp: \([0-9]*\)\/.*/\1/p' "$log" | tail -n 1)
    printf 'fuzz: %s: %s executions, %s edges, %s inputs worth keeping\n' \
        "$target" "${executions:-0}" "${coverage:-0}" "${files:-0}"
    if [ "$rc" -ne 0 ]; then
        broken=1
        grep -aE "panicked at|ERROR: libFuzzer|allocation of more" -A 3 "$log" | head -n 12
        reproducer=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
        echo "fuzz: $target: broke; the input is ${reproducer:-not there, see $log}"
        echo "fuzz: again: BEAMLINE_FUZZ_TARGET=$target $fuzzer ${reproducer:-INPUT}"
    elif [ "${FUZZ_KEEP:-0}" = 1 ]; then
        keep_corpus
        echo "fuzz: $target: $(find "fuzz/corpus/$target" -type f | wc -l) files in fuzz/corpus/$target"
    fi
done
exit "$broken"
