# Thin on purpose: each target is one or two commands that can be typed by hand.
#
#   make demo     build everything and show four ways of sharing one GPU (under 3 minutes once built)
#   make test     every test; the last line counts passed, failed and skipped
#   make bench    benchmarks
#   make bench-sched  the scheduler's: what a decision costs, and what the frame contract is worth (simulated)
#   make bench-device  registers over vfio-user, doorbells, mediation, vblanks and idle slices (PART=doorbell: one)
#   make bench-vmm  interrupts beside bare KVM, the VMM's own memory, and how soon a guest runs
#   make fuzz     a minute of made-up input for each part that a guest or a peer can reach (needs g++)
#   make prove    the scheduler's properties at 10,000 cases each, and ten minutes of damaged files (half an hour)
#   make lint     formatting, clippy, and the dependency policy where cargo-deny is installed
#   make setup    install what is missing (Debian, as root); also run by demo and test
#   make guest    build the guest image
#   make build    build the release binary
#   make bed      build the software testbed: QEMU and a stock Linux guest (Debian, as root; docs/bed.md)
#   make test-bed the tests that run in it

SHELL := /bin/sh
CARGO ?= cargo
export CARGO_TARGET_DIR ?= $(CURDIR)/target

GUEST_TARGET := x86_64-unknown-linux-gnu
GUEST_FLAGS  := -C relocation-model=static -C no-redzone=yes -C force-unwind-tables=no
# Where tests and benchmarks look for the guest image; the command itself looks beside its own binary.
export BEAMLINE_GUEST ?= $(CARGO_TARGET_DIR)/$(GUEST_TARGET)/guest/beamline-microguest

.PHONY: setup guest build bed demo test test-bed bench bench-sched bench-device bench-vmm bench-bed fuzz prove lint clean

setup:
	@scripts/setup.sh

guest:
	RUSTFLAGS="$(GUEST_FLAGS)" $(CARGO) build --locked -p beamline-microguest --profile guest --target $(GUEST_TARGET)

build:
	$(CARGO) build --locked --release -p beamline

# DEMO=path/to/demo.toml for another configuration, ARGS for more options.
# Without KVM its guests are processes, which need no image.
demo: setup $(if $(shell test -w /dev/kvm && echo there),guest) build
	"$(CARGO_TARGET_DIR)/release/beamline" demo $(DEMO) $(ARGS)

test: setup guest
	@scripts/test-summary.sh

BED := $(or $(BEAMLINE_BED),$(CARGO_TARGET_DIR)/bed)

# Programs for the testbed's guest, which has no libraries.
bed: setup
	@BEAMLINE_BED="$(BED)" scripts/bed/build.sh
	@RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --locked --quiet -p beamline-guest-linux --profile probe --target $(GUEST_TARGET) --bins --example pace_loop

test-bed: bed
	$(CARGO) build --locked -p beamline
	BEAMLINE_BED="$(BED)" $(CARGO) test --locked -p beamline-tests --test bed -- --nocapture

bench: setup guest
	$(CARGO) bench --locked -p beamline-benches

bench-sched: setup
	$(CARGO) bench --locked -p beamline-benches --bench scheduler --bench contract

bench-device: setup
	$(CARGO) bench --locked -p beamline-benches --bench device -- $(PART)

# Interrupts and doorbells beside bare KVM; the VMM's own memory, and how soon a guest runs.
bench-vmm: setup guest build
	BEAMLINE="$(CARGO_TARGET_DIR)/release/beamline" $(CARGO) bench --locked -p beamline-benches --bench interrupts --bench vmm

# A start, a disk and a network by instructions, beside QEMU's, in the testbed. PART: boot, disk or net.
bench-bed: bed build
	$(CARGO) build --locked --release -p beamline-benches --example counter
	BEAMLINE_BED="$(BED)" BEAMLINE="$(CARGO_TARGET_DIR)/release/beamline" $(CARGO) bench --locked -p beamline-benches --bench bed

# FUZZ_SECONDS per target (60), FUZZ_TARGET for one of them: see CONTRIBUTING.md.
fuzz: setup
	@scripts/fuzz.sh

# One property fills a whole GPU in each case, and runs a sixteenth of the cases asked for.
prove: setup
	PROPTEST_CASES=10000 $(CARGO) test --locked --release -p beamline-sched --features sim
	PROPTEST_CASES=160000 $(CARGO) test --locked --release -p beamline-sched --features sim --lib -- alike_frames
	$(CARGO) test --locked --release -p beamline-sched --features sim --lib -- --ignored --nocapture fuzz

lint:
	@scripts/lint.sh

clean:
	$(CARGO) clean
