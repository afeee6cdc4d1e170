#!/bin/sh
# Runs every test and ends with each skip's reason and one line: N passed, N failed, N skipped.
#
# A test that cannot run here prints `skip: <test>: <reason>` and returns; libtest counts it as passed, so
# it is moved to the skipped column. Tests that libtest itself ignores are skips as well.
set -u
cd "$(dirname "$0")/.."
CARGO=${CARGO:-cargo}
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
log=$target/test-summary.log
status=$target/test-summary.status

# The guest image is built apart, with its own flags (make guest); its package has no tests.
{
    "$CARGO" test --locked --workspace --exclude beamline-microguest --no-fail-fast -- --nocapture 2>&1
    echo $? >"$status"
} | tee "$log"
rc=$(cat "$status")

awk -v rc="$rc" '
    # The harness may have begun a line (test name ...) before the test printed its own.
    match($0, /skip: [^:]+(::[^:]+)*: .+/) { skips[++skipped] = substr($0, RSTART); printed++ }
    /^test .* \.\.\. ignored/ {
        line = $0; sub(/^test /, "", line); sub(/ \.\.\. ignored,? ?/, ": ", line)
        if (line ~ /: $/) line = line "ignored, no reason given"
        skips[++skipped] = "skip: " line
    }
    /^test result: / {
        for (i = 1; i <= NF; i++) {
            if ($(i + 1) == "passed;") passed += $i
            if ($(i + 1) == "failed;") failed += $i
        }
    }
    /^test .* \.\.\. FAILED$/ { broken[++nbroken] = $2 }
    /^error: could not compile|^error: test failed, to rerun/ { errors[++nerrors] = $0 }
    END {
        # A build that fails, or a test program that dies, reports no result of its own.
        if (rc != 0 && failed == 0) { failed = 1; broken[++nbroken] = "the build or a test program (see above)" }
        print ""
        for (i = 1; i <= nerrors; i++) print errors[i]
        for (i = 1; i <= nbroken; i++) print "failed: " broken[i]
        for (i = 1; i <= skipped; i++) print skips[i]
        printf "%d passed, %d failed, %d skipped\n", passed - printed, failed, skipped
        exit failed > 0
    }' "$log"
